"""Scores as tables, comparisons with tests of significance, charts and HTML pages."""

from ssdd_hub.results.compare import difference_tables, markdown_table, score_tables
from ssdd_hub.results.page import render_evaluation, render_page, render_pictures, render_report
from ssdd_hub.results.tables import METRICS, Record, build_tables, score_table

__all__ = [
    "METRICS",
    "Record",
    "build_tables",
    "difference_tables",
    "markdown_table",
    "render_evaluation",
    "render_page",
    "render_pictures",
    "render_report",
    "score_table",
    "score_tables",
]
