"""The distillation loss, sample weights, schedules of the loss's weights, and further distillation methods.

It may import udkd.models and the packages before it.
"""
