"""What decodes: one file per backend, chosen by name in registry.py. Part of udkd.data."""
