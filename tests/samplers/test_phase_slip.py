"""Phase-Slip is what it says: exact angles, an untouched clean path, the stated logits."""

import copy
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from phasegpt.errors import ConfigError
from phasegpt.phase import order_parameter
from phasegpt.randomness import keyed_generator
from phasegpt.samplers import EntropyGate, PhaseSlip, PhaseSlipSampler, RGate, decode
from phasegpt.samplers.classic import rotation_of
from phasegpt.samplers.intervene import entropy
from phasegpt.samplers.rotation import ROTATIONS, draw, slip_features

KINDS = ["gpt2", "llama"]
HEADS = [(1, 0), (2, 0), (2, 1)]
every_kind = pytest.mark.parametrize("kind", KINDS)
every_rotation = pytest.mark.parametrize("rotation", ROTATIONS)


def noise(rotation: str, seed: int, shape: tuple[int, int, int] = (3, 12, 16)) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return draw(ROTATIONS[rotation].noise(*shape), [generator], torch.zeros(()))


def angles(a: Tensor, b: Tensor) -> Tensor:
    a, b = a.double(), b.double()
    return 2 * torch.atan2((a / a.norm(dim=-1, keepdim=True) - b / b.norm(dim=-1, keepdim=True))
                           .norm(dim=-1), (a / a.norm(dim=-1, keepdim=True)
                           + b / b.norm(dim=-1, keepdim=True)).norm(dim=-1))  # fmt: skip


# ---- rotations


@every_rotation
@pytest.mark.parametrize("angle", [0.0085, 0.3, 1.5, 3.0])
def test_rotations_keep_the_norm(rotation: str, angle: float) -> None:
    v = torch.randn(1, 3, 12, 16) * torch.logspace(-3, 3, 12)[:, None]
    turned = ROTATIONS[rotation].turn(v, angle, noise(rotation, 1))
    error = turned.double().norm(dim=-1) / v.double().norm(dim=-1) - 1
    assert error.abs().max() <= 1e-6
    assert not torch.equal(turned, v)


@pytest.mark.parametrize("angle", [0.0, 0.0085, 0.3, 1.5, math.pi])
def test_geodesic_turns_every_vector_by_the_angle(angle: float) -> None:
    v = torch.randn(1, 3, 12, 16)
    turned = ROTATIONS["geodesic"].turn(v, angle, noise("geodesic", 1))
    torch.testing.assert_close(
        angles(v, turned), torch.full((1, 3, 12), angle).double(), atol=1e-3, rtol=0
    )


@pytest.mark.parametrize("rotation", ["plane", "cayley"])
def test_a_rotation_of_a_head_keeps_the_products_inside_the_window(rotation: str) -> None:
    v = torch.randn(1, 3, 12, 16)
    turned = ROTATIONS[rotation].turn(v, 0.7, noise(rotation, 1))
    torch.testing.assert_close(turned @ turned.mT, v @ v.mT, atol=1e-4, rtol=1e-4)


def test_the_sizes_of_plane_and_cayley_are_the_documented_ones() -> None:
    v = torch.randn(1, 3, 2000, 64)
    plane = ROTATIONS["plane"].turn(v, 0.1, noise("plane", 2, (3, 2000, 64)))
    cayley = ROTATIONS["cayley"].turn(v, 0.1, noise("cayley", 2, (3, 2000, 64)))
    assert angles(v, plane).square().mean().sqrt() == pytest.approx(0.1 * (2 / 64) ** 0.5, rel=0.1)
    assert angles(v, cayley).square().mean().sqrt() == pytest.approx(0.1, rel=0.1)


def test_a_shorter_window_uses_the_newest_part_of_the_same_noise() -> None:
    v, given = torch.randn(1, 3, 12, 16), noise("geodesic", 1)
    whole = ROTATIONS["geodesic"].turn(v, 0.4, given)
    assert torch.equal(ROTATIONS["geodesic"].turn(v[:, :, 7:], 0.4, given), whole[:, :, 7:])


