"""What udkd costs, measured: `python -m benchmarks NAME`; nothing imports this package.

To add a benchmark, write `benchmarks/NAME.py`; every file here but this one and `__main__.py` is one:

    \"\"\"One line: what is measured (`python -m benchmarks` shows it).\"\"\"

    EXPECTATION = "What you believe will come out, with numbers, written before the first run."

    def main(rounds: RoundsOption = 7, device: DeviceOption = "auto", results: ResultsOption = RESULTS) -> None:
        \"\"\"What --help says.\"\"\"
        record = Record.begin("NAME", EXPECTATION, choose_device(device), settings={"batch": 64})
        timed = side_by_side([Variant("a", run_a, items=64), Variant("b", run_b, items=64)], record.device, rounds=rounds)
        record.add(timed, baseline="a", batch=64)       # one row per variant, with its ratio to "a" in every round
        record.put("pixels equal", True)                # any other fact
        record.write(results)                           # benchmarks/results/NAME-<hardware>.json, whole or not at all
        draw(results, f"NAME-{record.slug}", lambda figure, palette: …)   # a PNG and an SVG beside it

`main` is a typer command; its module is imported only when it is named, so that what it needs (FFCV, DALI) troubles nobody
else, and a missing package is one line. Its parts: `common.results` (facts of the machine, rows, the file), `common.timing`
(variants in turn within each round, so that a busy machine slows all of them alike and ratios hold), `common.figures`.
A result without a GPU never stands in for one: the hardware is part of the file's name.
"""
