"""What all tests share: hypothesis draws the same examples in each run, so that no run fails by chance.

`--hypothesis-profile=long` draws others, many more, each time (`make test-long`).
"""

from hypothesis import settings

settings.register_profile("fixed", derandomize=True, database=None, deadline=None)
settings.register_profile("long", max_examples=3_000, database=None, deadline=None)
settings.load_profile("fixed")