def test_a_phase_slips_by_plus_or_minus_the_angle() -> None:
    theta = torch.rand(1, 2, 12, 5) * 6 - 3
    slipped = slip_features(
        torch.cat((theta.cos(), theta.sin()), -1), 0.8, torch.randn(1, 2, 12, 5)
    )
    cos, sin = slipped.chunk(2, -1)
    change = torch.remainder(torch.atan2(sin, cos) - theta + math.pi, 2 * math.pi) - math.pi
    torch.testing.assert_close(change.abs(), torch.full_like(theta, 0.8), atol=1e-5, rtol=0)
    assert {-1.0, 1.0} == set(change.sign().flatten().tolist())


# ---- the clean path


@every_kind
def test_the_clean_path_is_bit_identical_for_any_angle(
    kind: str, hf: Callable, ids: Callable
) -> None:
    seen: dict[float, Any] = {}
    for angle in (0.0, 0.5, 3.0):
        logits: list[Tensor] = []

        def keep(ids: Tensor | None, x: Tensor, logits: list = logits) -> Tensor:
            logits.append(x.clone())
            return x

        slip = PhaseSlip(HEADS, angle=angle, anchor=1.0, force=True)  # only the clean path is heard
        out = decode(hf(kind), ids(3, 6), max_new_tokens=30, seeds=[1, 2, 3], chain=[keep],
                     intervention=slip)  # fmt: skip
        layers = slip._memory.cache.layers
        memory = [x for layer in layers for x in (layer.keys[:3], layer.values[:3])]
        seen[angle] = [out, *logits, *memory]
        assert slip._memory.cache.length == 6 + 29
        for layer in layers[1:]:  # and between steps the copies are as clean
            assert torch.equal(layer.keys[:3], layer.keys[3:])
            assert torch.equal(layer.values[:3], layer.values[3:])
        assert (max(float(s.kl.max()) for s in slip.trace) > 2e-6) == (angle > 0)  # rounding
    for angle in (0.5, 3.0):
        assert all(torch.equal(a, b) for a, b in zip(seen[0.0], seen[angle], strict=True))


# ---- the slipped path


def reference(model: Any, ids_T: Tensor, prompt: int, seed: int, angle: float) -> list[Tensor]:
    """Logits of the slipped path for every token after the prompt's, one row, no shared layers."""
    from transformers import DynamicCache

    class Turned(DynamicCache):
        def update(self, k: Tensor, v: Tensor, layer: int, *rest: Any) -> tuple[Tensor, Tensor]:
            keys, values = super().update(k, v, layer, *rest)
            heads = [h for at, h in HEADS if at == layer]
            if not heads:
                return keys, values
            given = torch.randn(len(heads), 12, v.shape[-1], generator=generator).double()
            values = values.clone()
            start = max(0, values.shape[2] - 12)
            for h, noise in zip(heads, given, strict=True):
                for j in range(start, values.shape[2]):
                    x = values[0, h, j].double()
                    w = noise[j - values.shape[2]]
                    w = w - x * (w @ x) / (x @ x)
                    w = w * x.norm() / w.norm()
                    values[0, h, j] = (x * math.cos(angle) + w * math.sin(angle)).float()
            return keys, values

    generator, found = keyed_generator("slip", seed), []
    with torch.no_grad():
        clean = DynamicCache()
        model(ids_T[None, :prompt], past_key_values=clean)
        for t in range(prompt, len(ids_T)):
            other = Turned()
            for i, layer in enumerate(copy.deepcopy(clean).layers):
                DynamicCache.update(other, layer.keys, layer.values, i)
            found.append(model(ids_T[None, t : t + 1], past_key_values=other).logits[0, -1])
            model(ids_T[None, t : t + 1], past_key_values=clean)
    return found


