"""Layers at the edges: dropout under a penalty, zero vectors, fake tensors, tiny couplings."""

import pytest
import torch
from torch._subclasses import FakeTensorMode
from torch.nn import functional as F

from phasegpt.attention.fixed_query import readout
from phasegpt.model.config import GPTConfig
from phasegpt.model.gpt import GPT
from phasegpt.phase.steering import Perturbation


@pytest.mark.parametrize(
    ("name", "options"),
    [("torus", {}), ("fsn", {}), ("lohe", {"group": 2}), ("lohe", {}), ("phase_sync", {})],
)
def test_through_coupling_the_phases_are_the_layers_under_dropout_too(
    name, options, make_model, text_ids
) -> None:
    """Attention is made twice, with one draw of dropped weights; what follows draws the same."""
    model = make_model(name, **options).train()
    for block in model.blocks:
        block.attn.dropout = 0.3
    idx, found = text_ids(2, 40), {}
    for asked in (True, "coupling"):
        torch.manual_seed(0)
        found[asked] = model(idx, return_phase=asked)
    assert torch.equal(found[True].logits, found["coupling"].logits)
    if name != "lohe" or options:
        for layer, phase in found[True].phase.items():
            assert torch.equal(phase.theta, found["coupling"].phase[layer].theta)
            assert phase.theta.std() > 0.01


@pytest.mark.parametrize("integrator", ["heun", "rk4"])
def test_jittered_frequencies_keep_the_order_of_an_integrator(integrator, roughen) -> None:
    """They are omega (1 + xi) in every stage: as a layer with those frequencies."""
    config = GPTConfig(
        n_layer=1, n_head=1, n_embd=8, block_size=8, vocab_size=5, attention="kuramoto",
        attention_layers=(0,),
        attention_options={"integrator": integrator, "omega_std": 1.0, "num_oscillators": 4},
    )  # fmt: skip
    layer = roughen(GPT(config)).double().blocks[0].attn
    x, jitter = torch.randn(1, 6, 8).double(), torch.randn(1, 1, 4).double()
    found = layer.integrate(x, Perturbation(None, jitter))
    assert (found - layer.integrate(x)).abs().max() > 0.01
    with torch.no_grad():
        layer.oscillators.omega.mul_(1 + jitter[0])
    torch.testing.assert_close(found, layer.integrate(x), atol=1e-12, rtol=0)


@pytest.mark.parametrize(
    ("name", "options"), [("lohe", {}), ("lohe", {"group": 2}), ("selective_rope", {})]
)
def test_a_token_of_zeros_does_not_take_the_gradient_over(name, options, make_model) -> None:
    model = make_model(name, positions="rope", **options)
    with torch.no_grad():
        model.transformer["wte"].weight[0] = 0  # as of padding
    idx = torch.tensor([[1, 0, 2, 3, 0, 4]])
    F.cross_entropy(model(idx).logits.flatten(0, 1), idx.flatten()).backward()
    norms = {n: p.grad.norm() for n, p in model.named_parameters() if p.grad is not None}
    assert max(norms.values()) < 1e3


def test_a_pass_with_fake_tensors_leaves_real_ones_real(make_model) -> None:
    model, idx = make_model("kope", positions="rope"), torch.zeros(1, 7, dtype=torch.long)
    with FakeTensorMode(allow_non_fake_inputs=True):
        model(idx)
    assert type(model(idx).logits) is torch.Tensor


def test_what_a_caller_does_with_phases_changes_no_later_pass(make_model, text_ids) -> None:
    model = make_model("kope", positions="rope", n_head=1, dtype=torch.float64)
    idx = text_ids(1, 9)
    first = model(idx, return_phase=True)
    first.phase[0].theta.mul_(57.3)
    assert torch.equal(first.logits, model(idx).logits)


@pytest.mark.parametrize("coupling", [1e-9, 1e-10, 1e-15])
@pytest.mark.filterwarnings("ignore:.*pairs")
def test_a_pull_of_nearly_nothing_has_finite_gradients(coupling, make_model, text_ids) -> None:
    model, idx = make_model("ssa", coupling=coupling), text_ids(2, 12)
    F.cross_entropy(model(idx).logits.flatten(0, 1), idx.flatten()).backward()
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)


def test_an_excluded_anchor_weighs_the_same_in_every_type() -> None:
    star = torch.tensor([[[[1.0, 0.0]]]])
    anchors, p = torch.tensor([[[1.0, 0.0], [-1.2, 0.0]]]), torch.tensor([0.05])
    single, double = (readout(star.to(t), anchors.to(t), p) for t in (torch.float32, torch.float64))
    torch.testing.assert_close(single.double(), double, atol=1e-6, rtol=0)


def test_a_hybrid_drifts_as_its_partner(make_model) -> None:
    options = {"partner": "phase_sync", "num_oscillators": 4}
    layer = make_model("hybrid", positions="rope", **options).blocks[0].attn
    assert torch.equal(layer.drift(5), layer.partner.drift(5)) and layer.drift(5).abs().max() > 0
