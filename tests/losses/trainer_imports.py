"""Prints whether a trainer without the fused loss imports it."""

import sys

import udkd.training.trainer

print(udkd.training.trainer.__name__, "udkd.losses.fused" in sys.modules)
