"""Every file of a study that follows from its records: tables, figures and the page."""

from __future__ import annotations

from pathlib import Path

from phasegpt.analysis import study_figures
from phasegpt.analysis.report import study_page
from phasegpt.analysis.study_view import study_view
from phasegpt.analysis.tables import summary, write_tables
from phasegpt.files import write_atomic


def write_study(study: Path) -> list[Path]:
    """Tables, PNGs and report.html, from runs/*.json and attention.json alone: same bytes again."""
    found, page = summary(study), study / "report.html"
    tables, view = write_tables(study, found), study_view(study, found)
    sources = {path.name: path.read_text() for path in tables if path.stem == "table"}
    write_atomic(page, study_page({**view, "sources": sources}).encode())
    return [*tables, *study_figures.draw(view, study), page]
