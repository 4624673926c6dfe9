"""`fsn`: the step of torus through a kernel over harmonics and successors; and its rival."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import SIX_STEPS
from naive.fsn import fsn as naive
from naive.token_shift import token_shift as naive_shift
from torch.nn import functional as F

from phasegpt.attention.fsn import Fsn
from phasegpt.attention.token_shift import TokenShift
from phasegpt.core.composition import compose
from phasegpt.training.run import fit
from phasegpt.training.run_folder import read_metrics, read_phases

F64 = torch.float64


@pytest.fixture
def make(make_model: Callable, roughen: Callable) -> Callable[..., Fsn]:
    """make(harmonics=1): a layer of 3 heads of width 4 with moved weights, in float64."""

    def build(scale: float = 0.3, **words: Any) -> Fsn:
        model = make_model("fsn", n_layer=1, n_embd=12, n_head=3, **words)
        return roughen(model.blocks[0].attn.double(), scale)

    return build


@pytest.mark.parametrize(
    ("positions", "options"),
    [
        ("learned", {}),
        ("rope", {}),
        ("rope", {"harmonics": 3}),
        ("rope", {"harmonics": 1}),
        ("learned", {"harmonics": 1, "delay": False}),
        ("rope", {"harmonics": 2, "delay": False}),
        ("rope", {"step": False}),
        ("learned", {"step": False, "delay": False}),
    ],
)
def test_the_layer_equals_loops_written_from_the_equations(
    positions: str, options: dict, make: Callable
) -> None:
    layer, x = make(positions=positions, **options), torch.randn(8, 12, dtype=F64)
    with torch.no_grad():
        out = layer(x.unsqueeze(0), return_phase=True)
        y, theta = naive(x, layer.state_dict(), 3, drift=positions == "rope", theta_std=0.4,
                         step=options.get("step", True))  # fmt: skip
    torch.testing.assert_close(out.y[0], y, rtol=0, atol=1e-10)
    torch.testing.assert_close(out.phase.theta[0].flatten(1), theta, rtol=0, atol=1e-10)


def test_a_delay_is_a_frustration_by_the_texts_own_step() -> None:
    theta = torch.randn(50, dtype=F64)
    alpha = theta[:-1] - theta[1:]
    for t in range(1, 50):
        delayed = (theta[1 : t + 1] - theta[t]).sin()
        frustrated = (theta[:t] - theta[t] - alpha[:t]).sin()
        torch.testing.assert_close(delayed, frustrated, rtol=0, atol=1e-12)


def test_phases_that_advance_evenly_make_the_delay_one_frustration(make: Callable) -> None:
    layer, step = make(harmonics=1, positions="rope"), 0.3
    layer.kernel.data[1] = 0
    layer.kernel.data[0, 0] = 0  # the delayed term alone
    other = make(harmonics=1, delay=False, positions="rope")
    others = {k: v for k, v in layer.state_dict().items() if k != "kernel"}
    other.load_state_dict({**others, "kernel": other.kernel.data})
    c = layer.kernel.data[0, 1:]
    other.kernel.data = torch.stack((c * math.cos(step), c * math.sin(step)))
    theta = (step * torch.arange(9, dtype=F64)).view(1, 9, 1, 1) + torch.randn(1, 1, 3, 4).double()
    with torch.no_grad():
        gate = layer._gate(torch.randn(1, 9, 12, dtype=F64))
        forces = [found._force(theta, gate, None) for found in (layer, other)]
    torch.testing.assert_close(*forces, rtol=0, atol=1e-12)


def test_the_first_token_feels_no_force_and_the_kernel_begins_as_written(
    make: Callable, make_model: Callable
) -> None:
    path = make().trajectory(torch.randn(2, 5, 12, dtype=F64))
    assert torch.equal(path.theta[:, 0], path.theta0[:, 0])
    assert (path.theta[:, 1:] != path.theta0[:, 1:]).all()
    for delay, share in ((True, 0.5), (False, 1.0)):
        kernel = make_model("fsn", n_embd=256, delay=delay).blocks[0].attn.kernel
        assert (kernel[0, :, 0] == share).all()
        assert (kernel[1, :, 0] == 0).all()
        assert kernel[:, :, 1].std().item() == pytest.approx(0.02, rel=0.1)


@pytest.mark.parametrize("harmonics", [1, 2, 3])
def test_both_delays_and_all_harmonics_are_one_call_of_attention(
    harmonics: int, make: Callable, monkeypatch: Any
) -> None:
    calls = []
    real = F.scaled_dot_product_attention

    def counted(q: Any, k: Any, v: Any, **words: Any) -> Any:
        calls.append((q.shape, k.shape, v.shape, words["is_causal"]))
        return real(q, k, v, **words)

    monkeypatch.setattr(F, "scaled_dot_product_attention", counted)
    make(harmonics=harmonics)(torch.randn(1, 9, 12, dtype=F64))
    shape = (1, 3 * harmonics, 8, 8)
    assert calls == [(shape, shape, shape, True)]


def test_the_state_of_a_token_is_its_angles_alone(make_model: Callable, text_ids: Callable) -> None:
    model, idx = make_model("fsn", positions="rope"), text_ids(2, 12)
    cache = model.new_cache()
    for token in idx.split(1, dim=1):
        model(token, cache=cache)
    for part in cache.layers:
        (buffer,) = part._buffers
        assert part.angles
        assert part.values is None
        assert buffer[0, :, 0].numel() * buffer.element_size() == 4 * 16


# --- the rival -------------------------------------------------------------------------------


@pytest.fixture
def shift(make_model: Callable, roughen: Callable) -> TokenShift:
    model = make_model("token_shift", n_layer=1, n_embd=12, n_head=3)
    return roughen(model.blocks[0].attn.double(), 0.3)


def test_token_shift_equals_loops_written_from_the_equations(shift: TokenShift) -> None:
    x = torch.randn(9, 12, dtype=F64)
    with torch.no_grad():
        y = naive_shift(x, shift.state_dict(), 3)
        torch.testing.assert_close(shift(x.unsqueeze(0)).y[0], y, rtol=0, atol=1e-10)


def test_the_first_token_of_token_shift_gets_the_bias_alone(shift: TokenShift) -> None:
    y = shift(torch.randn(2, 5, 12, dtype=F64)).y[:, 0]
    torch.testing.assert_close(y, shift.c_proj.bias.expand(2, 12), rtol=0, atol=0)


def test_token_shift_copies_what_followed_the_token_that_it_matches(shift: TokenShift) -> None:
    """Sharp scores between equal tokens: an induction head in one layer, by hand."""
    E, symbols = 4, torch.tensor([0, 2, 1, 3, 0])
    x = torch.zeros(5, 12, dtype=F64)
    x[range(5), symbols] = 1.0
    with torch.no_grad():
        for parameter in shift.parameters():
            parameter.zero_()
        eye = torch.eye(12, dtype=F64)
        shift.c_attn.weight[:24] = torch.cat((40 * eye, eye))
        shift.c_attn.weight[24:] = eye
        shift.next_c_proj.weight.copy_(eye)
        y = shift(x.unsqueeze(0)).y[0, -1, :E]
    torch.testing.assert_close(y, x[1, :E], rtol=0, atol=1e-4)  # 0 was followed by 2


# --- in a run --------------------------------------------------------------------------------


def test_a_run_is_monitored_and_held_by_a_regularizer(tmp_path: Path, text: list[str]) -> None:
    words = [w for w in SIX_STEPS if not w.startswith(("attention.num", "attention.steps"))]
    words += [*text, "attention=fsn", "regularizer=center", "regularizer.through=coupling"]
    fit(compose([*words, "callbacks.sample_text.max_new_tokens=0"]), tmp_path)
    rows = {int(row["step"]): row for row in read_metrics(tmp_path / "metrics.csv")}
    last = rows[6]
    assert last["reg/coherence"] > 0
    assert last["phase/budget/layer1"] == pytest.approx(1, abs=0.01)
    gain = last["phase/val/R_end/layer1"] - last["phase/val/R_start/layer1"]
    assert last["phase/val/dR/layer1"] == pytest.approx(gain, abs=1e-6)
    assert gain != 0
    assert read_phases(tmp_path)["layer1/R_HS"].shape == (2, 2, 2)