@pytest.mark.parametrize(("kind", "tolerance"), [("gpt2", 1e-5), ("llama", 1e-5)])
def test_slipped_logits_equal_a_slow_single_row_reference(
    kind: str, tolerance: float, hf: Callable, ids: Callable
) -> None:
    model, prompt = hf(kind), ids(2, 5)
    logits: list[Tensor] = []

    def keep(ids: Tensor | None, x: Tensor) -> Tensor:
        logits.append(x.clone())
        return x

    slip = PhaseSlip(HEADS, angle=0.9, anchor=0.0, gate=None)
    out = decode(model, prompt, max_new_tokens=30, seeds=[7, 8], chain=[keep], intervention=slip)
    for row, seed in enumerate((7, 8)):
        expected = reference(model, out[row, :-1], 5, seed, 0.9)
        found = torch.stack([x[row] for x in logits[1:]])
        error = (found - torch.stack(expected)).abs().max().item()
        assert error <= tolerance * max(1.0, found.abs().max().item())
        clean = torch.stack([s.kl[row] for s in slip.trace])
        assert clean.mean() > 1e-6  # there is something to see


@every_kind
def test_candidates_are_the_full_logits_at_the_best_tokens(
    kind: str, hf: Callable, ids: Callable
) -> None:
    found: dict[Any, list[Tensor]] = {None: [], 7: []}
    for count, logits in found.items():

        def keep(ids: Tensor | None, x: Tensor, logits: list = logits) -> Tensor:
            logits.append(x.clone())
            return torch.full_like(x, -math.inf).index_fill(1, torch.tensor([9]), 0.0)

        slip = PhaseSlip(HEADS, angle=1.0, anchor=0.0, gate=None, candidates=count)
        decode(hf(kind), ids(2, 6), max_new_tokens=8, seeds=[1, 2], chain=[keep], intervention=slip)
    clean: list[Tensor] = []

    def clean_logits(ids: Tensor | None, x: Tensor) -> Tensor:
        clean.append(x.clone())
        return torch.full_like(x, -math.inf).index_fill(1, torch.tensor([9]), 0.0)

    decode(hf(kind), ids(2, 6), max_new_tokens=8, seeds=[1, 2], chain=[clean_logits])
    for full, part, plain in zip(found[None][1:], found[7][1:], clean[1:], strict=True):
        best = plain.topk(7, dim=-1).indices
        torch.testing.assert_close(part.gather(1, best), full.gather(1, best), atol=1e-4, rtol=1e-4)
        rest = torch.ones_like(plain, dtype=torch.bool).scatter(1, best, False)
        torch.testing.assert_close(part[rest], plain[rest], atol=1e-4, rtol=1e-4)


def test_candidates_need_a_plain_head(hf: Callable, ids: Callable) -> None:
    model, slip = hf("gpt2"), PhaseSlip(HEADS, angle=1.0, candidates=7)
    cap = model.lm_head.register_forward_hook(lambda m, i, out: torch.tanh(out))
    try:
        with pytest.raises(ConfigError, match="leave candidates at None"):
            decode(model, ids(1, 6), max_new_tokens=3, seeds=[1], intervention=slip)
    finally:
        cap.remove()
    assert not model.lm_head._forward_pre_hooks  # ours is gone after the error


def test_a_protected_prompt_is_not_slipped(hf: Callable, ids: Callable) -> None:
    model, turned = hf("gpt2"), {}
    for protect in (False, True):
        slip = PhaseSlip([(2, 0)], angle=1.0, protect_prompt=protect, window=12)
        reached: list[int] = []

        class Watched(PhaseSlip):
            def _noise(self, shape: Any, like: Tensor, reached: list = reached) -> Tensor:
                reached.append(like.shape[2])
                return super()._noise(shape, like)

        slip.__class__ = Watched
        decode(model, ids(1, 20), max_new_tokens=16, seeds=[1], intervention=slip)
        turned[protect] = reached
    assert turned[False] == [12] * 15
    assert turned[True] == [*range(1, 12), 12, 12, 12, 12]


def test_torchs_generator_and_the_tokens_streams_are_apart_from_the_slips(
    hf: Callable, ids: Callable
) -> None:
    # With the clean path alone heard, the slip changes no draw.
    plain = decode(hf("gpt2"), ids(2, 5), max_new_tokens=20, seeds=[1, 2])
    slip = PhaseSlip(HEADS, angle=1.0, anchor=1.0)
    state = torch.get_rng_state()
    out = decode(hf("gpt2"), ids(2, 5), max_new_tokens=20, seeds=[1, 2], intervention=slip)
    assert torch.equal(out, plain)
    assert torch.equal(torch.get_rng_state(), state)


