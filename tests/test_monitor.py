"""PhaseMonitor: its numbers are right, it leaves the training alone, and its files survive."""

import cmath
import importlib.util
import math
import statistics
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from helpers import SIX_STEPS, play
from pytorch_lightning.plugins.precision import MixedPrecision

import phasegpt
from phasegpt import checkpoint, diagnosis
from phasegpt.build import run_config
from phasegpt.callback_config import PhaseMonitorConfig
from phasegpt.data import EvalWindows, prepare
from phasegpt.diagnosis import MEASURES, measure, scalars
from phasegpt.errors import ConfigError
from phasegpt.lit import LitGPT
from phasegpt.monitor import WINDOWS, PhaseMonitor, read_phases, trajectories
from phasegpt.phase import SHORTEST_PREFIX
from phasegpt.record import read_metrics
from phasegpt.saving import Saver
from phasegpt.train import train

BAND = (0.35, 0.55)
TINY = [*SIX_STEPS, "callbacks.sample_text.max_new_tokens=0"]
NOISY = ["model.dropout=0.2", "attention.noise_sigma=0.1", "attention.frequency_jitter=0.1"]


@pytest.fixture(scope="module")
def text(tmp_path_factory) -> list[str]:
    return play(tmp_path_factory.mktemp("text"))


def run(folder: Path, text: list[str], *extra: str) -> dict:
    return train(phasegpt.compose([*TINY, *text, *extra]), folder)


def monitored(row: dict[str, float], prefix: str = "phase/") -> set[str]:
    """What the monitor logged of a row; the training's own R is not among it."""
    own = {name for name in row if name.endswith("/mean") or "/head" in name}
    val = {name for name in row if name.startswith("phase/val/") and prefix == "phase/"}
    return {name for name in row if name.startswith(prefix)} - own - val - {"phase/R/final"}


def documented(layer: int, prefix: str) -> set[str]:
    names = {f"{prefix}/{name.format(f'layer{layer}')}" for name in MEASURES}
    return names | {f"{prefix}/{diagnosis.TOTAL_BUDGET}"}


@pytest.fixture
def path_of(make_model, roughen, text_ids):
    """The trajectory of one roughened layer on real text, batch 3."""

    def get(attention: str, time: int = 12, **options):
        model = roughen(make_model(attention, layers=(1,), **options))
        (found,) = trajectories(model, text_ids(3, time)).values()
        return found

    return get


# --- trajectories ----------------------------------------------------------------------------


@pytest.mark.parametrize("positions", ["learned", "rope"])
@pytest.mark.parametrize(
    ("attention", "options"),
    [
        ("kuramoto", {"lag": 0.3, "integrator": "heun"}),
        ("phase_sync", {}),
        ("phase_sync", {"forget": 0.8}),
        ("hybrid", {"partner": "kuramoto"}),
        ("hybrid", {"partner": "phase_sync"}),
    ],
)
def test_a_trajectory_ends_in_the_phases_of_the_forward_pass(
    make_model, roughen, text_ids, attention, options, positions
):
    model = roughen(make_model(attention, layers=(0, 1), positions=positions, steps=4, **options))
    idx = text_ids(2, 20)
    with torch.inference_mode():
        out = model(idx, return_phase=True)
    found = trajectories(model, idx)
    assert list(found) == [0, 1]
    for layer, path in found.items():
        assert torch.equal(path.theta, out.phase[layer].theta)
        assert path.steps == 4 and path.R.shape == (*out.phase[layer].R.shape, 5)
        if "forget" not in options:
            torch.testing.assert_close(path.R[..., -1], out.phase[layer].R)
        torch.testing.assert_close(
            diagnosis.order(path, path.theta)[:, -1],
            out.phase[layer].R[:, -1].mean(-1) if path.over_prefix else out.phase[layer].R[:, -1],
        )


@pytest.mark.filterwarnings("ignore:layer 0. attention.as_coded")
@pytest.mark.parametrize("attention", ["softmax", "phase_sync"])
def test_layers_without_causal_phases_have_no_trajectory(make_model, text_ids, attention):
    options = {"as_coded": True} if attention == "phase_sync" else {}
    model = make_model(attention, layers=(0,), **options)
    if attention == "softmax":
        model.forward = None  # it is not even called
    assert trajectories(model, text_ids(1, 8)) == {}
    assert scalars({}, "phase") == {}


