"""Temperatures of any sign keep their limits, and the one of a text is recovered from it."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from helpers import TEXT
from torch import Tensor

from phasegpt.core.errors import ConfigError
from phasegpt.samplers import (
    DynamicTemperature,
    NegativeBursts,
    Temperature,
    TemperatureFit,
    decode,
    entropy,
    fit_logits,
    fit_temperature,
)

EDGES = [1.0, 1e-300, 5e-324, 0.0, -0.0, math.inf, -math.inf, -1.0, -0.001, -1e-300, 1e300, 0.3]


@pytest.fixture
def logits() -> Tensor:
    return 3 * torch.randn(6, 50, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def masked(logits: Tensor) -> Tensor:
    return logits.masked_fill(torch.arange(50) % 2 == 0, -math.inf)


def one_hot(ids: Tensor) -> Tensor:
    return torch.nn.functional.one_hot(ids, 50).float()


# ---- one temperature


@pytest.mark.parametrize("temperature", EDGES)
def test_no_temperature_gives_nan_or_brings_a_removed_token_back(
    masked: Tensor, temperature: float
) -> None:
    for z in (masked, masked * 1e30, masked.half(), masked.bfloat16(), masked.double()):
        out = Temperature(temperature)(None, z)
        assert not out.isnan().any()
        probs = out.softmax(-1)
        assert probs.isfinite().all()
        assert (probs[:, ::2] == 0).all()


@pytest.mark.parametrize("temperature", [0.01, 0.3, 1.0, 50.0, 1e30, -1e30, -50.0, -1.0, -0.3])
def test_probabilities_are_those_of_float64(masked: Tensor, temperature: float) -> None:
    z = masked.double()
    expected = (z[:, 1::2] / temperature).softmax(-1).float()
    probs = Temperature(temperature)(None, masked).softmax(-1)[:, 1::2]
    torch.testing.assert_close(probs, expected, rtol=1e-4, atol=1e-6)


def test_the_limits_are_argmax_uniform_and_argmin(logits: Tensor, masked: Tensor) -> None:
    left = masked.masked_fill(masked == -math.inf, math.inf)
    for cold in (0, 0.0, 1e-300):
        assert torch.equal(Temperature(cold)(None, masked).softmax(-1), one_hot(masked.argmax(-1)))
    for cold in (-0.0, -1e-300):
        assert torch.equal(Temperature(cold)(None, masked).softmax(-1), one_hot(left.argmin(-1)))
    for hot in (math.inf, -math.inf):
        probs = Temperature(hot)(None, masked).softmax(-1)
        torch.testing.assert_close(probs[:, 1::2], torch.full((6, 25), 1 / 25))
    assert Temperature(1)(None, logits) is logits


def test_of_equal_logits_the_lowest_id_is_kept() -> None:
    z = torch.tensor([[-math.inf, 2.0, 1.0, 2.0, 1.0, -math.inf]])
    assert Temperature(0)(None, z).softmax(-1).tolist() == [[0, 1, 0, 0, 0, 0]]
    assert Temperature(-0.0)(None, z).softmax(-1).tolist() == [[0, 0, 1, 0, 0, 0]]


def test_beta_is_the_inverse_temperature_and_goes_through_zero(logits: Tensor) -> None:
    for temperature, beta in ((0.5, 2.0), (-4.0, -0.25), (0.0, math.inf), (-math.inf, -0.0)):
        assert Temperature(temperature).beta == beta
        assert math.copysign(1, Temperature(temperature).beta) == math.copysign(1, beta)
        a, b = Temperature(temperature)(None, logits), Temperature(beta=beta)(None, logits)
        assert torch.equal(a, b)
    near = [Temperature(beta=b)(None, logits).softmax(-1) for b in (1e-6, -1e-6)]
    torch.testing.assert_close(near[0], near[1], atol=1e-5, rtol=1e-3)


def test_a_row_without_a_token_left_stays_undrawable() -> None:
    for temperature in EDGES:
        out = Temperature(temperature)(None, torch.full((1, 4), -math.inf))
        assert out.softmax(-1).isnan().all(), temperature
        out = Temperature(temperature)(None, torch.tensor([[0.0, math.nan, 1.0]]))
        assert out.softmax(-1).isnan().any(), temperature


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: Temperature(), "give one of the two"),
        (lambda: Temperature(1.0, beta=1.0), "give one of the two"),
        (lambda: Temperature(math.nan), "temperature=nan"),
        (lambda: Temperature(beta=math.nan), "beta=nan"),
        (lambda: Temperature("hot"), "temperature='hot'"),
        (lambda: Temperature(True), "temperature=True"),
        (lambda: DynamicTemperature(-1, 1), "of one sign"),
        (lambda: DynamicTemperature(0, math.inf), "finite"),
        (lambda: DynamicTemperature(0, 1, exponent=0), "exponent=0"),
        (lambda: NegativeBursts(1.0, every=3), "must be negative"),
        (lambda: NegativeBursts(0, every=3), "must be negative"),
        (lambda: NegativeBursts(every=0), "every=0"),
        (lambda: NegativeBursts(every=2, length=3), "at most every=2"),
    ],
)
def test_a_temperature_that_means_nothing_is_named(make: Any, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        make()


# ---- by entropy, and in bursts


@pytest.mark.parametrize("sign", [1, -1])
def test_dynamic_temperature_follows_the_entropy_of_what_is_left(masked: Tensor, sign: int) -> None:
    out = DynamicTemperature(sign * 0.5, sign * 2.0, exponent=1.5)(None, masked)
    for row, found in zip(masked, out, strict=True):
        p = row.softmax(-1)[1::2].double()
        h = float(-(p * p.log()).sum()) / math.log(25)
        expected = Temperature(sign * (0.5 + 1.5 * h**1.5))(None, row[None]).softmax(-1)[0]
        torch.testing.assert_close(found.softmax(-1), expected, rtol=1e-3, atol=1e-6)
    equal = DynamicTemperature(sign * 0.7, sign * 0.7)(None, masked)
    torch.testing.assert_close(equal, Temperature(sign * 0.7)(None, masked))
    sure = torch.tensor([[0.0, -math.inf, -math.inf]])
    assert DynamicTemperature(0, 1)(None, sure).softmax(-1).tolist() == [[1, 0, 0]]


def test_bursts_end_every_stretch_and_are_counted_from_the_prompt(
    make_model: Any, roughen: Any
) -> None:
    model = roughen(make_model("softmax"))
    chain = [NegativeBursts(-0.0, every=5, length=2, start=3, between=Temperature(0))]
    out = decode(model, torch.tensor([[1, 2, 3]]), max_new_tokens=20, chain=chain, seeds=[0])
    with torch.no_grad():
        z = model(out[:, :-1]).logits[0, 2:]
    least, most = out[0, 3:] == z.argmin(-1), out[0, 3:] == z.argmax(-1)
    assert least.tolist() == [False, False, False, True, True] * 4
    assert most.tolist() == [True, True, True, False, False] * 4


# ---- fitting


def draws(temperature: float, n: int = 12000, V: int = 30) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(7)
    z = 2 * torch.randn(n, V, generator=generator)
    return z, torch.multinomial((z / temperature).softmax(-1), 1, generator=generator)[:, 0]


@pytest.mark.parametrize("temperature", [0.3, 0.65, 1, 1.7, 3, -3, -1, -0.3])
def test_the_temperature_of_a_sample_is_recovered(temperature: float) -> None:
    z, y = draws(temperature)
    fit = fit_logits(z, y)
    error = abs(fit.temperature - temperature)
    assert error <= max(0.03 * abs(temperature), 3 * fit.stderr)
    assert fit.stderr < 0.03 * abs(temperature)
    assert fit.tokens == 12000
    nll = torch.nn.functional.cross_entropy(z.double() * fit.beta, y).item()
    assert fit.nll == pytest.approx(nll, abs=1e-9)
    assert fit.nll <= min(value for _, value in fit.curve) <= fit.nll_at_one + 1e-12
    for T, value in fit.curve:
        assert value == pytest.approx(
            torch.nn.functional.cross_entropy(z.double() / T, y).item(), abs=1e-9
        )


def test_the_standard_error_is_that_of_repeated_samples() -> None:
    z, _ = draws(1.0, n=400)
    generator = torch.Generator().manual_seed(3)
    p = (z / -2.0).softmax(-1)
    fits = [
        fit_logits(z, torch.multinomial(p, 1, generator=generator)[:, 0]) for _ in range(60)
    ]  # fmt: skip
    spread = float(np.std([fit.beta for fit in fits], ddof=1))
    assert 0.7 < np.mean([fit.beta_stderr for fit in fits]) / spread < 1.4


def test_the_ends_of_the_scale_are_zero_of_either_sign_and_infinity() -> None:
    z, _ = draws(1.0)
    greedy, inverse = fit_logits(z, z.argmax(-1)), fit_logits(z, z.argmin(-1))
    assert (greedy.temperature, greedy.beta, greedy.nll) == (0.0, math.inf, 0.0)
    assert math.copysign(1, inverse.temperature) == -1 and inverse.beta == -math.inf
    assert math.isnan(greedy.stderr)
    assert greedy.record()["beta"] is None and greedy.record()["nll"] == 0
    uniform = fit_logits(z, torch.randint(30, (12000,), generator=torch.Generator().manual_seed(1)))
    assert abs(uniform.beta) < 3 * uniform.beta_stderr
    assert uniform.nll == pytest.approx(math.log(30), abs=0.01)


def test_removed_tokens_do_not_count() -> None:
    z, y = draws(0.7, n=3000)
    wide = torch.cat((z, torch.full((3000, 5), -math.inf)), dim=1)
    fit, plain = fit_logits(wide, y), fit_logits(z, y)
    assert fit.temperature == pytest.approx(plain.temperature, rel=1e-12)
    assert fit.nll == pytest.approx(plain.nll, rel=1e-12)
    with pytest.raises(ConfigError, match="not finite"):
        fit_logits(wide, torch.full((3000,), 32))
    with pytest.raises(ConfigError, match=r"\[3000, 30\]"):
        fit_logits(z, y[:5])


def test_quartiles_of_entropy_find_a_temperature_that_depends_on_it() -> None:
    generator = torch.Generator().manual_seed(7)
    scale = torch.linspace(0.5, 4, 12000)[:, None]  # low entropy at the end
    z = scale * torch.randn(12000, 30, generator=generator)
    sharp = entropy(z) < entropy(z).median()
    T = torch.where(sharp, 0.5, 2.0)[:, None]
    y = torch.multinomial((z / T).softmax(-1), 1, generator=generator)[:, 0]
    fit = fit_logits(z, y)
    assert [round(q.fit.temperature, 1) for q in fit.quartiles] == [0.5, 0.5, 2.0, 2.0]
    assert [q.fit.tokens for q in fit.quartiles] == [3000] * 4
    assert all(q.high <= r.low for q, r in zip(fit.quartiles, fit.quartiles[1:], strict=False))
    assert fit.nll_by_quartile is not None
    assert fit.nll - fit.nll_by_quartile > 0.05
    constant = fit_logits(*draws(0.5))
    assert 0 <= constant.nll - (constant.nll_by_quartile or 0) < 10 / 12000
    assert fit_logits(z[:5], y[:5]).quartiles == ()


def test_the_temperature_of_our_own_models_text_is_recovered(make_model: Any, roughen: Any) -> None:
    model = roughen(make_model("kuramoto", layers=(1,)))
    ids = torch.randint(65, (40, 2), generator=torch.Generator().manual_seed(0))
    for temperature in (0.6, -1.0):
        out = decode(
            model, ids, max_new_tokens=60, chain=[Temperature(temperature)], seeds=range(40)
        )
        fit = fit_temperature(model, list(out), prompt=2)
        assert abs(fit.beta - 1 / temperature) < 4 * fit.beta_stderr
        assert fit.beta_stderr < 0.1 / abs(temperature)
        assert fit.tokens == 40 * 60


def test_a_text_is_scored_once_whatever_the_windows_and_after_its_prompt(
    make_model: Any, roughen: Any
) -> None:
    model = roughen(make_model("softmax", block_size=32))
    alphabet = sorted(set(TEXT))

    class Letters:
        def encode(self, text: str) -> list[int]:
            return [alphabet.index(c) for c in text]

    text = TEXT[:300]
    fit = fit_temperature(model, text, tokenizer=Letters())
    assert fit.tokens == 299
    assert fit_temperature(model, text, tokenizer=Letters(), prompt=40, context=8).tokens == 260
    ids = torch.tensor(Letters().encode(text))
    assert fit_temperature(model, ids, batch_size=1).nll == pytest.approx(fit.nll, abs=1e-6)
    mixed = fit_temperature(model, [ids[:20], ids[20:120], ids[120:150]], prompt=3, batch_size=2)
    assert mixed.tokens == 17 + 97 + 27
    with torch.no_grad():
        z = model(ids[None, :20]).logits[0]
    alone = fit_temperature(model, [ids[:20]], prompt=3)
    expected = fit_logits(z[2:19], ids[3:20])
    assert alone.nll == pytest.approx(expected.nll, abs=1e-5)
    for words, says in (
        ({}, "has no tokenizer"),
        ({"tokenizer": Letters(), "context": 33}, "context=33"),
        ({"tokenizer": Letters(), "prompt": 0}, "prompt=0"),
        ({"tokenizer": Letters(), "prompt": 300}, "none after prompt=300"),
    ):
        with pytest.raises(ConfigError, match=says):
            fit_temperature(model, text, **words)


@pytest.mark.filterwarnings("ignore:.*sees the future")
def test_a_model_that_sees_the_future_is_fitted_to_each_text_alone(
    make_model: Any, roughen: Any
) -> None:
    model, ids = roughen(make_model("as_coded")), torch.arange(60) % 50
    texts = [ids, ids[:9], ids[:31]]
    one, many = (fit_temperature(model, texts, batch_size=n) for n in (1, 3))
    assert one == many


def test_rows_of_ids_are_texts_and_what_is_no_text_is_refused(make_model: Any) -> None:
    model, rows = make_model("softmax"), torch.arange(60).reshape(3, 20)
    assert fit_temperature(model, rows) == fit_temperature(model, list(rows))
    for text in ([], [[1, 2]], ["a", "b"], torch.zeros(1, 2, 3)):
        with pytest.raises(ConfigError, match="list of texts as tensors of ids"):
            fit_temperature(model, text)


def test_hugging_faces_models_are_fitted_too() -> None:
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(3)
    config = GPT2Config(
        n_layer=1, n_head=2, n_embd=16, vocab_size=40, n_positions=64, initializer_range=0.6
    )
    model = GPT2LMHeadModel(config).eval()
    ids = torch.zeros(20, 1, dtype=torch.int64)
    with torch.no_grad():
        for _ in range(63):
            p = (model(ids).logits[:, -1] / 0.5).softmax(-1)
            ids = torch.cat((ids, torch.multinomial(p, 1)), dim=1)
    fit = fit_temperature(model, list(ids))
    assert isinstance(fit, TemperatureFit)
    assert abs(fit.temperature - 0.5) < max(0.03 * 0.5, 4 * fit.stderr)
