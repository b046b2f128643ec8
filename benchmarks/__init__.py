"""Benchmarks of udkd: `python -m benchmarks NAME`. Nothing imports this package.

To add a benchmark, write `benchmarks/NAME.py`; every file in this folder except this one and `__main__.py` is one:

    \"\"\"One line: what is measured (`python -m benchmarks` shows it).\"\"\"

    EXPECTATION = "The expected result, with numbers, written before the first run."

    def main(rounds: RoundsOption = 7, device: DeviceOption = "auto", results: ResultsOption = RESULTS) -> None:
        \"\"\"The text of --help.\"\"\"
        result = BenchmarkResult.begin("NAME", EXPECTATION, choose_device(device), settings={"batch": 64})
        timed = side_by_side([Variant("a", run_a, items=64), Variant("b", run_b, items=64)], result.device, rounds=rounds)
        result.add(timed, baseline="a", batch=64)  # one row per variant, with its ratio to "a" in each round
        result.add_fact("pixels equal", True)      # any other measured fact
        result.write(results)                      # benchmarks/results/NAME-<hardware>.json, written atomically
        draw(results, f"NAME-{result.slug}", lambda figure, palette: …)  # a PNG and an SVG beside it

`main` is a typer command. A module is imported only when its benchmark is named, so only the benchmarks that use optional
packages (FFCV, DALI) need them, and a missing one is a one-line error. Shared modules: `common.results` (machine, rows, file);
`common.timing` (variants take turns within each round, so that a busy machine slows all of them alike); `common.harness`
(udkd's training step on synthetic data); `common.figures`. A result's file name contains the hardware.
"""