def test_measuring_leaves_modes_hooks_and_random_numbers_alone(make_model, text_ids):
    model = make_model("kuramoto", dropout=0.5).train()
    model.blocks[1].mlp.eval()
    before = torch.get_rng_state(), [m.training for m in model.modules()]
    first = trajectories(model, text_ids(2, 8))
    again = trajectories(model, text_ids(2, 8))
    assert torch.equal(first[1].theta, again[1].theta)
    assert torch.equal(before[0], torch.get_rng_state())
    assert before[1] == [m.training for m in model.modules()]
    assert not any(m._forward_pre_hooks for m in model.modules())


# --- numbers, against loops over plain Python numbers ----------------------------------------


def R(angles) -> float:
    return abs(sum(cmath.exp(1j * float(a)) for a in angles)) / len(angles)


def pairs(angles) -> float:
    """Mean cosine of the differences of two different angles."""
    values = [float(a) for a in angles]
    found = [math.cos(a - b) for i, a in enumerate(values) for b in values[:i]]
    return statistics.fmean(found)


def test_kuramoto_measures_are_those_of_loops(path_of):
    path = path_of("kuramoto", n_head=3, n_embd=24, num_oscillators=6, steps=5, coupling=1.5)
    found = measure(path, BAND)
    assert found.keys() == MEASURES.keys()
    B, T, H, N = path.theta.shape
    dt, steps = path.dt, path.steps

    def by_head(value) -> torch.Tensor:
        """Mean over tokens of value(theta0 [N], theta [N], omega [N], R [S+1]) of one token."""
        return torch.tensor(
            [
                statistics.fmean(
                    value(path.theta0[b, t, h], path.theta[b, t, h], path.omega[h], path.R[b, t, h])
                    for b in range(B)
                    for t in range(T)
                )
                for h in range(H)
            ]
        )

    def locked(frequency) -> float:
        return float(((frequency - frequency.mean()).abs() < diagnosis.LOCKED_WITHIN).sum()) / N

    def inside(R_S) -> list[bool]:
        return [BAND[0] <= float(r) <= BAND[1] for r in R_S]

    duration = steps * dt
    expected = {
        "R/{}/start": by_head(lambda a, b, w, r: R(a)),
        "R/{}/end": by_head(lambda a, b, w, r: R(b)),
        "dR/{}": by_head(lambda a, b, w, r: R(b) - R(a + duration * w)),
        "ppc/{}": by_head(lambda a, b, w, r: pairs(b)),
        **{f"daido/{{}}/m{m}": by_head(lambda a, b, w, r, m=m: R(m * b)) for m in (2, 3, 4)},
        "frequency/{}": by_head(
            lambda a, b, w, r: statistics.pstdev(((b - a) / duration).tolist())
        ),
        "locked/{}": by_head(lambda a, b, w, r: locked((b - a) / duration)),
        "locked_null/{}": by_head(lambda a, b, w, r: locked(w)),
        "budget/{}": path.coupling * duration,
        "band/{}/final": by_head(lambda a, b, w, r: inside(r)[-1]),
        "band/{}/inside": by_head(lambda a, b, w, r: dt * sum(inside(r))),
        "band/{}/exits": by_head(
            lambda a, b, w, r: sum(x and not y for x, y in pairwise(inside(r)))
        ),
    }
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-4, atol=1e-5, msg=name)
    assert found["band/{}/inside"].max() > 0 and found["band/{}/exits"].max() > 0
    for h in range(H):
        entries = [dt * inside(path.R[b, t, h]).index(True)
                   for b in range(B) for t in range(T) if any(inside(path.R[b, t, h]))]  # fmt: skip
        assert found["band/{}/entry"][h] == pytest.approx(statistics.fmean(entries), rel=1e-5)
        features = torch.cat((path.theta.cos(), path.theta.sin()), -1)[:, :, h].flatten(0, 1)
        spectrum = np.linalg.eigvalsh(np.cov(features.double().numpy().T))
        ratio = spectrum.sum() ** 2 / (spectrum**2).sum()
        assert found["participation/{}"][h] == pytest.approx(ratio, rel=1e-4)
        offsets = path.theta0[:, :, h].mean((0, 1)).tolist()
        assert found["offsets/{}"][h] == pytest.approx(statistics.pstdev(offsets), rel=1e-4)
    R_BTHS = path.R.double().numpy()
    in_time = R_BTHS.var(-1, ddof=1).mean()
    over_heads = R_BTHS.var(2, ddof=1).mean()
    assert found["metastability/{}"] == pytest.approx(in_time, rel=1e-4)
    assert found["chimera/{}"] == pytest.approx(over_heads, rel=1e-4)
    gain_BTH = diagnosis.order(path, path.theta) - diagnosis.order(
        path, path.theta0 + duration * path.omega
    )
    standard_error = statistics.stdev(gain_BTH.mean((1, 2)).tolist()) / math.sqrt(B)
    assert found["dR_se/{}"] == pytest.approx(standard_error, rel=1e-5)


