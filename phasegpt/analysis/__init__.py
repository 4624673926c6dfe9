"""From run folders to the committed records, tables, picture and verdicts of a study."""

from phasegpt.analysis.study import (
    collect,
    draw,
    draw_phases,
    load_records,
    read_records,
    run_table,
    summarise,
    write_table,
)

__all__ = [
    "collect",
    "draw",
    "draw_phases",
    "load_records",
    "read_records",
    "run_table",
    "summarise",
    "write_table",
]
