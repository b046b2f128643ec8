"""Views: crop, flip and colour jitter as numbers, and the pixels that follow.

It may import udkd.utils and udkd.data.
"""
