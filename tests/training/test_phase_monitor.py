"""PhaseMonitor in a run: what it logs, what it leaves alone, and that its files survive."""

import importlib.util
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from helpers import ROOT, SIX_STEPS
from pytorch_lightning.callbacks import EMAWeightAveraging
from pytorch_lightning.plugins.precision import MixedPrecision

import phasegpt
from phasegpt.attention import Trajectory
from phasegpt.core.errors import ConfigError
from phasegpt.data.corpus import prepare
from phasegpt.data.windows import EvalWindows
from phasegpt.model import checkpoint
from phasegpt.training import phase_measures
from phasegpt.training.callback_config import PhaseMonitorConfig
from phasegpt.training.checkpointing import Saver
from phasegpt.training.config import run_config
from phasegpt.training.lit import LitGPT
from phasegpt.training.metric_names import MEASURES, SINGLE, TOTAL_BUDGET
from phasegpt.training.phase_measures import measure
from phasegpt.training.phase_monitor import WINDOWS, PhaseMonitor, trajectories
from phasegpt.training.run import fit
from phasegpt.training.run_folder import read_metrics, read_phases

BAND = (0.35, 0.55)
TINY = [*SIX_STEPS, "callbacks.sample_text.max_new_tokens=0"]
NOISY = ["model.dropout=0.2", "attention.noise_sigma=0.1", "attention.frequency_jitter=0.1"]


def run(folder: Path, text: list[str], *extra: str) -> dict:
    return fit(phasegpt.compose([*TINY, *text, *extra]), folder)


def monitored(row: dict[str, float], prefix: str = "phase/") -> set[str]:
    """What the monitor logged of a row; the training's own R is not among it."""
    own = {name for name in row if name.startswith(("phase/R/", "phase/val/R/"))}
    val = {name for name in row if name.startswith("phase/val/") and prefix == "phase/"}
    return {name for name in row if name.startswith(prefix)} - own - val


def documented(layer: int, prefix: str) -> set[str]:
    names = {f"{prefix}/{name}/layer{layer}" for name in MEASURES}
    return names | {f"{prefix}/{TOTAL_BUDGET}"}


def test_the_monitor_logs_what_is_documented_when_it_is_due(tmp_path, text):
    run(tmp_path, text)
    rows = {int(row["step"]): row for row in read_metrics(tmp_path / "metrics.csv")}
    for step, row in rows.items():
        names = monitored(row)
        assert names == (documented(1, "phase") if step in (1, 2, 4, 6) else set()), step
        names = monitored(row, "phase/val/")
        assert names == (documented(1, "phase/val") if step in (3, 6) else set()), step
    assert rows[6]["phase/budget/sum"] == pytest.approx(rows[6]["phase/budget/layer1"])


def test_the_files_hold_the_fixed_validation_windows_of_the_model(tmp_path, text):
    record = run(tmp_path, text)
    kept = read_phases(tmp_path)
    assert kept["step"].tolist() == [3, 6]
    H, N, S, T, K = 2, 8, 3, 16, phase_measures.BINS
    shapes = {"R_HS": (H, S + 1), "R_HT": (H, T), "theta0_HK": (H, K), "theta_HK": (H, K)}
    shapes["frequency_HN"] = (H, N)
    assert shapes.keys() == phase_measures.ARRAYS.keys()
    for name in MEASURES:
        shapes[name] = () if name in SINGLE else (H,)
    assert {k: v.shape for k, v in kept.items() if k != "step"} == {
        f"layer1/{name}": (2, *shape) for name, shape in shapes.items()
    }
    path = measured_anew(tmp_path, record)
    np.testing.assert_allclose(kept["layer1/R_HS"][-1], path.R.mean((0, 1)), atol=1e-6)
    np.testing.assert_allclose(kept["layer1/R_HT"][-1], path.R[..., -1].mean(0).T, atol=1e-6)
    assert kept["layer1/theta_HK"][-1].sum() == path.theta.numel()
    logged = read_metrics(tmp_path / "metrics.csv")[-1]
    gain = kept["layer1/dR"][-1].mean()
    assert logged["phase/val/dR/layer1"] == pytest.approx(gain, abs=1e-6)


def measured_anew(folder: Path, record: dict) -> Trajectory:
    """That of the phase layer, of the fixed windows and the last checkpoint."""
    model, config = phasegpt.load(folder, which="last"), run_config(record["config"])
    T = config.model.block_size
    windows = EvalWindows(prepare(config.data).split("val"), context=T, stride=T)
    places = [round(float(x)) for x in np.linspace(0, len(windows) - 1, WINDOWS)]
    idx = torch.stack([windows[i]["idx"] for i in places])
    (path,) = trajectories(model, idx).values()
    return path


def test_averaged_weights_are_measured_as_they_are_validated_and_saved(tmp_path, text):
    config = phasegpt.compose([*TINY, *text, "optimizer.lr=0.1"])
    record = fit(config, tmp_path, callbacks=[EMAWeightAveraging(decay=0.5)])
    found = read_phases(tmp_path)["layer1/R_HS"][-1]
    np.testing.assert_allclose(found, measured_anew(tmp_path, record).R.mean((0, 1)), atol=1e-6)


def test_phases_that_are_not_finite_make_no_error_of_their_own(make_model, text_ids):
    model = make_model("kuramoto", layers=(1,))
    model.blocks[1].attn.oscillators.omega.data.fill_(float("nan"))
    (path,) = trajectories(model, text_ids(2, 20)).values()
    assert np.isnan(phase_measures.arrays(path, measure(path, BAND))["R_HS"]).any()


