"""Builds classifiers by name; their feature maps, weight files and weight averages.

It may import udkd.augment and what that may.
"""
