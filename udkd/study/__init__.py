"""Studies: arms of a question, repeated with several seeds; their runs, statistics and pages.

It may import udkd.report and the packages below it.
"""
