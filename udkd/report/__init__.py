"""The HTML page of a run, and the analysis behind it. It may import udkd.export and the packages below it."""
