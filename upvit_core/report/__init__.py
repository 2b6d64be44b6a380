"""One self-contained HTML file about a plan or a run: opens offline, prints on A4. Imports no torch."""

from upvit_core.report.plan import Measurement, plan_report
from upvit_core.report.run import run_report

__all__ = ["Measurement", "plan_report", "run_report"]