# ---- phases


@pytest.mark.parametrize("mechanism", ["kuramoto", "phase_sync", "hybrid"])
def test_phases_slip_and_are_back_for_the_next_token(
    mechanism: str, make_model: Any, roughen: Any, text_ids: Any
) -> None:
    model = roughen(make_model(mechanism, n_layer=3))
    slip = PhaseSlip(target="phases", angle=1.0, anchor=1.0)
    out = decode(model, text_ids(2, 8), max_new_tokens=12, seeds=[1, 2], intervention=slip)
    assert torch.equal(out, decode(model, text_ids(2, 8), max_new_tokens=12, seeds=[1, 2]))
    assert {layer for layer, _ in slip._fitted[1]} == {0, 1, 2}
    assert all(float(step.kl.min()) > 0 for step in slip.trace)
    for part, _ in slip._parts:
        if part.phases is not None:
            cos, sin = part.phases.chunk(2, -1)
            torch.testing.assert_close(cos.square() + sin.square(), torch.ones_like(cos))
            assert torch.equal(part.phases[:2], part.phases[2:])
        else:
            assert torch.equal(part.state.cos_SBC[:, :2], part.state.cos_SBC[:, 2:])


def test_a_slip_of_phases_keeps_the_size_of_the_running_sums(
    make_model: Any, roughen: Any, text_ids: Any
) -> None:
    slip = PhaseSlip([(1, 0)], target="phases", angle=0.7, gate=None)
    decode(roughen(make_model("phase_sync")), text_ids(1, 8), max_new_tokens=3, seeds=[1],
           intervention=slip)  # fmt: skip
    ((part, heads),) = slip._parts
    before = part.state
    after = slip._slip_state(before, heads, part.oscillators)
    N = part.oscillators
    for x, y in ((before, after),):
        torch.testing.assert_close(
            x.cos_SBC.square() + x.sin_SBC.square(), y.cos_SBC.square() + y.sin_SBC.square()
        )
        assert torch.equal(x.cos_SBC[:, :1], y.cos_SBC[:, :1])  # clean
        assert torch.equal(x.cos_SBC[:, 1:, N:], y.cos_SBC[:, 1:, N:])  # the other head
    turn = torch.atan2(after.sin_SBC, after.cos_SBC) - torch.atan2(before.sin_SBC, before.cos_SBC)
    turn = (torch.remainder(turn + math.pi, 2 * math.pi) - math.pi)[:, 1:, :N].abs()
    torch.testing.assert_close(turn, torch.full_like(turn, 0.7), atol=1e-4, rtol=0)


# ---- gates and anchor


def test_the_trace_shows_what_the_gate_and_the_anchor_did(hf: Callable, ids: Callable) -> None:
    clean: list[Tensor] = []
    slip = PhaseSlip(HEADS, angle=0.4, anchor=0.3, gate=EntropyGate(1.5))
    decode(hf("gpt2"), ids(2, 6), max_new_tokens=10, seeds=[1, 2], intervention=slip)
    for step in slip.trace:
        assert step.rows == (0, 1)
        torch.testing.assert_close(step.weight, 0.7 * torch.sigmoid(step.entropy - 1.5))
        assert (step.kl >= 0).all()
        clean.append(step.entropy)
    assert entropy(torch.zeros(1, 5)).item() == pytest.approx(math.log(5))
    assert entropy(torch.tensor([[0.0, -math.inf, -math.inf]])).item() == 0
    assert f"angle {0.4:.4f}" in slip.report()


