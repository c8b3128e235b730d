"""From a run folder to a report; loads no model."""

from sae_faithful.report.markdown import render, terminal_table, write_report

__all__ = ["render", "terminal_table", "write_report"]
