"""W&B offline and TensorBoard hold what metrics.csv holds, and pictures; the W&B dashboard."""

import contextlib
import json
import os
import re
import struct
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import processes
import pytest
from google.protobuf.message import DecodeError
from helpers import ROOT, SIX_STEPS, command, crash_at

import phasegpt
from phasegpt.core.errors import ConfigError
from phasegpt.training import phase_measures, wandb_dashboard
from phasegpt.training.config import run_config
from phasegpt.training.loggers import TensorBoard, Wandb, extra_loggers, heat_map
from phasegpt.training.run import fit
from phasegpt.training.run_folder import RunFolder, read_metrics, read_record

TINY = [*SIX_STEPS, "regularizer=ceiling", "callbacks.sample_text.max_new_tokens=5"]
OFFLINE = ["logger=wandb", "logger.offline=true"]
#: W&B's own words: nothing on the terminal, nothing captured from it, nothing of this machine.
QUIET = {"WANDB_SILENT": "true", "WANDB_CONSOLE": "off", "WANDB__DISABLE_STATS": "true"}
PICTURES = {"phase/R_by_head", "phase/R_by_integration_step"}


def crash_and_resume(folder: Path, words: list[str]) -> None:
    """A run that fails in step 6, after a checkpoint at step 4, and goes on."""
    with crash_at(5):
        fit(phasegpt.compose([*TINY, *words]), folder)
    fit(phasegpt.compose([*TINY, *words, "resume=true"]), folder)


# --- W&B, offline ----------------------------------------------------------------------------


def records(folder: Path) -> Iterator[Any]:
    """The records of an offline run's .wandb file, which is a LevelDB log."""
    from wandb.proto.wandb_internal_pb2 import Record

    (path,) = folder.glob("*.wandb")
    data, position, parts = path.read_bytes(), 7, b""
    assert data[:4] == b":W&B"
    while position + 7 <= len(data):
        room = 32768 - position % 32768
        _, size, kind = struct.unpack("<IHB", data[position : position + 7])
        if room < 7 or kind == 0:  # the padding of a block
            position += room
            continue
        parts += data[position + 7 : position + 7 + size]
        position += 7 + size
        if kind in (1, 4):  # whole, or the last part
            yield Record.FromString(parts)
            parts = b""


def whole(folder: Path) -> list[Any]:
    """The records of a finished run: W&B's own process may write the last a moment later."""
    limit = time.monotonic() + 30
    while time.monotonic() < limit:
        with contextlib.suppress(DecodeError):  # a record that is half written
            found = list(records(folder))
            if any(record.WhichOneof("record_type") == "exit" for record in found):
                return found
        time.sleep(0.05)
    raise AssertionError(f"{folder} has no end")


class Offline:
    """What one offline folder of W&B holds."""

    def __init__(self, folder: Path) -> None:
        self.files = folder / "files"
        self.history: list[dict[str, Any]] = []
        self.metrics: dict[str, Any] = {}
        self.summary: dict[str, Any] = {}
        self.saved: set[str] = set()
        for record in whole(folder):
            kind = record.WhichOneof("record_type")
            if kind == "run":
                self.run = record.run
            elif kind == "metric":
                self.metrics[record.metric.name or record.metric.glob_name] = record.metric
            elif kind == "files":
                self.saved |= {file.path for file in record.files.files}
            elif kind == "summary":
                self.summary |= {"/".join(i.nested_key) or i.key: json.loads(i.value_json)
                                 for i in record.summary.update}  # fmt: skip
            elif kind == "history":
                row = {"/".join(i.nested_key) or i.key: json.loads(i.value_json)
                       for i in record.history.item}  # fmt: skip
                self.history.append(row)

    def scalars(self) -> dict[int, dict[str, float]]:
        """Numbers by optimizer step; those that describe media, and W&B's own, are left out."""
        media = {name.rpartition("/")[0] for row in self.history for name in row
                 if name.endswith("/_type")}  # fmt: skip
        return {
            row["_step"]: {
                name: value
                for name, value in row.items()
                if isinstance(value, float | int)
                and name.rpartition("/")[0] not in media
                and not name.startswith(("_", wandb_dashboard.STEP))
            }
            for row in self.history
        }


