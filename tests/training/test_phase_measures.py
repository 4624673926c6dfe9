"""Trajectories of the phases and every number that the monitor logs of them, against loops."""

import cmath
import math
import statistics
from itertools import pairwise

import numpy as np
import pytest
import torch

from phasegpt.phase import SHORTEST_PREFIX
from phasegpt.training import phase_measures
from phasegpt.training.metric_names import LOCKED_WITHIN, MEASURES
from phasegpt.training.phase_measures import measure, scalars
from phasegpt.training.phase_monitor import trajectories
from phasegpt.training.run_figure import _coupled

BAND = (0.35, 0.55)


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
        torch.testing.assert_close(path.R[..., -1], out.phase[layer].R)
        torch.testing.assert_close(
            phase_measures.order(path, path.theta)[:, -1],
            out.phase[layer].R[:, -1].mean(-1) if path.over_prefix else out.phase[layer].R[:, -1],
        )


@pytest.mark.parametrize(
    ("attention", "options"),
    [("kuramoto", {"lag": 0.3}), ("phase_sync", {"forget": 0.8}), ("hybrid", {})],
)
def test_the_path_of_a_trajectory_is_its_phases_at_every_step(
    make_model, roughen, attention, options
):
    layer = roughen(make_model(attention, steps=4, **options)).blocks[0].attn
    with torch.no_grad():
        found = layer.trajectory(torch.randn(2, 9, 16), return_path=True)
        assert torch.equal(found.path[0], found.theta0) and len(found.path) == 5
        torch.testing.assert_close(found.path[-1], found.theta)
        R = torch.stack([layer.order_parameter(theta) for theta in found.path], -1)
    torch.testing.assert_close(R, found.R)
    assert layer.trajectory(torch.randn(1, 3, 16)).path is None


@pytest.mark.filterwarnings("ignore:layer 0. attention.as_coded")
@pytest.mark.parametrize("attention", ["softmax", "as_coded"])
def test_layers_without_causal_phases_have_no_trajectory(make_model, text_ids, attention):
    model = make_model(attention, layers=(0,))
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
        return (
            float(((frequency - frequency.mean()).abs() < phase_measures.LOCKED_WITHIN).sum()) / N
        )

    def inside(R_S) -> list[bool]:
        return [BAND[0] <= float(r) <= BAND[1] for r in R_S]

    duration = steps * dt
    expected = {
        "R_start": by_head(lambda a, b, w, r: R(a)),
        "R_end": by_head(lambda a, b, w, r: R(b)),
        "dR": by_head(lambda a, b, w, r: R(b) - R(a + duration * w)),
        "ppc": by_head(lambda a, b, w, r: pairs(b)),
        **{f"daido_{m}": by_head(lambda a, b, w, r, m=m: R(m * b)) for m in (2, 3, 4)},
        "frequency": by_head(lambda a, b, w, r: statistics.pstdev(((b - a) / duration).tolist())),
        "locked": by_head(lambda a, b, w, r: locked((b - a) / duration)),
        "locked_null": by_head(lambda a, b, w, r: locked(w)),
        "budget": path.coupling * duration,
        "band_final": by_head(lambda a, b, w, r: inside(r)[-1]),
        "band_inside": by_head(lambda a, b, w, r: dt * sum(inside(r))),
        "band_exits": by_head(lambda a, b, w, r: sum(x and not y for x, y in pairwise(inside(r)))),
    }
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-4, atol=1e-5, msg=name)
    assert found["band_inside"].max() > 0 and found["band_exits"].max() > 0
    for h in range(H):
        entries = [dt * inside(path.R[b, t, h]).index(True)
                   for b in range(B) for t in range(T) if any(inside(path.R[b, t, h]))]  # fmt: skip
        assert found["band_entry"][h] == pytest.approx(statistics.fmean(entries), rel=1e-5)
        features = torch.cat((path.theta.cos(), path.theta.sin()), -1)[:, :, h].flatten(0, 1)
        spectrum = np.linalg.eigvalsh(np.cov(features.double().numpy().T))
        ratio = spectrum.sum() ** 2 / (spectrum**2).sum()
        assert found["participation"][h] == pytest.approx(ratio, rel=1e-4)
        offsets = path.theta0[:, :, h].mean((0, 1)).tolist()
        assert found["offsets"][h] == pytest.approx(statistics.pstdev(offsets), rel=1e-4)
    R_BTHS = path.R.double().numpy()
    in_time = R_BTHS.var(-1, ddof=1).mean()
    over_heads = R_BTHS.var(2, ddof=1).mean()
    assert found["metastability"] == pytest.approx(in_time, rel=1e-4)
    assert found["chimera"] == pytest.approx(over_heads, rel=1e-4)
    gain_BTH = phase_measures.order(path, path.theta) - phase_measures.order(
        path, path.theta0 + duration * path.omega
    )
    standard_error = statistics.stdev(gain_BTH.mean((1, 2)).tolist()) / math.sqrt(B)
    assert found["dR_se"] == pytest.approx(standard_error, rel=1e-5)


def test_phase_sync_is_measured_over_prefixes_and_has_no_band(path_of):
    path = path_of("phase_sync", time=36, num_oscillators=3, steps=4, coupling=2.0)
    found = measure(path, BAND)
    assert found.keys() == {name for name in MEASURES if not name.startswith("band_")}
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
        assert found["ppc"][h] == pytest.approx(ppc, abs=1e-5)
        assert found["dR"][h] == pytest.approx(gain, abs=1e-5)
    assert (found["locked_null"] == 1).all()
    kept = phase_measures.arrays(path, found)
    assert kept["R_HT"].shape == (H, T) and kept["R_HS"].shape == (H, 5)
    np.testing.assert_allclose(kept["R_HT"][:, 0], 1, atol=1e-6)  # a prefix of one token
    np.testing.assert_allclose(kept["R_HS"][:, -1], found["R_end"], atol=1e-6)


