"""`python -m udkd` with small blocks, so that a small data set has enough of them for every process of a group."""

from udkd.utils.launcher import exit_with_launcher

if __name__ == "__main__":
    exit_with_launcher()
    import udkd.teacher.cache.build as builder
    from udkd.__main__ import main

    builder.BLOCK_ROWS = 8
    main()