@pytest.mark.parametrize("what", ["off", "softmax"])
def test_off_or_without_phases_there_is_no_file_and_no_metric(tmp_path, text, what):
    if what == "off":
        run(tmp_path, text, "callbacks.phase_monitor.every_n_steps=null")
    else:
        softmax = [word for word in TINY if not word.startswith("attention.")]
        fit(phasegpt.compose([*softmax, *text, "attention=softmax"]), tmp_path)
    assert not (tmp_path / "phase").exists() and read_phases(tmp_path) == {}
    assert all(not monitored(row) for row in read_metrics(tmp_path / "metrics.csv"))


def test_the_monitor_changes_no_weight_loss_or_random_number(tmp_path, text):
    for name, every in (("on", "1"), ("off", "null")):
        run(tmp_path / name, text, *NOISY, f"callbacks.phase_monitor.every_n_steps={every}")
    rows = [read_metrics(tmp_path / name / "metrics.csv") for name in ("on", "off")]
    for a, b in zip(*rows, strict=True):
        assert len(a) > len(b) - 1
        same = {k for k in b if not k.startswith("perf/")}
        assert {k: a[k] for k in same} == {k: b[k] for k in same}
    on, off = (checkpoint.read(tmp_path / n / "checkpoints" / "last.ckpt") for n in ("on", "off"))
    assert all(torch.equal(v, off["state_dict"][k]) for k, v in on["state_dict"].items())
    states = [payload["callbacks"]["RngState"]["cpu"] for payload in (on, off)]
    assert torch.equal(*states)


def test_it_is_no_part_of_the_configuration_that_a_resumed_run_must_keep():
    plain = run_config(phasegpt.compose(["data=shakespeare"]))
    off = run_config(
        phasegpt.compose(["data=shakespeare", "callbacks.phase_monitor.every_n_steps=null"])
    )
    assert plain.hash == off.hash and off.callbacks.phase_monitor == PhaseMonitorConfig(
        every_n_steps=None
    )


@pytest.mark.parametrize("where", ["after a save", "in a save after a validation"])
def test_a_resumed_run_has_every_value_and_file_once_and_the_same(
    tmp_path, text, monkeypatch, where
):
    real_step, real_save = LitGPT.training_step, Saver._save

    def step(self, batch, batch_idx):
        if batch_idx == 4:
            raise RuntimeError("crash")
        return real_step(self, batch, batch_idx)

    def save(self, trainer, best=False):
        if trainer.global_step == 6:
            raise RuntimeError("crash")
        real_save(self, trainer, best)

    run(tmp_path / "whole", text, *NOISY)
    with monkeypatch.context() as patch:
        if where == "after a save":
            patch.setattr(LitGPT, "training_step", step)
        else:
            patch.setattr(Saver, "_save", save)
        with pytest.raises(RuntimeError, match="crash"):
            run(tmp_path / "cut", text, *NOISY)
    phases = tmp_path / "cut" / "phase"
    assert (phases / "step-00000006.npz").is_file() == (where != "after a save")
    (phases / "step-00000009.npz").write_bytes(b"of a future that is not ours")
    (phases / ".step-00000006.npz.1.tmp").write_bytes(b"half")
    run(tmp_path / "cut", text, *NOISY, "resume=true")
    files = [
        {p.name: p.read_bytes() for p in (tmp_path / name / "phase").iterdir()}
        for name in ("whole", "cut")
    ]
    assert files[0] == files[1] and sorted(files[0]) == ["step-00000003.npz", "step-00000006.npz"]
    rows = [
        [{k: v for k, v in row.items() if not k.startswith("perf/")} for row in table]
        for table in (read_metrics(tmp_path / n / "metrics.csv") for n in ("whole", "cut"))
    ]
    assert rows[0] == rows[1]


@pytest.mark.parametrize("band", ["[0.5,0.4]", "[0.1]", "[-0.1,0.5]", "[0.2,1.2]"])
def test_a_band_that_is_none_is_refused(band):
    with pytest.raises(
        ConfigError, match=r"callbacks\.phase_monitor\.band=.* like \[0\.35,0\.55\]"
    ):
        run_config(phasegpt.compose([f"callbacks.phase_monitor.band={band}"]))


def test_in_a_mixed_precision_run_the_measures_are_computed_in_float32(make_model, text_ids):
    model = make_model("kuramoto", layers=(1,))
    plugin = MixedPrecision("bf16-mixed", "cpu")
    trainer = SimpleNamespace(precision_plugin=plugin, loggers=[], global_step=1)
    monitor = PhaseMonitor(PhaseMonitorConfig(band=BAND), Path())
    idx = text_ids(2, 20)
    paths, found = monitor.measure(trainer, SimpleNamespace(model=model), idx, "phase")
    for name, value in measure(paths[1], BAND).items():
        assert torch.equal(found[1][name], value), name


def test_the_benchmark_measures_what_the_monitor_costs(text):
    script = ROOT / "scripts" / "bench_train.py"
    spec = importlib.util.spec_from_file_location("bench_train", script)
    bench = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(bench)
    config = run_config(phasegpt.compose([*TINY, *text, "trainer.max_steps=20"]))
    spent, step = bench.monitored(config, prepare(config.data))
    assert len(spent) == 10 and min(spent) > 0 and step > 0  # steps 2, 4, ... 20
