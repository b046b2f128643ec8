"""The backends, one file each, opened by name with registry.py. Part of udkd.data."""
