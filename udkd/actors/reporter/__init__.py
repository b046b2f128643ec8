"""The report of a run: `write_report(gather(run_folder))`."""

from udkd.actors.reporter.inputs import Baseline, DataFacts, ReportInputs, gather
from udkd.actors.reporter.report import write_report
from udkd.actors.reporter.tables import Result, result_table

__all__ = ["Baseline", "DataFacts", "ReportInputs", "Result", "gather", "result_table", "write_report"]
