"""Per-sample analysis of classifiers: pure functions over NumPy arrays, one file each.

Part of udkd.report.
"""
