"""A study: the same question put to several arms and seeds, and what can be answered.

It may import udkd.report and what that may.
"""
