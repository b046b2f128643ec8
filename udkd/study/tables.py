"""A study's result as rows of text, for a CSV file and for a terminal.

table.csv holds what the seeds determine: a study that was killed and resumed writes the same bytes. Times are in cost.csv.
"""

import csv
import io
from collections.abc import Sequence

from udkd.study.results import Comparison, Summary
from udkd.utils.printable import printable
from udkd.utils.statistics import MeanStd

TABLE_HEAD = (
    *("arm", "student", "n", "top1_last_mean", "top1_last_sd", "top5_last_mean", "top1_best_mean", "top1_best_sd"),
    *("best_epochs", "against", "figure", "seeds", "difference_mean", "difference_sd", "bootstrap_low", "bootstrap_high"),
    *("t_low", "t_high", "verdict"),
)
COST_HEAD = ("arm", "n", "images_per_s_mean", "images_per_s_sd", "seconds_mean", "seconds_sd", "against", "seconds_ratio")


def table_csv(summary: Summary) -> str:
    """One line per comparison of an arm and student; one line where there is none."""
    lines: list[tuple[object, ...]] = []
    for results in summary.arm_summaries:
        comparisons = [each for each in summary.comparisons if (each.arm, each.learner) == (results.arm, results.learner)]
        head = (
            *(
                results.arm,
                results.learner,
                results.last.n,
                *_mean_sd_cells(results.last),
                _number(results.last_top5.mean),
            ),
            *(*_mean_sd_cells(results.best), " ".join(map(str, results.best_epochs))),
        )
        once = dict.fromkeys(_compared(comparison) for comparison in comparisons)  # a contrast may repeat one with the baseline
        lines += [(*head, *compared) for compared in once] or [(*head, *[""] * 10)]
    return csv_text(TABLE_HEAD, lines)


def cost_csv(summary: Summary) -> str:
    """One line per arm and baseline it is compared with."""
    lines: list[tuple[object, ...]] = []
    for cost in summary.costs:
        head = (cost.arm, cost.seconds.n, *_mean_sd_cells(cost.images_per_s), *_mean_sd_cells(cost.seconds))
        ratios = [*cost.ratios.items(), *([("all baselines together", cost.to_sum)] if cost.to_sum is not None else [])]
        lines += [(*head, name, _number(ratio)) for name, ratio in ratios] or [(*head, "", "")]
    return csv_text(COST_HEAD, lines)


def mean_sd(spread: MeanStd, digits: int = 2) -> str:
    """Mean and standard deviation as text, such as `81.86 ± 0.21`; the mean alone where n is 1."""
    return f"{spread.mean:.{digits}f}" + ("" if spread.sd is None else f" ± {spread.sd:.{digits}f}")


def main_comparisons(summary: Summary, figure: str) -> list[Comparison]:
    """The comparisons with the baseline, without the study's contrasts. figure: one of results.EPOCH_CHOICES."""
    return [comparison for comparison in summary.comparisons if comparison.figure == figure and not comparison.isolates]


def _compared(comparison: Comparison) -> tuple[object, ...]:
    difference = comparison.difference
    bounds = [bound for pair in (difference.bootstrap, difference.student_t) for bound in pair or (None, None)]
    return (
        *(comparison.against, comparison.figure, " ".join(map(str, comparison.seeds)), *_mean_sd_cells(difference.spread)),
        *("" if bound is None else _number(bound) for bound in bounds),
        difference.verdict,
    )


def _mean_sd_cells(spread: MeanStd) -> tuple[str, str]:
    return _number(spread.mean), "" if spread.sd is None else _number(spread.sd)


def _number(value: float) -> str:
    return f"{value:.6g}"


def csv_text(head: Sequence[str], lines: Sequence[Sequence[object]]) -> str:
    """A CSV file's text."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(head)
    writer.writerows([[printable(cell, None) if isinstance(cell, str) else cell for cell in line] for line in lines])
    return buffer.getvalue()
