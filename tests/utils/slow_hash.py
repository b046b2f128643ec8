"""splitmix64 on Python integers: the slow reference for tests of hashing and views."""

MASK = (1 << 64) - 1
GOLDEN = 0x9E3779B97F4A7C15


def slow_mix(z: int) -> int:
    """splitmix64 on Python integers, after Sebastiano Vigna's splitmix64.c."""
    z = (z + GOLDEN) & MASK
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & MASK
    return z ^ (z >> 31)


def slow_key(*parts: int) -> int:
    state = 0
    for part in parts:
        state = slow_mix(state ^ slow_mix(part & MASK))
    return state


def slow_uniform(key: int, counter: int) -> float:
    return (slow_mix((key + counter * GOLDEN) & MASK) >> 11) / 2**53


class SlowStream:
    """A sample's numbers, one at a time."""

    def __init__(self, seed: int, view: int, sample: int) -> None:
        self.key = slow_key(seed, view, sample)

    def __getitem__(self, index: int) -> float:
        return slow_uniform(self.key, index)
