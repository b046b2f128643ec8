"""The converter, `udkd-prep`: image files to a dataset folder. It may import udkd.utils and udkd.data."""