def offline_folders(run: Path) -> list[Path]:
    return sorted((run / "wandb").glob("offline-run-*"))


@pytest.fixture(scope="module")
def sweep(tmp_path_factory, text) -> Path:
    """A multirun of two jobs."""
    folder = tmp_path_factory.mktemp("sweep") / "phases"
    place = [f"hydra.sweep.dir={folder}", "hydra.sweep.subdir=${hydra:job.num}"]
    words = ["-m", "seed=1,2", *place, *TINY, *text, *OFFLINE]
    environment = {k: v for k, v in os.environ.items() if not k.startswith("WANDB")}
    command = processes.python("-m", "phasegpt.train", *words)
    done = processes.run(command, cwd=folder.parent, env={**environment, **QUIET})
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture(scope="module")
def job(sweep) -> Offline:
    (folder,) = offline_folders(sweep / "0")
    return Offline(folder)


def test_offline_history_is_metrics_csv(sweep, job):
    rows = {int(row.pop("step")): row for row in read_metrics(sweep / "0" / "metrics.csv")}
    assert sorted(rows) == list(range(1, 7))
    found = job.scalars()
    assert found.keys() == rows.keys()
    for step, row in rows.items():
        assert found[step] == pytest.approx(row, rel=1e-12)
    assert all(row[wandb_dashboard.STEP] == row["_step"] for row in job.history)


def test_metrics_have_their_axis_and_their_best(sweep, job):
    assert job.metrics["*"].step_metric == wandb_dashboard.STEP
    perplexity = job.metrics["val/ppl"]
    assert perplexity.step_metric == wandb_dashboard.STEP and perplexity.summary.min
    best = read_record(sweep / "0")["best"]["val/ppl"]
    assert job.summary["val/ppl"]["min"] == best
    assert set(job.summary["perf/tokens_per_s"]) == {"mean"}


def test_offline_pictures_histograms_and_samples_are_there(job):
    shown = [row for row in job.history if "val/ppl" in row]
    assert len(shown) == 2
    for row in shown:
        for name in PICTURES:
            assert row[f"{name}/_type"] == "image-file"
            assert (job.files / row[f"{name}/path"]).read_bytes()[:4] == b"\x89PNG"
        assert row["phase/theta/layer1/_type"] == "histogram"
        bins, counts = row["phase/theta/layer1/bins"], row["phase/theta/layer1/values"]
        assert len(bins) == phase_measures.BINS + 1 and sum(counts) == 8 * 16 * 2 * 8
    last = job.history[-1]
    assert last["samples/nrows"] == 1
    table = json.loads((job.files / last["samples/path"]).read_text())
    assert table["columns"] == ["step", "prompt", "text"] and table["data"][0][0] == 6


def test_config_and_run_json_are_with_the_offline_run(sweep, job):
    assert {"phasegpt/config.yaml", "phasegpt/run.json"} <= job.saved
    given = json.loads((job.files / "phasegpt" / "run.json").read_text())
    assert given == read_record(sweep / "0") and given["status"] == "ok"
    config = {item.key: json.loads(item.value_json) for item in job.run.config.update}
    assert config["attention"]["num_oscillators"] == 8 and "tokenizer" not in config


def test_jobs_of_a_multirun_are_separate_runs_of_one_group(sweep, job):
    (folder,) = offline_folders(sweep / "1")
    other = Offline(folder)
    assert other.run.run_id == read_record(sweep / "1")["wandb_id"] != job.run.run_id
    assert job.run.run_group == other.run.run_group == f"{sweep.parent.name}-phases"
    assert [job.run.display_name, other.run.display_name] == ["kuramoto-text-0", "kuramoto-text-1"]
    losses = [run.scalars()[6]["train/loss"] for run in (job, other)]
    assert losses[0] != losses[1]


