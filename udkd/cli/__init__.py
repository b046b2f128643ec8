"""The commands of `udkd`. Only this package prints; it may import all others."""
