"""Views: crop, flip and colour jitter, first drawn as numbers and then applied to canvases.

It may import udkd.utils and udkd.data.
"""
