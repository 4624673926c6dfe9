"""Decoding is reproducible, row by row."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from phasegpt.core.errors import ConfigError, UserError
from phasegpt.samplers import KEEP, OnTokens, Stop, Temperature, build_chain, decode

MECHANISMS = ["softmax", "kuramoto", "phase_sync", "hybrid"]
# Tokens of two ways to compute them are compared in float64, where no CPU rounds to another one.
pytestmark = pytest.mark.filterwarnings("ignore:oscillators are integrated in plain PyTorch")


@pytest.fixture
def model(make_model: Any, roughen: Any) -> Any:
    """A small phase model whose logits are far from uniform."""
    return roughen(make_model("kuramoto", layers=(1,), block_size=16))


def test_greedy_decoding_follows_the_argmax(model: Any) -> None:
    ids = torch.tensor([[1, 2, 3]])
    out = decode(model, ids, max_new_tokens=10, chain=[Temperature(0)], seeds=[0])
    assert out.shape == (1, 13)
    with torch.no_grad():
        logits = model(out[:, :-1]).logits[0, 2:]
    assert torch.equal(out[0, 3:], logits.argmax(-1))


def test_a_row_equals_torch_multinomial_with_its_seed(model: Any) -> None:
    ids = torch.tensor([[5, 6]])
    out = decode(model, ids, max_new_tokens=12, seeds=[42], use_cache=False)
    torch.manual_seed(42)
    with torch.no_grad():
        for _ in range(12):
            probs = model(ids).logits[:, -1].softmax(-1)
            ids = torch.cat((ids, torch.multinomial(probs, 1)), dim=1)
    assert torch.equal(out, ids)


@pytest.mark.parametrize("mechanism", MECHANISMS)
def test_a_row_of_a_batch_equals_that_row_alone(
    make_model: Any, roughen: Any, text_ids: Any, mechanism: str
) -> None:
    model = roughen(make_model(mechanism, block_size=32, dtype=torch.float64))
    ids, seeds = text_ids(4, 8), [11, 12, 13, 11]
    options = {"max_new_tokens": 40, "chain": build_chain(temperature=1.2, top_p=0.95)}
    batch = decode(model, ids, seeds=seeds, **options)
    for row, seed in enumerate(seeds):
        alone = decode(model, ids[row : row + 1], seeds=[seed], **options)
        assert torch.equal(alone[0], batch[row])


@pytest.mark.parametrize("mechanism", MECHANISMS)
@pytest.mark.parametrize("positions", ["learned", "rope"])
def test_cached_decoding_equals_recomputation_past_the_end_of_the_context(
    make_model: Any, roughen: Any, text_ids: Any, mechanism: str, positions: str
) -> None:
    words = {"block_size": 16, "positions": positions, "dtype": torch.float64}
    model = roughen(make_model(mechanism, **words))
    ids = text_ids(2, 24)  # longer than the context, too
    for prompt in (ids[:, :5], ids):
        options = {"max_new_tokens": 50, "seeds": [1, 2]}
        cached = decode(model, prompt, **options)
        assert torch.equal(cached, decode(model, prompt, use_cache=False, **options))


def test_a_full_context_restarts_at_its_last_three_quarters(model: Any) -> None:
    seen: list[Tensor] = []
    forward = model.forward

    def spy(idx_BT: Tensor, **options: Any) -> Any:
        seen.append(idx_BT.clone())
        return forward(idx_BT, **options)

    model.forward = spy
    out = decode(model, torch.ones(1, 14, dtype=torch.int64), max_new_tokens=8, seeds=[0])
    widths = [len(window[0]) for window in seen]
    assert KEEP == 0.75  # of 16 tokens: 12
    assert widths == [14, 1, 1, 12, 1, 1, 1, 1]
    assert torch.equal(seen[3], out[:, 17 - 12 : 17])


def test_the_global_generator_and_the_mode_of_every_module_are_left_alone(model: Any) -> None:
    model.train()
    model.blocks[0].eval()
    modes = [m.training for m in model.modules()]
    state = torch.get_rng_state()
    decode(model, torch.ones(2, 3, dtype=torch.int64), max_new_tokens=5, seeds=[1, 2])
    assert torch.equal(state, torch.get_rng_state())
    assert [m.training for m in model.modules()] == modes


def test_the_result_is_the_same_whatever_the_global_generator(model: Any) -> None:
    ids = torch.ones(1, 3, dtype=torch.int64)
    first = decode(model, ids, max_new_tokens=20, seeds=[7])
    torch.rand(100)
    assert torch.equal(first, decode(model, ids, max_new_tokens=20, seeds=[7]))
    assert not torch.equal(first, decode(model, ids, max_new_tokens=20, seeds=[8]))


def test_draws_follow_the_softmax(make_model: Any, roughen: Any) -> None:
    model = roughen(make_model("softmax", vocab_size=5))
    ids = torch.tensor([[3, 1]]).expand(8000, 2)
    out = decode(model, ids, max_new_tokens=1, seeds=range(8000))
    with torch.no_grad():
        probs = model(ids[:1]).logits[0, -1].softmax(-1)
    counts = torch.bincount(out[:, 2], minlength=5) / 8000
    torch.testing.assert_close(counts, probs, atol=0.02, rtol=0)


def test_a_stopped_row_repeats_its_stop_id_and_the_others_go_on(model: Any) -> None:
    ids, seeds = torch.ones(3, 2, dtype=torch.int64), [1, 2, 3]
    free = decode(model, ids, max_new_tokens=30, seeds=seeds)
    stop = int(free[0, 6])
    steps: list[list[int]] = []
    out = decode(
        model,
        ids,
        max_new_tokens=30,
        seeds=seeds,
        stop=Stop({stop}),
        streamer=OnTokens(steps.append),
    )
    assert torch.equal(torch.tensor(steps).T, out[:, 2:])
    for row in range(3):
        where = (free[row, 2:] == stop).nonzero()
        end = 2 + int(where[0]) + 1 if len(where) else 32
        assert torch.equal(out[row, :end], free[row, : min(end, out.shape[1])])
        assert (out[row, end:] == stop).all()


def test_decoding_ends_when_every_row_has_stopped(model: Any) -> None:
    out = decode(
        model, torch.ones(2, 2, dtype=torch.int64), max_new_tokens=30, seeds=[1, 2],
        stop=Stop(range(65)),
    )  # fmt: skip
    assert out.shape == (2, 3)


def test_the_chain_sees_all_tokens_so_far(model: Any) -> None:
    lengths: list[int] = []

    def watch(ids: Tensor | None, logits: Tensor) -> Tensor:
        assert ids is not None and logits.dtype is torch.float32
        lengths.append(ids.shape[1])
        return logits

    decode(model, torch.ones(1, 15, dtype=torch.int64), max_new_tokens=4, chain=[watch], seeds=[0])
    assert lengths == [15, 16, 17, 18]


def test_no_new_tokens_gives_the_prompt_back(model: Any) -> None:
    ids = torch.ones(1, 3, dtype=torch.int64)
    assert torch.equal(decode(model, ids, max_new_tokens=0, seeds=[1]), ids)


@pytest.mark.filterwarnings("ignore:.*sees the future")
def test_a_model_that_sees_the_future_decodes_only_without_the_cache(make_model: Any) -> None:
    leaky = make_model("as_coded")
    ids = torch.ones(1, 3, dtype=torch.int64)
    with pytest.raises(ConfigError, match="sees the future"):
        decode(leaky, ids, max_new_tokens=3, seeds=[1])
    assert decode(leaky, ids, max_new_tokens=3, seeds=[1], use_cache=False).shape == (1, 6)


def remove_all(ids: Tensor | None, logits: Tensor) -> Tensor:
    return torch.full_like(logits, -math.inf)


@pytest.mark.parametrize("chain", [[], [Temperature(0)], build_chain(top_k=5, top_p=0.9)])
def test_logits_that_are_not_finite_stop_the_decoding(model: Any, chain: list[Any]) -> None:
    ids = torch.ones(1, 2, dtype=torch.int64)
    with pytest.raises(UserError, match="no token can be drawn"):
        decode(model, ids, max_new_tokens=1, seeds=[0], chain=[remove_all, *chain])
    torch.nn.init.constant_(model.transformer["ln_f"].weight, math.nan)
    with pytest.raises(UserError, match="no token can be drawn"):
        decode(model, ids, max_new_tokens=1, seeds=[0], chain=chain)


@pytest.mark.parametrize(
    ("ids", "options", "says"),
    [
        (torch.ones(2, 0, dtype=torch.int64), {"seeds": [1, 2]}, r"\[2, 0\]"),
        (torch.ones(2, 3, dtype=torch.int64), {"seeds": [1]}, "1 seeds for 2 rows"),
        (torch.full((1, 3), 65), {"seeds": [1]}, "token 65 is outside"),
        (torch.full((1, 3), -1), {"seeds": [1]}, "token -1 is outside"),
        (torch.ones(1, 3, dtype=torch.int64), {"seeds": [1], "max_new_tokens": -1}, "-1"),
    ],
)
def test_bad_arguments_are_named(model: Any, ids: Tensor, options: Any, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        decode(model, ids, **{"max_new_tokens": 1, **options})
