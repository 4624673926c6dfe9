"""From run folders to the committed records, tables, figures and verdicts of a study."""

from phasegpt.analysis.study import collect, load_records, read_records, run_table
from phasegpt.analysis.tables import summarise
from phasegpt.analysis.writing import write_study

__all__ = [
    "collect",
    "load_records",
    "read_records",
    "run_table",
    "summarise",
    "write_study",
]
