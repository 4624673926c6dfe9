"""From run folders to the committed records, tables, figures and verdicts of a study."""

from phasegpt.analysis.study import collect, load_records, read_records, run_table
from phasegpt.analysis.study_view import write_study
from phasegpt.analysis.tables import summarise

__all__ = [
    "collect",
    "load_records",
    "read_records",
    "run_table",
    "summarise",
    "write_study",
]
