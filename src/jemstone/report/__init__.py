"""One HTML file that compares runs, made from their files alone; imports no torch."""

from jemstone.report.report import write_report

__all__ = ["write_report"]
