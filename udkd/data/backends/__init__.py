"""The backends, one file each; registry.py opens them by name. Part of udkd.data."""
