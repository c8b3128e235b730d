"""From a run folder to a report; loads no model."""

from sae_faithful.report.markdown import render, terminal_table
from sae_faithful.report.rows import rows_as
from sae_faithful.report.writing import write_comparison, write_report

__all__ = ["render", "rows_as", "terminal_table", "write_comparison", "write_report"]
