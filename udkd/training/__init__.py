"""The training loop: step, students, schedules, run folder, evaluation.

It may import udkd.teacher and the packages below it.
"""
