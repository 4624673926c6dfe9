"""What Phase-Slip cannot do is said with the value and the fix."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from phasegpt.core.errors import ConfigError
from phasegpt.samplers import KVShock, PhaseSlip, PhaseSlipSampler, RGate, decode


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
        ({"heads": [1, 2]}, r"list of \(layer, head\)"),
        ({"heads": [(7, 0.5)]}, r"list of \(layer, head\)"),
        ({"gate": "R"}, "gate='R' must be"),
        ({"target": "phases", "rotation": "plane"}, "one circle"),
        ({"angle": 0.1, "target_kl": 0.5}, r"target_kl=0\.5 does nothing beside angle=0\.1"),
    ],
)
def test_a_wrong_option_is_named(options: dict, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        PhaseSlip(**options)


def test_a_threshold_that_no_R_can_reach_is_named() -> None:
    with pytest.raises(ConfigError, match="threshold=2"):
        RGate(2)


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


def test_a_head_that_is_not_there_is_named_where_the_angle_is_to_be_found(hf: Callable) -> None:
    with pytest.raises(ConfigError, match=r"\(0, 99\) is not there"):
        PhaseSlip([(0, 99)]).fit(hf("llama"))


@pytest.mark.parametrize("unwrapped", [PhaseSlip(angle=0.3), KVShock()])
def test_an_intervention_that_is_not_wrapped_for_hugging_face_says_so(
    unwrapped: Any, hf: Callable, ids: Callable
) -> None:
    with pytest.raises(ConfigError, match="custom_generate=Sampler"):
        hf("gpt2").generate(ids(1, 4), max_new_tokens=2, custom_generate=unwrapped)


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


@pytest.mark.parametrize("option", [{"window": 5}, {"protect_prompt": True}])
@pytest.mark.parametrize("angle", [0.2, None])
def test_running_sums_have_no_positions_for_a_window(
    option: dict, angle: float | None, make_model: Any, text_ids: Any
) -> None:
    slip = PhaseSlip([(1, 0)], angle=angle, target="phases", **option)
    with pytest.raises(ConfigError, match=f"{next(iter(option))}=.* does nothing .*layer 1"):
        decode(make_model("phase_sync"), text_ids(1, 4), max_new_tokens=3, seeds=[1],
               intervention=slip)  # fmt: skip
    decode(make_model("kuramoto"), text_ids(1, 4), max_new_tokens=3, seeds=[1],
           intervention=PhaseSlip([(1, 0)], angle=0.2, target="phases", **option))  # fmt: skip


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
    leaky, ids = make_model("as_coded"), torch.ones(1, 3).long()
    slip = PhaseSlip([(1, 0)], angle=0.2, target="phases")
    for use_cache in (True, False):
        with pytest.raises(ConfigError, match="future"):
            decode(leaky, ids, max_new_tokens=3, seeds=[1], intervention=slip, use_cache=use_cache)


def test_an_empty_prompt_is_an_error(hf: Callable, words: Any) -> None:
    with pytest.raises(ConfigError, match="has no tokens"):
        PhaseSlipSampler(hf("gpt2"), words).generate("")


def test_noise_of_more_than_half_a_circle_is_refused(hf: Callable, words: Any) -> None:
    """Its vectors would be back where they were: a louder knob that does nothing."""
    with pytest.raises(ConfigError, match=r"noise_scale=2 .*1\.65"):
        PhaseSlipSampler(hf("gpt2"), words, noise_scale=2)


@pytest.mark.parametrize("name", ["noise_scale", "blend_beta"])
def test_what_an_angle_replaces_is_refused_beside_it(name: str, hf: Callable, words: Any) -> None:
    with pytest.raises(ConfigError, match=f"{name}=0.5 does nothing beside angle=0.3"):
        PhaseSlipSampler(hf("gpt2"), words, angle=0.3, **{name: 0.5})
