"""What students are trained on: the distillation loss, sample weights, schedules, further methods.

It may import udkd.models and what that may.
"""
