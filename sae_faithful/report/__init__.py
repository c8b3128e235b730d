"""From a run folder to a report; loads no model."""

from sae_faithful.report.markdown import render, terminal_table, write_report
from sae_faithful.report.rows import rows_as

__all__ = ["render", "rows_as", "terminal_table", "write_report"]
