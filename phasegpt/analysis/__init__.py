"""From run folders to the committed records, table and picture of a study."""

from phasegpt.analysis.study import (
    collect,
    draw,
    draw_phases,
    load_records,
    summarise,
    write_table,
)

__all__ = ["collect", "draw", "draw_phases", "load_records", "summarise", "write_table"]
