"""What can be said of classifiers sample by sample: pure functions over NumPy arrays, one file each.

Part of udkd.report.
"""
