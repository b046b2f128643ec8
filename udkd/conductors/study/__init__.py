"""A study: the same question asked of several arms and seeds, and what may be answered."""

from udkd.conductors.study.estimate import Item, estimate
from udkd.conductors.study.folder import StudyFolder
from udkd.conductors.study.plan import Plan, Trial, make_plan
from udkd.conductors.study.results import RunResult, Summary, summarise
from udkd.conductors.study.runner import Progress, Site, carry_out
from udkd.conductors.study.tables import interval, main_comparisons, mean_sd, signed
from udkd.conductors.study.writer import Result, write_result

__all__ = [
    "Item",
    "Plan",
    "Progress",
    "Result",
    "RunResult",
    "Site",
    "StudyFolder",
    "Summary",
    "Trial",
    "carry_out",
    "estimate",
    "interval",
    "main_comparisons",
    "make_plan",
    "mean_sd",
    "signed",
    "summarise",
    "write_result",
]
