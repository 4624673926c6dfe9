"""A study is a folder with runs/*.json, one small record per run; all else there follows from them.

Records are copied from run folders once and committed. The modules tables, study_figures and report
make the other files.
"""

from __future__ import annotations

import json
import math
import re
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from phasegpt.core.console import tell
from phasegpt.core.errors import CheckpointError, ConfigError, DataError
from phasegpt.core.files import read_json, write_atomic
from phasegpt.model.run_checkpoints import best, sums_beside
from phasegpt.training.metric_names import with_names_of_today
from phasegpt.training.run_folder import FINISHED, curves, read_record

if TYPE_CHECKING:
    import pandas as pd

#: What the last validation measured, averaged over phase layers.
MEASURED = ("ppc", "participation", "offsets")
#: Columns of the run table, and their measures.
PHASES = {"R_start": "R_start", "R": "R_end", "dR": "dR"}
#: Of the training losses, from this share of the run on, `loss_sd` is.
LAST_PART = 0.75
#: Where `python -m phasegpt.evaluate split=test` leaves its result in a run folder.
TEST_FILE = "evaluation-test.json"

_CURVES = r"val/ppl|val/accuracy(/\w+)?|train/loss|phase/R/layer\d+|phase/val/(R_end|dR)/layer\d+"
_POINTS = 300  # of a curve of training
_BINS = 50  # of a histogram of R over [0, 1]


def collect(runs: Path, study: Path) -> list[Path]:
    """Copy the record of every finished run ARM-seedN under `runs` into study/runs.

    Smoke runs (trainer.fast_dev_run, limit_val_batches, overfit_batches) are left out, and said.

    A record is run.json with the curves of perplexity, loss and R per layer from metrics.csv, the
    histograms of R from the folder phase, and under best the perplexity of `best_test_score`. Its
    command names the run's folder as runs/SWEEP/RUN, without what lies above on this machine.
    Raises ConfigError where the study has runs of another size on the same data, as scales are not
    mixed, or a record of the same name with another configuration; then nothing is written.
    """
    # The finished runs; one size and one configuration by name, with what the study has already.
    records = {path.parent: read_record(path.parent) for path in sorted(runs.glob("*/run.json"))}
    records = {path: r for path, r in records.items() if r.get("status") in FINISHED}
    if smoke := [path.name for path, r in records.items() if r.get("smoke")]:
        tell(f"left out, as smoke runs: {', '.join(smoke)}")
        records = {path: r for path, r in records.items() if not r.get("smoke")}
    there = read_records(study)
    sizes: dict[Any, set[tuple[Any, ...]]] = defaultdict(set)
    for record in (*records.values(), *there.values()):
        sizes[record.get("config", {}).get("data", {}).get("corpus")].add(_size(record))
    for corpus, found in sizes.items():
        if len(found) > 1:
            raise ConfigError(
                f"{runs} and {study} hold runs of different sizes {sorted(found)} on {corpus}; "
                f"give each scale a study of its own, such as results/phase_a and "
                f"results/phase_a_full"
            )
    for folder, record in records.items():
        old, new = there.get(folder.name, record).get("config_hash"), record.get("config_hash")
        if old != new:
            raise ConfigError(
                f"{study / 'runs' / folder.name}.json is of configuration {old}, the run in "
                f"{folder} of {new}; give the run's study another folder, or delete the record to "
                f"replace it"
            )

    # Each record with what else its run folder knows, small enough to commit.
    written = []
    for folder, record in records.items():
        below = f"runs/{folder.parent.name}/{folder.name}"
        if "command" in record:
            record["command"] = record["command"].replace(str(folder.resolve()), below)
        record["curves"] = curves(folder / "metrics.csv", _CURVES, _POINTS)
        if histograms := _histograms(folder, record):
            record["R_histogram"] = histograms
        if score := best_test_score(folder, record):
            record["best"] |= {"test/loss": score["loss"], "test/ppl": score["perplexity"]}

        # Sorted and without spaces: the same run gives the same bytes.
        target = study / "runs" / f"{folder.name}.json"
        target.parent.mkdir(parents=True, exist_ok=True)
        text = json.dumps(record, sort_keys=True, separators=(",", ":"))
        write_atomic(target, (text + "\n").encode())
        written.append(target)
    return written


def best_test_score(folder: Path, record: dict[str, Any]) -> dict[str, Any] | None:
    """The TEST_FILE (or -2, -3, ...) of the run's best weights and text in the model's windows.

    `python -m phasegpt.evaluate` leaves scores of other weights and windows there too.
    """
    files = sorted(folder.glob(TEST_FILE.replace(".json", "*.json")))
    try:
        scored = best(folder / "checkpoints") if files else None
    except CheckpointError:  # not copied along
        scored = None
    if scored is None:
        return None
    context = record["config"]["model"]["block_size"]
    wanted = {"split": "test", "context": context, "stride": context}
    wanted["data_fingerprint"] = record["data"]["fingerprint"]
    for file in files:
        try:
            score = read_json(file, "sha256", "loss", "perplexity")
        except DataError:  # it can be scored again
            continue
        same = all(score.get(name) == value for name, value in wanted.items())
        if same and score["sha256"] in sums_beside(scored):
            return score
    return None


def _size(record: dict[str, Any]) -> tuple[Any, ...]:
    model = record.get("config", {}).get("model", {})
    return tuple(model.get(key) for key in ("n_layer", "n_embd", "block_size"))