def test_a_resumed_run_goes_on_in_the_same_offline_run(tmp_path, text, monkeypatch):
    for name, value in QUIET.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("WANDB_MODE", raising=False)
    crash_and_resume(tmp_path, [*text, *OFFLINE, "logger.group=mine"])
    assert "WANDB_MODE" not in os.environ
    first, second = (Offline(folder) for folder in offline_folders(tmp_path))
    identity = read_record(tmp_path)["wandb_id"]
    assert first.run.run_id == second.run.run_id == identity
    assert first.run.run_group == second.run.run_group == "mine"
    a, b = first.scalars(), second.scalars()
    assert list(a) == [1, 2, 3, 4, 5] and list(b) == [5, 6]
    assert a[5]["train/loss"] == b[5]["train/loss"]
    status = json.loads((first.files / "phasegpt" / "run.json").read_text())["status"]
    assert status == "failed"


# --- TensorBoard -----------------------------------------------------------------------------


def test_tensorboard_holds_the_same_once_even_after_a_resume(tmp_path, text):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    crash_and_resume(tmp_path, [*text, "logger=tensorboard"])
    everything = dict.fromkeys(("images", "histograms", "tensors", "scalars"), 0)
    events = EventAccumulator(str(tmp_path / "tensorboard"), size_guidance=everything)
    events.Reload()
    rows = read_metrics(tmp_path / "metrics.csv")
    names = {name for row in rows for name in row} - {"step"}
    assert names <= set(events.Tags()["scalars"])
    for name in names:
        if not name.startswith("perf/"):
            written = {int(row["step"]): row[name] for row in rows if name in row}
            found = [(event.step, event.value) for event in events.Scalars(name)]
            assert [step for step, _ in found] == list(written), name
            assert dict(found) == pytest.approx(written, rel=1e-6), name
    for name in PICTURES:
        assert [event.step for event in events.Images(name)] == [3, 6]
    for event in events.Histograms("phase/theta/layer1"):
        assert event.histogram_value.num == sum(event.histogram_value.bucket) == 8 * 16 * 2 * 8
    (sample,) = events.Tensors("samples/text_summary")
    assert sample.step == 6


def test_a_command_can_name_several_loggers(tmp_path, text, monkeypatch):
    place = f"hydra.run.dir={tmp_path / 'run'}"
    words = ["logger=[csv,tensorboard]", "trainer.max_steps=1", *TINY, place, *text]
    command(monkeypatch, "train", *words, "callbacks.sample_text.max_new_tokens=0")
    assert read_record(tmp_path / "run")["config"]["logger"]["name"] == ["csv", "tensorboard"]
    assert list((tmp_path / "run" / "tensorboard").glob("events*"))
    both = phasegpt.compose([*TINY, *text, "logger=[wandb,tensorboard]", "logger.offline=true"])
    folder = RunFolder(tmp_path / "both")
    made = extra_loggers(run_config(both), folder)
    folder.close()
    assert [type(logger) for logger in made] == [Wandb, TensorBoard]


def test_a_list_of_loggers_in_a_defaults_list_is_refused(tmp_path, monkeypatch, capsys):
    """Hydra merges their files, and the last name wins."""
    (tmp_path / "experiment").mkdir()
    page = "# @package _global_\ndefaults:\n  - override /logger: [wandb, tensorboard]\n"
    (tmp_path / "experiment" / "two.yaml").write_text(page)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit):
        command(monkeypatch, "train", "--config-dir", str(tmp_path), "+experiment=two")
    assert "logger is a list in a defaults list" in capsys.readouterr().err