def test_phase_sync_is_measured_over_prefixes_of_32_tokens_and_has_no_band(path_of):
    path = path_of("phase_sync", time=36, num_oscillators=3, steps=4, coupling=2.0)
    found = measure(path, BAND)
    assert found.keys() == {name for name in MEASURES if not name.startswith("band/")}
    B, T, H, N = path.theta.shape
    prefixes = [
        (b, t, n) for b in range(B) for t in range(SHORTEST_PREFIX, T + 1) for n in range(N)
    ]
    free = path.theta0 + path.steps * path.dt * path.omega
    for h in range(H):
        ppc = statistics.fmean(pairs(path.theta[b, :t, h, n]) for b, t, n in prefixes)
        gain = statistics.fmean(
            R(path.theta[b, :t, h, n]) - R(free[b, :t, h, n]) for b, t, n in prefixes
        )
        assert found["ppc/{}"][h] == pytest.approx(ppc, abs=1e-5)
        assert found["dR/{}"][h] == pytest.approx(gain, abs=1e-5)
    assert (found["locked_null/{}"] == 1).all()
    kept = diagnosis.arrays(path, found)
    assert kept["R_HT"].shape == (H, T) and kept["R_HS"].shape == (H, 5)
    np.testing.assert_allclose(kept["R_HT"][:, 0], 1, atol=1e-6)  # a prefix of one token
    np.testing.assert_allclose(kept["R_HS"][:, -1], found["R/{}/end"], atol=1e-6)


def test_a_context_shorter_than_32_tokens_is_measured_at_its_last_token(path_of):
    path = path_of("phase_sync", time=7, num_oscillators=3)
    R_BHN = diagnosis.phase.order_parameter(path.theta, dim=1)
    torch.testing.assert_close(measure(path, BAND)["R/{}/end"], R_BHN.mean((0, 2)))


@pytest.mark.parametrize("attention", ["kuramoto", "phase_sync"])
def test_without_coupling_nothing_is_gained_and_frequencies_are_natural(make_model, attention):
    model = make_model(attention, layers=(1,), coupling=0.0, omega_std=0.1)
    (path,) = trajectories(model, torch.arange(40).view(1, 40)).values()
    found = measure(path, BAND)
    assert found["dR/{}"].abs().max() < 1e-6 and (found["budget/{}"] == 0).all()
    torch.testing.assert_close(found["locked/{}"], found["locked_null/{}"])
    spread = path.omega.std(-1, correction=0) if attention == "kuramoto" else torch.zeros(2)
    torch.testing.assert_close(found["frequency/{}"], spread, rtol=1e-4, atol=1e-5)