def _histograms(folder: Path, record: dict[str, Any]) -> dict[str, list[int]]:
    """By layer: how many heads and positions have what R, at the last validation.

    The R of a head and position is the mean over the watched windows of the validation text; of
    prefixes those count that phasegpt.phase.first_prefix leaves. Bins are equal, from 0 to 1.
    """
    files = sorted((folder / "phase").glob("step-*.npz"))
    if not files:
        return {}
    from phasegpt.phase import first_prefix  # loads torch, which a study does not need

    over_prefix = coupled_over(record) == "prefix"
    found = {}
    with np.load(files[-1]) as arrays:
        for name in sorted(name for name in arrays.files if name.endswith("/R_HT")):
            R_HT = arrays[name]
            counted = R_HT[:, first_prefix(R_HT.shape[1]) if over_prefix else 0 :]
            layer = name.removesuffix("/R_HT")
            found[layer] = np.histogram(counted, _BINS, (0.0, 1.0))[0].tolist()
    return found


def coupled_over(record: dict[str, Any]) -> str:
    """What the phases of a run are coupled over: phasegpt.attention.coupled_axis."""
    from phasegpt.attention import coupled_axis  # loads torch, which a study does not need

    code = record.get("attention_code") or {}  # of another package, which need not be here
    return code.get("coupled_axis") or coupled_axis(record["config"]["attention"])


def read_records(study: Path) -> dict[str, dict[str, Any]]:
    """Every record of a study by the name of its file, ARM-seedN. Raises DataError.

    Metrics have today's names, whenever the record was written.
    """
    files = sorted((study / "runs").glob("*.json"))
    return {file.stem: with_names_of_today(read_json(file, "seed")) for file in files}


def load_records(study: Path) -> dict[str, list[dict[str, Any]]]:
    """Records by arm (the file name before -seedN), sorted by seed.

    Raises DataError, and ConfigError where there is none or an arm has two of one seed.
    """
    arms: dict[str, dict[int, str]] = defaultdict(dict)  # names by arm and seed
    records = read_records(study)
    for name, record in records.items():
        arm, seed = re.sub(r"-seed\d+$", "", name), record["seed"]
        if (other := arms[arm].setdefault(seed, name)) != name:
            raise ConfigError(
                f"{study / 'runs'} has two records of {arm} with seed {seed}: {other}.json and "
                f"{name}.json; keep one of them"
            )
    if not arms:
        raise ConfigError(
            f"{study} holds no records, runs/*.json; copy those of finished runs with "
            f"scripts/analyze_results.py RUNS --into {study}"
        )
    return {arm: [records[of[seed]] for seed in sorted(of)] for arm, of in sorted(arms.items())}


def runs(arms: Mapping[str, list[dict[str, Any]]]) -> list[dict[str, Any]]:
    """One row per run of `load_records`, one key per variable; what a run does not have is None.

    `ppl` and `loss` (nats) are the best validation's, `test_ppl` is of the same weights, `steps` is
    where the run ended, `loss_sd` see `loss_sd`, `budget` see `coupling_budget`. R_start, R (before
    and after the integration), dR, ppc, participation and offsets are of the last validation,
    averaged over phase layers.
    """
    phases = PHASES | {name: name for name in MEASURED}
    rows = []
    for arm, records in arms.items():
        for record in records:
            best = best_validation(record)
            rows.append(
                {
                    "arm": arm,
                    "seed": record["seed"],
                    "status": record.get("status"),
                    "ppl": best,
                    "loss": None if best is None else math.log(best),
                    "test_ppl": (record.get("best") or {}).get("test/ppl"),
                    "loss_sd": loss_sd(record),
                    "budget": coupling_budget(record),
                    **{name: phase_value(record, measure) for name, measure in phases.items()},
                    "parameters": record.get("parameters", {}).get("non_embedding"),
                    "steps": record.get("step"),
                    "stopped": record.get("stopped"),
                    "leaky": record.get("leaky"),
                    "wall_seconds": record.get("wall_seconds"),
                    "gpu": (record.get("hardware") or {}).get("gpu"),
                    "config_hash": record.get("config_hash"),
                }
            )
    return rows


def run_table(study: Path) -> pd.DataFrame:
    """`runs` of a study as a data frame."""
    import pandas as pd

    return pd.DataFrame(runs(load_records(study)))


def best_validation(record: dict[str, Any]) -> float | None:
    """The lowest validation perplexity of a run; of one that collapsed, the lowest before that."""
    best = (record.get("best") or {}).get("val/ppl")
    curve = record.get("curves", {}).get("val/ppl", [])
    return best if best is not None else min((v for _, v in curve), default=None)


def phase_value(record: dict[str, Any], measure: str) -> float | None:
    """A measure of the last validation (metric_names.MEASURES), averaged over phase layers."""
    name = re.compile(rf"phase/val/{measure}/layer\d+")
    values = [v for k, v in record.get("final", {}).items() if name.fullmatch(k)]
    return float(np.mean(values)) if values else None


def coupling_budget(record: dict[str, Any]) -> float | None:
    """K S dt as configured, time units of coupling in one layer; a learned K starts from there."""
    attention = record.get("config", {}).get("attention", {})
    if not {"coupling", "steps", "dt"} <= attention.keys():
        return None
    return round(attention["coupling"] * attention["steps"] * attention["dt"], 9)


def loss_sd(record: dict[str, Any]) -> float | None:
    """sd of the training losses of the run's last quarter about their straight line, nats.

    A line takes what is still learned out of it; two parameters are fitted, so n - 2. None for
    fewer than four losses.
    """
    curve = record.get("curves", {}).get("train/loss", [])
    last = [point for point in curve if point[0] > LAST_PART * curve[-1][0]]
    if len(last) < 4:
        return None
    step, loss = np.array(last, dtype=np.float64).T
    residual = loss - np.polynomial.Polynomial.fit(step, loss, 1)(step)
    return float(np.sqrt((residual**2).sum() / (len(last) - 2)))
