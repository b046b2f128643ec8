"""Loaders of other libraries, which benchmarks.loader compares with ours."""