@pytest.mark.parametrize("mechanism", ["kuramoto", "phase_sync"])
def test_the_R_gate_is_open_only_where_a_head_is_over_synchronized(
    mechanism: str, make_model: Any, roughen: Any, text_ids: Any
) -> None:
    model, ids, seeds = roughen(make_model(mechanism)), text_ids(3, 8), [1, 2, 3]
    plain = decode(model, ids, max_new_tokens=12, seeds=seeds)
    weights = {}
    for threshold in (0.0, 0.35, 1.0):
        slip = PhaseSlip(target="phases", angle=2.0, anchor=0.0, gate=RGate(threshold))
        out = decode(model, ids, max_new_tokens=12, seeds=seeds, intervention=slip)
        weights[threshold] = torch.stack([step.weight for step in slip.trace])
    assert (weights[0.0] == 1).all()
    assert (weights[1.0] == 0).all()
    assert torch.equal(out, plain)  # never open: plain sampling


def test_the_R_of_the_gate_is_that_of_the_model(
    make_model: Any, roughen: Any, text_ids: Any
) -> None:
    from phasegpt.samplers.intervene import order

    model, ids = roughen(make_model("kuramoto")), text_ids(2, 9)
    with torch.no_grad():
        cache = model.new_cache()
        model(ids, cache=cache)
        theta = model(ids, return_phase=True).phase[1].theta[:, -1]
    torch.testing.assert_close(order(cache.layers[1]), order_parameter(theta), atol=1e-5, rtol=0)


# ---- the published parameters


def test_the_published_defaults_are_a_rotation_of_less_than_half_a_degree(
    hf: Callable, words: Any, capsys: Any
) -> None:
    assert rotation_of(0.03, 0.15) == pytest.approx(0.0085, abs=1e-4)
    assert rotation_of(0.03, 1.0) == pytest.approx(0.057)
    assert rotation_of(0.0, 0.15) == 0
    sampler = PhaseSlipSampler(
        hf("gpt2"), words, noise_scale=0.03, logit_fusion_alpha=0.45, perturbation_window=12
    )
    assert "0.0085 rad (0.49 degrees)" in capsys.readouterr().err
    slip = sampler.intervention
    assert (slip.anchor, slip.window) == (0.45, 12)
    sampler.calibrate_heads("Once upon a time", search_layers=2)
    err = capsys.readouterr().err
    assert "KL / angle^2" in err
    assert "chosen (layer, head)" in err
    assert len(slip.heads) == 3
    assert {layer for layer, _ in slip.heads} <= {2, 3}
    prompt = "THE ANCIENT DOOR"
    text = sampler.generate(prompt, max_new_tokens=20, temperature=0.65, seed=3)
    assert text.startswith(prompt)
    assert len(text) == len(prompt) + 20
    assert text == sampler.generate(prompt, 20, 0.65, seed=3)
    assert slip.gate.temperature == 0.65


def test_an_empty_prompt_is_an_error(hf: Callable, words: Any) -> None:
    with pytest.raises(ConfigError, match="has no tokens"):
        PhaseSlipSampler(hf("gpt2"), words).generate("")


# ---- what cannot be done


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"rotation": "geodesik"}, "did you mean rotation=geodesic"),
        ({"target": "phase"}, "did you mean target=phases"),
        ({"angle": 4}, r"angle=4 .*\[0, pi\]"),
        ({"angle": -0.1}, r"angle=-0.1"),
        ({"target_kl": 0}, "target_kl=0"),
        ({"window": 0}, "window=0"),
        ({"anchor": 1.5}, "anchor=1.5"),
        ({"candidates": 0}, "candidates=0"),
        ({"heads": []}, "slips nothing"),
        ({"heads": "best"}, "'best'"),
        ({"target": "phases", "rotation": "plane"}, "one circle"),
        ({"gate": RGate}, None),
    ],
)
def test_a_wrong_option_is_named(options: dict, says: str | None) -> None:
    if says is None:
        with pytest.raises(ConfigError, match="threshold=2"):
            RGate(2)
        return
    with pytest.raises(ConfigError, match=says):
        PhaseSlip(**options)


