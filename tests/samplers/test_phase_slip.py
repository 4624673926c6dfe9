"""Phase-Slip is what it says: an untouched clean path, the stated logits, the stated defaults."""

import copy
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from phasegpt.core.errors import ConfigError
from phasegpt.samplers import EntropyGate, PhaseSlip, PhaseSlipSampler, Prompt, Temperature, decode
from phasegpt.samplers.classic import rotation_of
from phasegpt.samplers.intervene import entropy
from phasegpt.samplers.models import decoder

KINDS = ["gpt2", "llama"]
HEADS = [(1, 0), (2, 0), (2, 1)]
every_kind = pytest.mark.parametrize("kind", KINDS)


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


@pytest.mark.parametrize("pads", [[0, 3, 3], [0, 0, 3, 3, 3, 3]])
def test_candidates_with_rows_of_unequal_length_are_each_row_alone(
    pads: list[int], make_model: Any, roughen: Any, text_ids: Callable
) -> None:
    # The second group has 2B rows of the first: its prompt is no step of a second path.
    model, prompt = roughen(make_model("softmax", n_layer=3)), text_ids(len(pads), 8)
    mask = torch.ones_like(prompt)
    for row, pad in enumerate(pads):
        mask[row, :pad] = 0
    options = {"max_new_tokens": 6, "chain": [Temperature(3.0)]}
    slip = PhaseSlip([(1, 0)], angle=0.8, candidates=20)
    seeds = list(range(len(pads)))
    out = decode(model, Prompt(prompt, mask), seeds=seeds, intervention=slip, **options)
    for row, pad in enumerate(pads):
        alone = decode(
            model, prompt[row : row + 1, pad:], seeds=[row], intervention=slip, **options
        )
        assert torch.equal(out[row, pad:], alone[0]), row


def test_candidates_at_angle_0_are_the_clean_logits(hf: Callable, ids: Callable) -> None:
    class Almost(torch.nn.Linear):  # within the tolerance for a head's rounding
        def forward(self, x: Tensor) -> Tensor:
            logits = super().forward(x)
            return 200 * torch.tanh(logits / 200)

    model = copy.deepcopy(hf("gpt2"))
    head = Almost(32, 65, bias=False)
    head.weight = model.lm_head.weight
    model.set_output_embeddings(head)
    slip = PhaseSlip(HEADS, angle=0.0, force=True, candidates=9, anchor=0.0, gate=None)
    both: list[list[Tensor]] = []
    for intervention in (slip, None):
        logits: list[Tensor] = []

        def keep(ids: Tensor | None, x: Tensor, logits: list = logits) -> Tensor:
            logits.append(x.clone())
            return x

        decode(model, ids(2, 6), max_new_tokens=6, seeds=[1, 2], chain=[keep],
               intervention=intervention)  # fmt: skip
        both.append(logits)
    for ours, plain in zip(*both, strict=True):
        torch.testing.assert_close(ours, plain, atol=1e-5, rtol=0)


def test_candidates_need_a_plain_head(hf: Callable, ids: Callable) -> None:
    model, slip = hf("gpt2"), PhaseSlip(HEADS, angle=1.0, candidates=7)
    cap = model.lm_head.register_forward_hook(lambda m, i, out: torch.tanh(out))
    try:
        with pytest.raises(ConfigError, match="leave candidates at None"):
            decode(model, ids(1, 6), max_new_tokens=3, seeds=[1], intervention=slip)
    finally:
        cap.remove()
    assert not model.lm_head._forward_pre_hooks  # ours is gone after the error
    quantized = torch.ao.quantization.quantize_dynamic(copy.deepcopy(model), {torch.nn.Linear})
    with pytest.raises(ConfigError, match="leave candidates at None"):
        decode(quantized, ids(1, 6), max_new_tokens=3, seeds=[1], intervention=slip)


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


def test_a_gate_that_was_set_keeps_its_center(hf: Callable, words: Any) -> None:
    sampler = PhaseSlipSampler(hf("gpt2"), words, angle=0.3, heads=HEADS)
    assert "nothing decoded yet" in sampler.intervention.report()
    sampler.intervention.gate = EntropyGate(center=-50.0)
    sampler.generate("HELLO", max_new_tokens=3, temperature=0.5, seed=1)
    assert (sampler.intervention.gate.center, sampler.intervention.gate.temperature) == (-50, 0.5)
    assert all(float(step.weight) == pytest.approx(0.55) for step in sampler.intervention.trace)


def test_a_temperature_may_be_a_processor(hf: Callable, words: Any) -> None:
    sampler = PhaseSlipSampler(hf("gpt2"), words, angle=0.3, heads=HEADS)
    texts = [
        sampler.generate("HELLO", max_new_tokens=9, temperature=temperature, seed=1)
        for temperature in (1.0, Temperature(1.0), Temperature(-0.5))
    ]
    assert texts[0] == texts[1] != texts[2]
    assert sampler.intervention.gate.temperature == 1


def test_ids_without_a_text_are_never_drawn(hf: Callable, words: Any) -> None:
    words.vocab_size = 40  # of the model's 65
    sampler = PhaseSlipSampler(hf("gpt2"), words, angle=0.3, heads=HEADS)
    text = sampler.generate("HELLO", max_new_tokens=50, temperature=-1.0, seed=1)
    assert max(words.encode(text[5:])) < 40


def test_slips_without_seeds_differ_by_text_and_follow_torchs_seed(
    hf: Callable, ids: Callable
) -> None:
    slip = PhaseSlip(HEADS, angle=1.0, anchor=0.0, gate=None)

    def first_kl() -> float:
        decode(hf("gpt2"), ids(1, 6), max_new_tokens=2, seeds=None, intervention=slip)
        return float(slip.trace[0].kl)

    torch.manual_seed(3)
    one, other = first_kl(), first_kl()
    torch.manual_seed(3)
    assert first_kl() == one != other


def test_heads_that_are_changed_between_two_texts_are_used(hf: Callable, ids: Callable) -> None:
    slip, options = PhaseSlip([(1, 0)], angle=0.5), {"max_new_tokens": 4, "seeds": [1]}
    decode(hf("gpt2"), ids(1, 5), intervention=slip, **options)
    slip.heads = [(3, 2)]
    decode(hf("gpt2"), ids(1, 5), intervention=slip, **options)
    assert slip._fitted[1] == [(3, 2)]


def test_other_weights_in_the_same_model_are_fitted_anew(make_model: Any) -> None:
    model, other = make_model("softmax", seed=0), make_model("softmax", seed=5)
    slip = PhaseSlip()
    for wanted in (model, other):
        model.load_state_dict(wanted.state_dict())
        slip.start(decoder(model))
        assert slip._fitted is not None and slip._fitted[1:] == PhaseSlip().fit(wanted)
