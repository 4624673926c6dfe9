"""Rotary angles: computed once for all layers, with the bits that each would compute."""

import pytest
import torch

from phasegpt.attention import _functional
from phasegpt.attention._functional import rotary, rotary_angles, rotate, turn
from phasegpt.model.config import GPTConfig
from phasegpt.model.gpt import GPT


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_what_is_kept_turns_as_angles_that_are_computed_anew(dtype) -> None:
    x = torch.randn(2, 3, 20, 8).to(dtype)
    anew = _functional._angles(5, 20, 4, x.device, 500.0)
    assert torch.equal(rotary_angles(5, 20, 4, x.device, 500.0), anew)
    kept = turn(x, *rotary(5, 20, 4, x, 500.0))
    assert torch.equal(kept, rotate(x, anew)) and kept.dtype == dtype


@pytest.mark.parametrize("attention", ["softmax", "phase_sync", "kope", "lohe"])
def test_all_layers_of_a_model_share_one_computation(attention, monkeypatch) -> None:
    made, real = [], _functional._angles

    def counts(*given):
        made.append(given)
        return real(*given)

    monkeypatch.setattr(_functional, "_angles", counts)
    model = GPT(
        GPTConfig(vocab_size=7, block_size=16, n_layer=4, n_head=2, n_embd=16, positions="rope",
                  attention=attention, attention_layers=(0, 1, 2, 3), rope_theta=321.0),
        seed=0,
    ).eval()  # fmt: skip
    idx = torch.arange(13).remainder(7)[None]
    for kept in (_functional._kept_angles, _functional._kept_turn):
        kept.cache_clear()
    with torch.inference_mode():
        first = model(idx).logits
    assert len(made) == 1
    model(idx).logits.sum().backward()  # what was kept without gradients serves a training
    assert len(made) == 1 and torch.equal(model(idx).logits, first)
    assert not any("angle" in name or "rot" in name for name in model.state_dict())