@pytest.mark.parametrize("words", ["logger=[csv,tensorbord]", "logger.name=[csv,3]"])
def test_an_unknown_logger_in_a_list_is_refused(words):
    with pytest.raises(ConfigError, match=r"tensorbord|logger\.name"):
        run_config(phasegpt.compose([words]))


def test_a_heat_map_shows_its_values_as_colours_with_the_first_row_on_top():
    low, high = np.zeros((1, 400)), np.ones((1, 400))
    pixels = heat_map(np.concatenate((low, high)), ["none", "all"], "R", "step").astype(int)
    assert pixels.ndim == 3 and pixels.shape[2] == 3 and max(pixels.shape) < 2000
    height, width, _ = pixels.shape
    above, below = pixels[height // 4, width // 2], pixels[3 * height // 4, width // 2]
    assert np.abs(above - [68, 1, 84]).max() < 3 and np.abs(below - [253, 231, 37]).max() < 3
    many = heat_map(np.zeros((500, 2)), [str(i) for i in range(500)], "R", "step")
    assert max(many.shape) < 2000


# --- the dashboard ---------------------------------------------------------------------------


@pytest.fixture(scope="module")
def specification() -> dict[str, Any]:
    """What --dry-run prints, with no account and no way to a server."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith("WANDB")}
    nowhere = {"WANDB_BASE_URL": "http://127.0.0.1:9", "WANDB_MODE": "offline", "HOME": "/nowhere"}
    words = ("scripts/wandb_workspace.py", "--dry-run", "--project", "waves")
    done = processes.run(processes.python(*words), cwd=ROOT, env={**environment, **nowhere})
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def panels(specification: dict[str, Any]) -> dict[str, list[dict[str, Any]]]:
    sections = specification["spec"]["section"]["panelBankConfig"]["sections"]
    return {section["name"]: section["panels"] for section in sections}


def test_the_dashboard_has_its_sections(specification):
    assert specification["project"] == "waves"
    named = {"Synchronization", "Language model", "Regularizer", "Throughput", "Sweep"}
    assert named <= panels(specification).keys()
    titles = {panel["config"].get("chartTitle") for panel in panels(specification)["Sweep"]}
    assert titles == {"Sweep"}


def test_every_chart_of_the_dashboard_shows_something_that_is_logged(specification, job):
    logged = {name for row in job.scalars().values() for name in row} | {"reg/lambda", "perf/mfu"}
    logged |= PICTURES
    for section, found in panels(specification).items():
        for panel in found:
            config = panel["config"]
            if section == "Sweep":
                continue
            names = config.get("metrics") or config.get("mediaKeys")
            if config.get("metricRegex"):
                names = [n for n in logged if re.fullmatch(config["metricRegex"], n)]
            assert names and set(names) <= logged, config
            assert config.get("xAxis", wandb_dashboard.STEP) == wandb_dashboard.STEP


def test_parallel_coordinates_are_keys_of_configuration_and_results(specification, job):
    config = {item.key: json.loads(item.value_json) for item in job.run.config.update}
    (panel,) = panels(specification)["Sweep"]
    axes = [column["accessor"] for column in panel["config"]["columns"]]
    assert "config:attention.value.coupling" in axes and axes[-1] == "summary:val/ppl.min"
    for axis in axes:
        kind, _, key = axis.partition(":")
        if kind == "summary":
            name, _, operation = key.partition(".")
            value = job.summary[name]
            assert (operation in value) if operation else isinstance(value, float), axis
        else:
            first, *rest = key.split(".")
            value = config[first]
            for part in rest[1:]:  # after "value"
                value = value[part]


def test_without_the_package_the_error_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb_workspaces", None)
    monkeypatch.setitem(sys.modules, "wandb_workspaces.reports.v2", None)
    with pytest.raises(ConfigError, match=r"pip install 'phasegpt\[dashboard\]'"):
        wandb_dashboard.workspace("me", "waves")