def test_constant_offsets_move_R_and_are_told_from_coupling(make_model, text_ids):
    model = make_model("kuramoto", layers=(1,), coupling=0.0, theta_std=0.3)
    found = {}
    for name in ("without", "with"):
        (path,) = trajectories(model, text_ids(4, 32)).values()
        found[name] = scalars({1: measure(path, BAND)}, "phase")
        with torch.no_grad():
            bias = model.blocks[1].attn.oscillators.phase.bias
            bias.copy_(torch.linspace(0, 2 * math.pi, bias.numel() // 2).repeat(2))
    moved = found["with"]["phase/R/layer1/end"] - found["without"]["phase/R/layer1/end"]
    assert moved < -0.3
    assert abs(found["with"]["phase/dR/layer1"]) < 1e-6
    assert found["with"]["phase/offsets/layer1"] > found["without"]["phase/offsets/layer1"] + 0.5
    same = pytest.approx(found["without"]["phase/participation/layer1"], rel=1e-3)
    assert found["with"]["phase/participation/layer1"] == same


def test_what_does_not_exist_is_left_out_and_never_nan(path_of):
    one_head = path_of("kuramoto", n_head=1, steps=0, theta_init="gpt2")
    logged = scalars({3: measure(one_head, (0.0, 1e-6))}, "phase")
    assert all(math.isfinite(value) for value in logged.values())
    gone = {"chimera", "metastability", "frequency", "locked", "locked_null", "entry"}
    assert not gone & {part for name in logged for part in name.split("/")}
    assert logged["phase/band/layer3/inside"] == 0


def test_in_a_mixed_precision_run_the_measures_are_computed_in_float32(make_model, text_ids):
    model = make_model("kuramoto", layers=(1,))
    plugin = MixedPrecision("bf16-mixed", "cpu")
    trainer = SimpleNamespace(precision_plugin=plugin, loggers=[], global_step=1)
    monitor = PhaseMonitor(PhaseMonitorConfig(band=BAND), Path())
    idx = text_ids(2, 20)
    paths, found = monitor.measure(trainer, SimpleNamespace(model=model), idx, "phase")
    for name, value in measure(paths[1], BAND).items():
        assert torch.equal(found[1][name], value), name


def test_histograms_count_every_phase_in_its_arc():
    theta = torch.tensor([-math.pi, -0.01, 0.01, 7 * math.pi - 0.01]).view(1, 1, 1, 4)
    counts = diagnosis.histogram(torch.cat((theta, theta + 2 * math.pi), dim=2))
    wanted = torch.zeros(2, diagnosis.BINS, dtype=torch.long)
    half = diagnosis.BINS // 2
    for arc in (0, half - 1, half, diagnosis.BINS - 1):
        wanted[:, arc] = 1
    assert torch.equal(counts, wanted)


# --- in a run --------------------------------------------------------------------------------


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
    H, N, S, T, K = 2, 8, 3, 16, diagnosis.BINS
    shapes = {"R_HS": (H, S + 1), "R_HT": (H, T), "theta0_HK": (H, K), "theta_HK": (H, K)}
    shapes["frequency_HN"] = (H, N)
    assert shapes.keys() == diagnosis.ARRAYS.keys()
    for name in MEASURES:
        shapes[name.replace("/{}", "")] = () if name in diagnosis.SINGLE else (H,)
    assert {k: v.shape for k, v in kept.items() if k != "step"} == {
        f"layer1/{name}": (2, *shape) for name, shape in shapes.items()
    }
    model = phasegpt.load(tmp_path, which="last")
    config = run_config(record["config"])
    windows = EvalWindows(prepare(config.data).split("val"), context=T, stride=T)
    places = [round(float(x)) for x in np.linspace(0, len(windows) - 1, WINDOWS)]
    idx = torch.stack([windows[i]["idx"] for i in places])
    (path,) = trajectories(model, idx).values()
    np.testing.assert_allclose(kept["layer1/R_HS"][-1], path.R.mean((0, 1)), atol=1e-6)
    np.testing.assert_allclose(kept["layer1/R_HT"][-1], path.R[..., -1].mean(0).T, atol=1e-6)
    assert kept["layer1/theta_HK"][-1].sum() == path.theta.numel()
    logged = read_metrics(tmp_path / "metrics.csv")[-1]
    gain = kept["layer1/dR"][-1].mean()
    assert logged["phase/val/dR/layer1"] == pytest.approx(gain, abs=1e-6)


@pytest.mark.parametrize("what", ["off", "softmax"])
def test_off_or_without_phases_there_is_no_file_and_no_metric(tmp_path, text, what):
    if what == "off":
        run(tmp_path, text, "callbacks.phase_monitor.every_n_steps=null")
    else:
        softmax = [word for word in TINY if not word.startswith("attention.")]
        train(phasegpt.compose([*softmax, *text, "attention=softmax"]), tmp_path)
    assert not (tmp_path / "phase").exists() and read_phases(tmp_path) == {}
    assert all(not monitored(row) for row in read_metrics(tmp_path / "metrics.csv"))


def test_weights_losses_and_random_numbers_are_the_same_with_and_without_it(tmp_path, text):
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


def test_the_benchmark_measures_what_the_monitor_costs(text):
    script = Path(__file__).resolve().parents[1] / "scripts" / "bench_train.py"
    spec = importlib.util.spec_from_file_location("bench_train", script)
    bench = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(bench)
    config = run_config(phasegpt.compose([*TINY, *text, "trainer.max_steps=20"]))
    spent, step = bench.monitored(config, prepare(config.data))
    assert len(spent) == 10 and min(spent) > 0 and step > 0  # steps 2, 4, ... 20
