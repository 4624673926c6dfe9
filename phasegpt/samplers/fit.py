"""The temperature of a text under a model: the T at which the model predicts it best.

Shapes: B batch, T time, N tokens, V vocabulary, K betas.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from phasegpt.core.errors import ConfigError
from phasegpt.core.eval_mode import inference
from phasegpt.data.windows import IGNORED, EvalWindows
from phasegpt.samplers import _values
from phasegpt.samplers.models import decoder
from phasegpt.samplers.temperature import entropy, inverse

#: The temperatures of TemperatureFit.curve.
CURVE = tuple(sign * T for sign in (1, -1) for T in (0.1, 0.3, 0.5, 0.7, 0.85, 1, 1.2, 1.5, 2, 3,
                                                     5, 10, 100, math.inf))  # fmt: skip
_ROUGH_BETA = 1e4  # beyond this |beta| a text counts as drawn at T = +-0
_STEPS = 60
_AT_ONCE = 1 << 22  # logits that are looked at together in float64
_QUARTERS = 4


class Fit(NamedTuple):
    """A temperature with its standard errors (of T: by the delta method, sd(beta) / beta^2)."""

    temperature: float
    stderr: float
    beta: float
    beta_stderr: float
    nll: float  # nats per token at that temperature
    tokens: int


class Quartile(NamedTuple):
    """The fit of the tokens whose entropy at T = 1 is in [low, high], nats."""

    low: float
    high: float
    fit: Fit


class TemperatureFit(NamedTuple):
    """What fit_temperature found; `nll` are nats per token, standard errors those of `Fit`."""

    temperature: float
    stderr: float
    beta: float
    beta_stderr: float
    nll: float
    tokens: int
    nll_at_one: float
    curve: tuple[tuple[float, float], ...]  # (T, nll)
    quartiles: tuple[Quartile, ...]  # of entropy, ascending; empty for fewer than 8 tokens

    @property
    def nll_by_quartile(self) -> float | None:
        """Nats per token with a temperature of its own for every quartile of entropy.

        nll minus this is what one constant temperature costs; 2 tokens times that is about
        chi-squared with 3 degrees of freedom where the constant one is true.
        """
        if not self.quartiles:
            return None
        return sum(q.fit.nll * q.fit.tokens for q in self.quartiles) / self.tokens

    def record(self) -> dict[str, float | None]:
        """The numbers for a record, JSON-ready: what is not finite is None."""
        by_quartile = self.nll_by_quartile
        found = {
            "temperature": self.temperature,
            "temperature_stderr": self.stderr,
            "beta": self.beta,
            "beta_stderr": self.beta_stderr,
            "nll": self.nll,
            "nll_at_one": self.nll_at_one,
            "gain_by_quartile": math.nan if by_quartile is None else self.nll - by_quartile,
        }
        return {k: v if math.isfinite(v) else None for k, v in found.items()}


def fit_temperature(
    model: Any,
    text: str | Tensor | Sequence[Tensor],
    *,
    tokenizer: Any = None,
    context: int | None = None,
    prompt: int = 1,
    batch_size: int = 16,
) -> TemperatureFit:
    """The temperature that minimises the perplexity of `text` under `model` (see fit_logits).

    model: ours or Hugging Face's causal language model. text: a string for `tokenizer` (None:
    model.tokenizer), ids [T] or [B,T], or a list of texts as ids. The first `prompt` tokens of each
    text are read and not scored. Windows of `context` tokens (None: all that the model attends to,
    at most 1024) advance by half of it, so that every token but those of the first has at least
    half a context before it. `batch_size` windows are read at once, of a model that sees the future
    one. The logits stay in memory: 4 V bytes per token. Raises ConfigError.
    """
    decoding = decoder(model)
    limit = decoding.context or math.inf
    context = int(min(limit, 1024)) if context is None else _values.whole("context", context, 1)
    if context > limit:
        raise ConfigError(f"context={context} is out of range; the model attends to 1..{limit}")
    _values.whole("prompt", prompt, 1, ": nothing predicts the first token")
    batch_size = _values.whole("batch_size", batch_size, 1)
    if getattr(decoding.module, "leaky", False):
        batch_size = 1  # it would see what fills up a shorter row
    stride = max(1, context // 2)
    rows = []
    for ids in _ids(model, text, tokenizer):
        if len(ids) and not 0 <= ids.min() <= ids.max() < decoding.vocab_size:
            raise ConfigError(f"text must hold token ids in 0..{decoding.vocab_size - 1}")
        if len(ids) <= prompt:
            raise ConfigError(f"a text of {len(ids)} tokens has none after prompt={prompt}")
        windows = EvalWindows(ids, context=context, stride=stride)
        for i in range(len(windows)):
            row = windows[i]
            end = len(ids) if i == len(windows) - 1 else context + i * stride + 1
            first = end - len(row["targets"])  # the place of its first target in the text
            row["targets"][: max(0, prompt - first)] = IGNORED
            rows.append(row)
    device = next(model.parameters()).device
    logits, targets = [], []
    with inference(model):
        for first in range(0, len(rows), batch_size):
            batch = rows[first : first + batch_size]
            # Shorter rows are filled up behind their end, where a causal model looks last.
            idx_BT = nn.utils.rnn.pad_sequence([row["idx"] for row in batch], batch_first=True)
            targets_BT = nn.utils.rnn.pad_sequence(
                [row["targets"] for row in batch], batch_first=True, padding_value=IGNORED
            )
            z_BTV = model(idx_BT.to(device)).logits
            logits.append(z_BTV[(targets_BT != IGNORED).to(device)].float().cpu())
            targets.append(targets_BT[targets_BT != IGNORED])
    return fit_logits(torch.cat(logits), torch.cat(targets))


def fit_logits(logits_NV: Tensor, targets_N: Tensor) -> TemperatureFit:
    """The beta = 1 / T, of any sign, that minimises the mean of -log softmax(beta z)[target].

    That is convex in beta: with E and Var under softmax(beta z), its first derivative is
    E[z] - z_target and its second Var[z]. Newton's steps within a bracket. The standard error of
    beta is sqrt(sum (E[z] - z_target)^2) / sum Var[z], which holds under another distribution than
    softmax(beta z) too, if tokens are independent. A text of the likeliest tokens alone has
    T = +0, of the least likely -0, without a standard error (NaN). Removed tokens (-inf) may not
    be targets. The whole is computed in float64. Raises ConfigError.
    """
    targets_N = _values.whole_numbers("targets", targets_N)
    if not isinstance(logits_NV, Tensor) or not logits_NV.is_floating_point():
        raise ConfigError("logits must be a tensor [N,V] of floating-point numbers")
    _values.held("logits", logits_NV)
    if logits_NV.ndim != 2 or targets_N.shape != logits_NV.shape[:1] or not len(targets_N):
        raise ConfigError(
            f"logits of shape {list(logits_NV.shape)} and targets of {list(targets_N.shape)} must "
            f"be [N,V] and [N], N >= 1"
        )
    if int(targets_N.min()) < 0 or int(targets_N.max()) >= logits_NV.shape[1]:
        raise ConfigError(f"targets must be token ids in 0..{logits_NV.shape[1] - 1}")
    if not logits_NV.gather(-1, targets_N[:, None]).isfinite().all():
        raise ConfigError("a target's logit is not finite; leave removed tokens out of the text")
    fit = _fit(logits_NV, targets_N)
    betas = [inverse(T) for T in CURVE]
    curve = _curve(logits_NV, targets_N, [1.0, *betas])
    return TemperatureFit(
        *fit,
        nll_at_one=curve[0],
        curve=tuple(zip(CURVE, curve[1:], strict=True)),
        quartiles=_quartiles(logits_NV, targets_N),
    )


def _ids(model: Any, text: str | Tensor | Sequence[Tensor], tokenizer: Any) -> list[Any]:
    """Texts as arrays of ids."""
    if isinstance(text, str):
        tokenizer = tokenizer or getattr(model, "tokenizer", None)
        if tokenizer is None:
            raise ConfigError(
                "the text is a string and the model has no tokenizer; give tokenizer="
            )
        return [np.asarray(tokenizer.encode(text))]
    texts = [text] if isinstance(text, Tensor) and text.ndim < 2 else text
    texts = list(texts) if isinstance(texts, Iterable) else []
    if not texts or not all(isinstance(ids, Tensor) and ids.ndim == 1 for ids in texts):
        raise ConfigError(
            "text must be a string, ids [T], ids [B,T] (a text per row), or a list of texts as "
            "tensors of ids"
        )
    return [_values.whole_numbers("text", ids).cpu().numpy() for ids in texts]


def _moments(logits_NV: Tensor, targets_N: Tensor, beta: float) -> Tensor:
    """Nats, first and second derivative of each token's nats at beta: [3,N], float64."""
    parts = []
    size = max(1, _AT_ONCE // logits_NV.shape[1])
    for z, y in zip(logits_NV.split(size), targets_N.split(size), strict=True):
        z = z.double()
        z = z - z.gather(-1, y[:, None])  # softmax does not notice, and the target's is 0
        left = z > -math.inf
        z = z.masked_fill(~left, 0)
        logp = (beta * z).masked_fill(~left, -math.inf).log_softmax(dim=-1)
        p = logp.exp()
        mean = (p * z).sum(-1)
        variance = (p * (z - mean[:, None]).square()).sum(-1)
        parts.append(torch.stack((-logp.gather(-1, y[:, None])[:, 0], mean, variance)))
    return torch.cat(parts, dim=1)


def _curve(logits_NV: Tensor, targets_N: Tensor, betas_K: Sequence[float]) -> list[float]:
    return [_moments(logits_NV, targets_N, beta)[0].mean().item() for beta in betas_K]


def _fit(logits_NV: Tensor, targets_N: Tensor) -> Fit:
    """Newton from beta = 1, kept within a bracket of the derivative's sign change."""
    n = len(targets_N)
    low, high, beta = -math.inf, math.inf, 1.0
    for _ in range(_STEPS):
        nats_N, slope_N, curvature_N = _moments(logits_NV, targets_N, beta)
        slope, curvature = slope_N.mean().item(), curvature_N.mean().item()
        low, high = (beta, high) if slope < 0 else (low, beta)
        step = -slope / curvature if curvature > 0 else math.copysign(math.inf, -slope)
        if slope == 0 or abs(step) <= 1e-9 * max(1e-3, abs(beta)):
            break
        # At most thrice as far out: far from the minimum the curvature is nearly 0.
        step = max(-2 * abs(beta) - 1, min(2 * abs(beta) + 1, step))
        if not low < beta + step < high:
            step = (low + high) / 2 - beta
        if abs(beta + step) > _ROUGH_BETA:
            beta = math.copysign(math.inf, beta + step)
            return Fit(inverse(beta), math.nan, beta, math.nan, _limit(logits_NV, targets_N), n)
        beta += step
    total = curvature_N.sum().item()
    stderr = slope_N.square().sum().sqrt().item() / total if total else math.nan
    delta = stderr / beta**2 if beta else math.inf
    return Fit(inverse(beta), delta, beta, stderr, nats_N.mean().item(), n)


def _limit(logits_NV: Tensor, targets_N: Tensor) -> float:
    """Nats per token of a text at T = +-0: none but those of ties."""
    z_N1 = logits_NV.gather(-1, targets_N[:, None])
    return (logits_NV == z_N1).sum(-1).double().log().mean().item()


def _quartiles(logits_NV: Tensor, targets_N: Tensor) -> tuple[Quartile, ...]:
    """The fits of four equal parts of the tokens, by entropy."""
    if len(targets_N) < 2 * _QUARTERS:
        return ()
    entropy_N = torch.cat([entropy(z) for z in logits_NV.split(_AT_ONCE // logits_NV.shape[1] + 1)])
    found = []
    for part in entropy_N.argsort(stable=True).tensor_split(_QUARTERS):
        H = entropy_N[part]
        found.append(Quartile(H[0].item(), H[-1].item(), _fit(logits_NV[part], targets_N[part])))
    return tuple(found)
