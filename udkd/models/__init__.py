"""Classifiers by name, their feature maps, weights and weight averages.

It may import udkd.augment and what that may.
"""
