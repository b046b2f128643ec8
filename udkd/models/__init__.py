"""Builds classifiers by name; their feature maps, weight files and weight averages.

It may import udkd.augment and the packages before it.
"""