@pytest.mark.parametrize(
    ("heads", "says"),
    [
        ([(9, 0)], r"\(9, 0\) is not there: the model has 4 layers"),
        ([(1, 2)], r"\(1, 2\) is not there: layer 1 has 2 heads .*key/value"),
        ([(-1, 0)], r"\(-1, 0\)"),
    ],
)
def test_a_head_that_is_not_there_is_named(
    heads: list, says: str, hf: Callable, ids: Callable
) -> None:
    with pytest.raises(ConfigError, match=says):
        decode(hf("llama"), ids(1, 4), max_new_tokens=3, seeds=[1],
               intervention=PhaseSlip(heads, angle=0.2))  # fmt: skip


def test_layers_without_what_is_to_be_rotated_are_named(make_model: Any, text_ids: Any) -> None:
    options = {"max_new_tokens": 3, "seeds": [1]}
    with pytest.raises(ConfigError, match="keeps no values"):
        decode(make_model("phase_sync"), text_ids(1, 4), **options,
               intervention=PhaseSlip([(1, 0)], angle=0.2))  # fmt: skip
    with pytest.raises(ConfigError, match="keeps no phases"):
        decode(make_model("kuramoto", readout="gate"), text_ids(1, 4), **options,
               intervention=PhaseSlip([(1, 0)], angle=0.2, target="phases"))  # fmt: skip
    with pytest.raises(ConfigError, match="this one has none"):
        decode(make_model("softmax"), text_ids(1, 4), **options,
               intervention=PhaseSlip(angle=0.2, target="phases"))  # fmt: skip
    with pytest.raises(ConfigError, match="RGate needs heads with phases"):
        decode(make_model("softmax"), text_ids(1, 4), **options,
               intervention=PhaseSlip([(1, 0)], angle=0.2, gate=RGate(0.5)))  # fmt: skip


def test_a_cache_that_cannot_be_edited_is_named(hf: Callable, ids: Callable) -> None:
    from transformers import MistralConfig, MistralForCausalLM

    config = MistralConfig(
        num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=2, hidden_size=16,
        intermediate_size=16, vocab_size=65, sliding_window=8, max_position_embeddings=64,
        bos_token_id=None, eos_token_id=None,
    )  # fmt: skip
    model, slip = MistralForCausalLM(config).eval(), PhaseSlip([(1, 0)], angle=0.2)
    with pytest.raises(ConfigError, match="DynamicSlidingWindowLayer"):
        decode(model, ids(1, 4), max_new_tokens=3, seeds=[1], intervention=slip)
    assert decode(model, ids(1, 4), max_new_tokens=20, seeds=[1]).shape == (1, 24)
    from phasegpt.samplers import Sampler

    with pytest.raises(ConfigError, match="StaticLayer"):
        hf("gpt2").generate(ids(1, 4), max_new_tokens=3, cache_implementation="static",
                            custom_generate=Sampler(slip))  # fmt: skip
    with pytest.raises(ConfigError, match="use_cache=False"):
        decode(hf("gpt2"), ids(1, 4), max_new_tokens=3, seeds=[1], intervention=slip,
               use_cache=False)  # fmt: skip


@pytest.mark.filterwarnings("ignore:.*sees the future")
def test_a_model_that_sees_the_future_has_no_memory_to_slip(make_model: Any) -> None:
    leaky, ids = make_model("phase_sync", as_coded=True), torch.ones(1, 3).long()
    slip = PhaseSlip([(1, 0)], angle=0.2, target="phases")
    for use_cache in (True, False):
        with pytest.raises(ConfigError, match="future"):
            decode(leaky, ids, max_new_tokens=3, seeds=[1], intervention=slip, use_cache=use_cache)


def test_heads_that_are_changed_between_two_texts_are_used(hf: Callable, ids: Callable) -> None:
    slip, options = PhaseSlip([(1, 0)], angle=0.5), {"max_new_tokens": 4, "seeds": [1]}
    decode(hf("gpt2"), ids(1, 5), intervention=slip, **options)
    slip.heads = [(3, 2)]
    decode(hf("gpt2"), ids(1, 5), intervention=slip, **options)
    assert slip._fitted[1] == [(3, 2)]
