"""The commands of `udkd`. It may import all other packages."""
