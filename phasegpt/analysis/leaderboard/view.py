"""Everything in a leaderboard's folder from its records: pages, pictures, and one page to sort."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from phasegpt.analysis.leaderboard import figures
from phasegpt.analysis.leaderboard.board import Board, Column, board
from phasegpt.analysis.leaderboard.cells import Cell, is_mechanism
from phasegpt.analysis.leaderboard.claims import claim, difference
from phasegpt.analysis.leaderboard.costs import relative_costs
from phasegpt.analysis.leaderboard.first_page import first_page, gaps
from phasegpt.analysis.leaderboard.runs import human, human_task
from phasegpt.analysis.leaderboard.task_page import how, task_page
from phasegpt.analysis.report import leaderboard_page
from phasegpt.analysis.study import read_records
from phasegpt.core.errors import ConfigError
from phasegpt.core.files import write_atomic


def is_leaderboard(study: Path) -> bool:
    """Whether the records of a study are a leaderboard's, by the name of the first."""
    first = min((study / "runs").glob("*.json"), default=None)
    return first is not None and first.name.startswith("leaderboard-")


def write_leaderboard(study: Path) -> list[Path]:
    """README.md, TASK.md, the PNGs and report.html of a study, from runs/*.json alone.

    Raises DataError for a damaged record, ConfigError where no run counts.
    """
    found = board(read_records(study))
    if not found.runs:
        why = "; ".join(f"{len(names)} {reason}" for reason, names in found.excluded.items())
        raise ConfigError(f"{study / 'runs'} holds no run that counts ({why}); put some there")
    beside = study.resolve().parent
    followed = [f"discovery_{arm}" for arm in found.mechanisms]
    followed = [name for name in followed if (beside / name / "README.md").is_file()]
    texts = {"README.md": first_page(found, followed, "/".join(study.resolve().parts[-2:]))}
    texts |= {f"{task}.md": task_page(found, task) for task in found.tasks}
    pictures = figures.draw(found, study)
    texts["report.html"] = leaderboard_page(view(found, study.resolve().name, pictures))
    for name, text in texts.items():
        write_atomic(study / name, text.encode())
    return [*(study / name for name in texts), *pictures]


def view(found: Board, name: str, pictures: Sequence[Path] = ()) -> dict[str, Any]:
    """What the page that can be sorted shows, as JSON.

    `columns` has the cells of each column's stage Column.shown, `tables` those of every stage: for
    every arm its numbers, scores by seed and comparisons.
    """
    return {
        "name": name,
        "pictures": {path.stem: _embedded(path) for path in pictures if path.is_file()},
        "claim": [line.removeprefix("- ") for line in claim(found, found.columns).split("\n")
                  if line],
        "gaps": list(gaps(found)),
        "arms": [
            {"arm": arm, "name": human(arm), "off": arm.endswith("_off"),
             "costs": relative_costs(found, arm)}
            for arm in found.arms
        ],
        "columns": [
            {"key": column.key, "name": human_task(column.key), "stage": column.shown,
             "cells": {arm: _cell(column, arm, cell) for arm in found.arms
                       if (cell := column.cell(arm))}}
            for column in found.columns
        ],
        "tables": [
            {"task": column.task, "name": f"{human_task(column.key)}: {stage}", "how": how(cells),
             "cells": {arm: _cell(column, arm, cell) for arm, cell in cells.items()}}
            for column in found.columns
            for stage, cells in reversed(column.stages.items())
        ],
    }  # fmt: skip


def _embedded(path: Path) -> str:
    return "data:image/png;base64," + base64.b64encode(path.read_bytes()).decode("ascii")


def _cell(column: Column, arm: str, cell: Cell) -> dict[str, Any]:
    numbers = ("n", "mean", "sd", "median", "low", "high", "solved", "p", "holm", "word", "lost",
               "groups")  # fmt: skip
    return {
        **{name: getattr(cell, name) for name in numbers},
        "standing": column.standing(arm) if is_mechanism(arm) else None,
        "scores": list(cell.scores.items()),
        **{key: {"effect": c.effect, "text": difference(cell, key)}
           for key, c in cell.against.items()},
    }  # fmt: skip
