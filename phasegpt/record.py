"""The run folder: config.yaml, metrics.csv, run.json, checkpoints/, phase/, curves.png.

Nothing in it is ever lost to a crash: files are replaced whole, and rows of metrics.csv are cut
only when they lie past the checkpoint from which they will be written again.
"""

from __future__ import annotations

import csv
import fcntl
import io
import json
import platform
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from pytorch_lightning.loggers.logger import Logger

from phasegpt.checkpoint import write_atomic
from phasegpt.config import RunConfig
from phasegpt.errors import CheckpointError

FINISHED = ("ok", "collapsed")


class RunFolder:
    """One run's folder, locked against a second writer while this object lives."""

    def __init__(self, path: Path) -> None:
        """Make the folder and lock it; CheckpointError if another process holds it."""
        path.mkdir(parents=True, exist_ok=True)
        self.path = path
        self._lock = open(path / ".lock", "w")  # noqa: SIM115 - held until close()
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise CheckpointError(f"{path} is being written by another process") from None
        self.record: dict[str, Any] = read_record(path)

    def update(self, **fields: Any) -> None:
        """Merge fields into run.json and write it whole."""
        self.record.update(fields)
        text = json.dumps(self.record, indent=2, sort_keys=True, allow_nan=False, default=str)
        write_atomic(self.path / "run.json", (text + "\n").encode())

    def close(self) -> None:
        """Release the lock; a folder in which nothing was recorded is left empty."""
        if not self.record:
            (self.path / ".lock").unlink(missing_ok=True)
        self._lock.close()


def held(path: Path) -> bool:
    """Whether a process is writing the run in `path` now."""
    try:
        with open(path / ".lock") as lock:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except OSError:
        return True
    return False


def read_record(path: Path) -> dict[str, Any]:
    """run.json of a folder, or an empty dict."""
    file = path / "run.json"
    return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}


def newest_unfinished(root: Path, config_hash: str) -> Path | None:
    """The folder under `root` whose run has this configuration, began last, and is not done."""
    found = [
        (record.get("started", ""), file.parent)
        for file in root.glob("*/run.json")
        if (record := read_record(file.parent)).get("config_hash") == config_hash
        and record.get("status") not in FINISHED
    ]
    return max(found)[1] if found else None


def provenance(run: RunConfig) -> dict[str, Any]:
    """What produced the run: its configuration and its environment."""
    return {
        **environment(),
        "seed": run.seed,
        "config_hash": run.hash,
        "config": run.to_dict(),
        "command": "python -m phasegpt.train " + " ".join(sys.argv[1:]),
    }


def environment() -> dict[str, Any]:
    """Code, packages and hardware of this process; no machine or user names."""
    import pytorch_lightning as pl

    import phasegpt

    versions = {
        "phasegpt": phasegpt.__version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "pytorch_lightning": pl.__version__,
    }
    hardware = {"cpu": _cpu_model(), "cpus": torch.get_num_threads(), "gpu": None}
    if torch.cuda.is_available():
        hardware["gpu"] = torch.cuda.get_device_name()
    return {"git": _git(), "versions": versions, "hardware": hardware}


class MetricsCSV(Logger):
    """metrics.csv: one row per optimizer step that logged anything, `step` first.

    Values of one step share a row; a new metric adds a column. Floats are written exactly.
    """

    def __init__(self, path: Path) -> None:
        """Write to `path`, after what it already holds."""
        super().__init__()
        self.path = path
        self._pending: tuple[int, dict[str, float]] | None = None
        self._columns = ["step"]
        if path.is_file():
            with open(path, newline="", encoding="utf-8") as file:
                self._columns = next(csv.reader(file), ["step"])

    @property
    def name(self) -> str:
        """Lightning asks for a name."""
        return "metrics.csv"

    @property
    def version(self) -> int:
        """Lightning asks for a version."""
        return 0

    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
        """Nothing: config.yaml holds them."""

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Add metrics to the row of `step`."""
        assert step is not None
        if self._pending and self._pending[0] != step:
            self.save()
        _, row = self._pending or (step, {})
        self._pending = (step, row | {k: float(v) for k, v in metrics.items()})

    def save(self) -> None:
        """Write the open row."""
        if self._pending is None:
            return
        step, row = self._pending
        self._pending = None
        new = [name for name in row if name not in self._columns]
        if new or not self.path.is_file():
            self._columns += new
            self._rewrite(read_metrics(self.path))
        with open(self.path, "a", newline="", encoding="utf-8") as file:
            csv.DictWriter(file, self._columns).writerow({"step": step} | _text(row))

    def finalize(self, status: str) -> None:
        """Write the open row."""
        self.save()

    def cut(self, step: int) -> None:
        """Drop rows past `step`: they will be written again."""
        self._pending = None
        if self.path.is_file():
            self._rewrite([row for row in read_metrics(self.path) if row["step"] <= step])

    def _rewrite(self, rows: list[dict[str, float]]) -> None:
        buffer = io.StringIO(newline="")
        writer = csv.DictWriter(buffer, self._columns)
        writer.writeheader()
        for row in rows:
            writer.writerow(_text(row) | {"step": int(row["step"])})
        write_atomic(self.path, buffer.getvalue().encode())


def read_metrics(path: Path) -> list[dict[str, float]]:
    """Rows of a metrics.csv as numbers; a cell that was not logged is absent.

    A last line without its end was cut by a crash and does not count.
    """
    if not path.is_file():
        return []
    whole = path.read_text(encoding="utf-8").rpartition("\n")[0]
    return [
        {name: float(cell) for name, cell in row.items() if cell}
        for row in csv.DictReader(whole.splitlines())
    ]


def draw_curves(path: Path) -> Path:
    """curves.png of a run folder: loss, perplexity and R against steps."""
    from matplotlib.figure import Figure

    rows = read_metrics(path / "metrics.csv")
    figure = Figure(figsize=(12, 3.4), layout="constrained")
    panels = figure.subplots(1, 3)

    def curve(axes: Any, name: str, label: str, style: str = "-") -> None:
        points = [(row["step"], row[name]) for row in rows if name in row]
        if points:
            axes.plot(*zip(*points, strict=True), style, label=label)

    curve(panels[0], "train/loss", "train")
    curve(panels[0], "val/loss", "validation", "o-")
    curve(panels[1], "val/ppl", "validation", "o-")
    means = sorted({k for row in rows for k in row if k.startswith("phase/R/layer")})
    for name in (k for k in means if k.endswith("/mean")):
        curve(panels[2], name, name.split("/")[2])
    titles = ("loss (nats per token)", "perplexity", "order parameter R")
    for axes, title in zip(panels, titles, strict=True):
        axes.set(title=title, xlabel="optimizer step")
        if axes.lines:
            axes.legend(frameon=False)
    figure.savefig(path / "curves.png", dpi=120, metadata={"Software": None})
    return path / "curves.png"


def _text(row: Mapping[str, float]) -> dict[str, str]:
    return {name: repr(value) for name, value in row.items()}


def _git() -> dict[str, Any] | None:
    """Commit and dirty flag of the checkout this package runs from, if it is one."""
    root = Path(__file__).resolve().parent.parent

    def git(*args: str) -> str:
        done = subprocess.run(
            ["git", "-C", str(root), *args], capture_output=True, text=True, check=True
        )
        return done.stdout.strip()

    try:
        if Path(git("rev-parse", "--show-toplevel")).resolve() != root:
            return None
        return {"sha": git("rev-parse", "HEAD"), "dirty": bool(git("status", "--porcelain"))}
    except (OSError, subprocess.CalledProcessError):
        return None


def _cpu_model() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()
