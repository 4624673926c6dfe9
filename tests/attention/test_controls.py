"""`uniform` and `no_mixing`, the controls without a choice: against loops, and in a cache."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from phasegpt.core.errors import ConfigError
from phasegpt.samplers import PhaseSlip, decode

F64 = torch.float64


@pytest.mark.parametrize("name", ["uniform", "no_mixing"])
def test_a_control_equals_a_loop_over_tokens(
    name: str, make_model: Callable[..., Any], roughen: Callable[[Any], Any]
) -> None:
    layer = roughen(make_model(name, layers=(1,)).blocks[1].attn.double())
    x_BTD = torch.randn(2, 9, layer.n_embd, dtype=F64)
    with torch.no_grad():
        v, found = layer.c_v(x_BTD), layer(x_BTD).y
        for t in range(9):
            first = 0 if name == "uniform" else t
            mean_BD = sum(v[:, u] for u in range(first, t + 1)) / (t + 1 - first)
            torch.testing.assert_close(found[:, t], layer.c_proj(mean_BD), atol=1e-12, rtol=0)


@pytest.mark.parametrize(("name", "numbers"), [("uniform", 1), ("no_mixing", 0)])
def test_a_control_remembers_as_much_of_many_tokens_as_of_few(
    name: str, numbers: int, make_model: Callable[..., Any]
) -> None:
    model = make_model(name, layers=(1,))
    cache = model.new_cache()
    for _ in range(3):
        model(torch.randint(60, (2, 5)), cache=cache)
        (part,) = cache.parts(1)
        held = 0 if part.state is None else part.state.sum_1BD[:, 0].numel()
        assert part.keys is None
        assert held == numbers * model.config.n_embd


def test_uniform_sums_in_float32_under_bf16_autocast(make_model: Callable[..., Any]) -> None:
    layer = make_model("uniform", layers=(1,)).blocks[1].attn
    x_BTD = torch.ones(1, 600, layer.n_embd)  # in bf16 a sum of ones stops at 256
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = layer(x_BTD).y
    torch.testing.assert_close(y[:, -1], y[:, 0])


@pytest.mark.parametrize("name", ["uniform", "no_mixing"])
@pytest.mark.parametrize("target", ["values", "phases"])
def test_a_slip_in_a_control_is_refused_by_name(
    name: str, target: str, make_model: Callable[..., Any], text_ids: Callable[..., Any]
) -> None:
    slip = PhaseSlip([(1, 0)], target=target, angle=0.5)
    with pytest.raises(ConfigError, match=f"layer 1 keeps no {target} to rotate"):
        decode(make_model(name), text_ids(1, 8), max_new_tokens=2, seeds=[1], intervention=slip)
