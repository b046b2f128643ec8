"""Classifiers by name, their feature maps, their weights and averages of them.

It may import udkd.augment and what that may.
"""
