"""The commands of `udkd`, the only package that prints. It may import everything."""
