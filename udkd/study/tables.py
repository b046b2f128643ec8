"""A study's result as rows of text, for a CSV file and for a terminal.

table.csv holds what seeds decide: a study that was killed and resumed writes the same bytes. What clocks decide is in
cost.csv.
"""

import csv
import io
from collections.abc import Sequence

from udkd.study.results import Comparison, Summary
from udkd.utils.printable import printable
from udkd.utils.statistics import Spread

TABLE_HEAD = (
    *("arm", "student", "n", "top1_last_mean", "top1_last_sd", "top5_last_mean", "top1_best_mean", "top1_best_sd"),
    *("best_epochs", "against", "figure", "seeds", "difference_mean", "difference_sd", "bootstrap_low", "bootstrap_high"),
    *("t_low", "t_high", "verdict"),
)
COST_HEAD = ("arm", "n", "images_per_s_mean", "images_per_s_sd", "seconds_mean", "seconds_sd", "against", "seconds_ratio")


def table_csv(summary: Summary) -> str:
    """One line per arm, student and comparison of it; an arm that is compared with nothing has one line."""
    lines: list[tuple[object, ...]] = []
    for arm_summary in summary.arm_summaries:
        own = [other for other in summary.comparisons if (other.arm, other.learner) == (arm_summary.arm, arm_summary.learner)]
        head = (
            *(
                arm_summary.arm,
                arm_summary.learner,
                arm_summary.last.n,
                *_pair(arm_summary.last),
                _figure(arm_summary.last_top5.mean),
            ),
            *(*_pair(arm_summary.best), " ".join(map(str, arm_summary.best_epochs))),
        )
        once = dict.fromkeys(_compared(comparison) for comparison in own)  # a contrast may be a comparison with the baseline
        lines += [(*head, *compared) for compared in once] or [(*head, *[""] * 10)]
    return csv_text(TABLE_HEAD, lines)


def cost_csv(summary: Summary) -> str:
    """One line per arm and baseline it is held against."""
    lines: list[tuple[object, ...]] = []
    for cost in summary.costs:
        head = (cost.arm, cost.seconds.n, *_pair(cost.images_per_s), *_pair(cost.seconds))
        ratios = [*cost.ratios.items(), *([("all baselines together", cost.to_sum)] if cost.to_sum is not None else [])]
        lines += [(*head, name, _figure(ratio)) for name, ratio in ratios] or [(*head, "", "")]
    return csv_text(COST_HEAD, lines)


def mean_sd(own: Spread, digits: int = 2) -> str:
    """`81.86 ± 0.21`; without a spread where n is 1."""
    return f"{own.mean:.{digits}f}" + ("" if own.sd is None else f" ± {own.sd:.{digits}f}")


def signed(value: float, digits: int = 2) -> str:
    """`+0.12`, `−0.12`; zero without a sign."""
    text = f"{abs(value):.{digits}f}"
    return text if float(text) == 0 else f"{'+' if value > 0 else '−'}{text}"


def interval(bounds: tuple[float, float] | None) -> str:
    """`+0.10 to +0.31`, or nothing."""
    return "" if bounds is None else f"{signed(bounds[0])} to {signed(bounds[1])}"


def main_comparisons(summary: Summary, figure: str) -> list[Comparison]:
    """Those with the baseline: no contrasts."""
    return [found for found in summary.comparisons if found.figure == figure and not found.isolates]


def _compared(comparison: Comparison) -> tuple[object, ...]:
    difference = comparison.difference
    bounds = [bound for pair in (difference.bootstrap, difference.student_t) for bound in pair or (None, None)]
    return (
        *(comparison.against, comparison.figure, " ".join(map(str, comparison.seeds)), *_pair(difference.spread)),
        *("" if bound is None else _figure(bound) for bound in bounds),
        difference.verdict,
    )


def _pair(own: Spread) -> tuple[str, str]:
    return _figure(own.mean), "" if own.sd is None else _figure(own.sd)


def _figure(value: float) -> str:
    return f"{value:.6g}"


def csv_text(head: Sequence[str], lines: Sequence[Sequence[object]]) -> str:
    """A CSV file's text."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(head)
    writer.writerows([[printable(cell, None) if isinstance(cell, str) else cell for cell in line] for line in lines])
    return buffer.getvalue()
