"""METHODS with this package's methods: importing a method's module registers it."""

from udkd.losses.methods import attention, crd, dkd, fitnets, reviewkd, rkd
from udkd.losses.methods.registry import METHODS

__all__ = ["METHODS", "attention", "crd", "dkd", "fitnets", "reviewkd", "rkd"]
