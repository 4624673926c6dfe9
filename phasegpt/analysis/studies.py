"""Everything in a study's folder that follows from its records, whatever kind of study it is."""

from __future__ import annotations

from pathlib import Path

from phasegpt.analysis.leaderboard.view import is_leaderboard, write_leaderboard
from phasegpt.analysis.phase_a_late import is_late, write_late
from phasegpt.analysis.study import load_records
from phasegpt.analysis.study_view import write_study


def write(study: Path) -> list[Path]:
    """Write it, and return the files: of a leaderboard its pages, of others tables and pictures.

    Raises DataError for a damaged record, and ConfigError where there is none.
    """
    if is_leaderboard(study):
        return write_leaderboard(study)
    written, arms = write_study(study), load_records(study)
    return written + write_late(study, arms) if is_late(arms) else written
