"""Loaders of other libraries, which benchmarks.loader times beside ours."""
