"""Views: crop, flip and colour jitter as numbers, and the pixels that they select.

It may import udkd.utils and udkd.data.
"""