def test_a_context_shorter_than_32_tokens_is_measured_at_its_last_token(path_of):
    path = path_of("phase_sync", time=7, num_oscillators=3)
    R_BHN = phase_measures.phase.order_parameter(path.theta, dim=1)
    torch.testing.assert_close(measure(path, BAND)["R_end"], R_BHN.mean((0, 2)))


@pytest.mark.parametrize("attention", ["kuramoto", "phase_sync"])
def test_without_coupling_nothing_is_gained_and_frequencies_are_natural(make_model, attention):
    model = make_model(attention, layers=(1,), coupling=0.0, omega_std=0.1)
    (path,) = trajectories(model, torch.arange(40).view(1, 40)).values()
    found = measure(path, BAND)
    assert found["dR"].abs().max() < 1e-6 and (found["budget"] == 0).all()
    torch.testing.assert_close(found["locked"], found["locked_null"])
    spread = path.omega.std(-1, correction=0) if attention == "kuramoto" else torch.zeros(2)
    torch.testing.assert_close(found["frequency"], spread, rtol=1e-4, atol=1e-5)


def test_constant_offsets_move_R_and_are_told_from_coupling(make_model, text_ids):
    model = make_model("kuramoto", layers=(1,), coupling=0.0, theta_std=0.3)
    found = {}
    for name in ("without", "with"):
        (path,) = trajectories(model, text_ids(4, 32)).values()
        found[name] = scalars({1: measure(path, BAND)}, "phase")
        with torch.no_grad():
            bias = model.blocks[1].attn.oscillators.phase.bias
            bias.copy_(torch.linspace(0, 2 * math.pi, bias.numel() // 2).repeat(2))
    moved = found["with"]["phase/R_end/layer1"] - found["without"]["phase/R_end/layer1"]
    assert moved < -0.3
    assert abs(found["with"]["phase/dR/layer1"]) < 1e-6
    assert found["with"]["phase/offsets/layer1"] > found["without"]["phase/offsets/layer1"] + 0.5
    same = pytest.approx(found["without"]["phase/participation/layer1"], rel=1e-3)
    assert found["with"]["phase/participation/layer1"] == same


def test_what_does_not_exist_is_left_out_and_never_nan(path_of):
    one_head = path_of("kuramoto", n_head=1, steps=0, theta_init="gpt2")
    logged = scalars({3: measure(one_head, (0.0, 1e-6))}, "phase")
    assert all(math.isfinite(value) for value in logged.values())
    gone = {"chimera", "metastability", "frequency", "locked", "locked_null", "band_entry"}
    assert not gone & {part for name in logged for part in name.split("/")}
    assert logged["phase/band_inside/layer3"] == 0


def test_phases_that_no_step_moves_are_kept_with_frequency_0(path_of):
    for path in (path_of("kuramoto", steps=0), path_of("ssa")):
        kept = phase_measures.arrays(path, measure(path, BAND))
        assert (kept["frequency_HN"] == 0).all() and kept["R_HS"].shape[1] == 1
        assert (kept["dR"] == 0).all() and (kept["budget"] == 0).all()


def test_histograms_count_every_phase_in_its_arc():
    theta = torch.tensor([-math.pi, -0.01, 0.01, 7 * math.pi - 0.01]).view(1, 1, 1, 4)
    counts = phase_measures.histogram(torch.cat((theta, theta + 2 * math.pi), dim=2))
    wanted = torch.zeros(2, phase_measures.BINS, dtype=torch.long)
    half = phase_measures.BINS // 2
    for arc in (0, half - 1, half, phase_measures.BINS - 1):
        wanted[:, arc] = 1
    assert torch.equal(counts, wanted)


@pytest.mark.parametrize("positions", ["learned", "rope"])
def test_rotary_drift_is_no_offset_and_tells_no_tokens_apart(make_model, positions):
    model = make_model("phase_sync", layers=(1,), positions=positions)
    with torch.no_grad():
        for name in ("phase.weight", "phase.bias"):
            model.blocks[1].attn.oscillators.get_parameter(name).zero_()
    (path,) = trajectories(model, torch.arange(40).view(1, 40)).values()
    assert measure(path, BAND)["offsets"].abs().max() < 1e-5


def test_the_null_of_lohe_is_that_of_its_drive(make_model, text_ids):
    model = make_model("lohe", layers=(1,), group=2)
    (path,) = trajectories(model, text_ids(2, 40)).values()
    found, first = measure(path, BAND), SHORTEST_PREFIX - 1
    turned = (path.free[-1] - path.theta0)[:, first:] / (path.steps * path.dt)
    near = (turned - turned.mean(1, keepdim=True)).abs() <= LOCKED_WITHIN
    expected = near.double().mean((0, 1, 3)).float()
    torch.testing.assert_close(found["locked_null"], expected)
    assert (found["locked_null"] < 1).all()


def test_the_curve_of_R_and_that_at_K_0_are_of_the_same_windows():
    found = {"phase/R/layer1": {1: 0.9, 2: 0.8}, "phase/val/R_end/layer1": {2: 0.5},
             "phase/val/dR/layer1": {2: 0.125}}  # fmt: skip
    assert _coupled(lambda name: found.get(name, {}), 1) == ({2: 0.5}, {2: 0.375})
    del found["phase/val/R_end/layer1"]
    assert _coupled(lambda name: found.get(name, {}), 1) == ({1: 0.9, 2: 0.8}, {})
