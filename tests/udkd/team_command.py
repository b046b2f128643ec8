"""`udkd` with small blocks, so that a small data set has enough of them for every process of a team."""

import udkd.actors.cache_builder as builder
from udkd.cli import main

if __name__ == "__main__":
    builder.BLOCK_ROWS = 8
    main()
