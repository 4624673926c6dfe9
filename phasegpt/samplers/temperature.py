"""Temperatures of any sign: constant, by entropy, and in bursts.

Softmax at temperature T draws token i with p_i ~ exp(beta z_i), beta = 1 / T. beta goes through
every sign without a break: T = +0 (beta = +inf) is the likeliest token, T = 1 the model's own
distribution, T = +-inf (beta = +-0) uniform, T = -1 the inverse 1 / p_i, T = -0 the least likely
token. A removed token (logit -inf) stays removed at every temperature.

Shapes: B batch, T time, V vocabulary.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from phasegpt.core.arguments import tensor
from phasegpt.core.errors import ConfigError
from phasegpt.samplers import _values
from phasegpt.samplers.processor import Processor, of_logits, of_tokens


class Temperature:
    """Logits times beta = 1 / T, for T (`temperature`) or beta of any sign, +-0 and +-inf too.

    Of equal largest (T = +0) or smallest (T = -0) logits, the lowest id is kept. T = 1 changes
    nothing. In Python and YAML -0.0 is a negative zero and -0 is not. Raises ConfigError for NaN,
    and unless exactly one of the two is given.
    """

    def __init__(self, temperature: float | None = None, *, beta: float | None = None) -> None:
        if (temperature is None) == (beta is None):
            raise ConfigError(
                f"temperature={temperature} and beta={beta}: give one of the two, beta = 1 / T"
            )
        if beta is not None:
            self.beta = _values.real("beta", beta)
        else:
            self.beta = inverse(_values.real("temperature", temperature))

    @of_logits
    def __call__(self, ids: Tensor | None, logits: Tensor) -> Tensor:
        """Logits[B,V] -> logits[B,V], float32 at least."""
        if self.beta == 1:
            return logits
        return sharpened(logits, torch.tensor(self.beta, dtype=torch.float64))


class DynamicTemperature:
    """A temperature for each row by its entropy: `low` where the model is sure, `high` where not.

    T = low + (high - low) h^exponent, h = entropy at T = 1 / ln(tokens that are left), in [0, 1].
    The two have one sign, or are 0. Raises ConfigError. Source: the "dynamic temperature" of
    koboldcpp and llama.cpp.
    """

    def __init__(self, low: float, high: float, exponent: float = 1.0) -> None:
        self.low, self.high = _values.real("low", low), _values.real("high", high)
        if math.isinf(self.low) or math.isinf(self.high) or self.low * self.high < 0:
            raise ConfigError(
                f"low={low} and high={high} must be finite and of one sign: between them "
                f"T = 0 would jump from the likeliest token to the least likely one"
            )
        self.exponent = _values.between("exponent", exponent, 0, closed=False)

    @of_logits
    def __call__(self, ids: Tensor | None, logits: Tensor) -> Tensor:
        """Logits[B,V] -> logits[B,V], float32 at least."""
        left_B1 = (logits > -math.inf).sum(dim=-1, keepdim=True).clamp(min=2)
        share_B1 = (entropy(logits)[..., None] / left_B1.log()).clamp(0, 1) ** self.exponent
        temperature_B1 = self.low + (self.high - self.low) * share_B1.double()
        sign = math.copysign(1.0, self.low + self.high)  # of -0.0 too
        return sharpened(logits, sign / temperature_B1.abs())


class NegativeBursts:
    """For `length` tokens in every `every` a negative temperature; `between` for the others.

    Tokens are counted from position `start`, the length of the prompt: one for all rows, so decode
    prompts of each length by themselves. Each stretch of `every` tokens ends with its burst.
    `between` is any processor, None: T = 1. T = -inf draws the tokens of a burst uniformly. Raises
    ConfigError.
    """

    def __init__(
        self,
        temperature: float = -1.0,
        *,
        every: int,
        length: int = 1,
        start: int = 0,
        between: Processor | None = None,
    ) -> None:
        number = _values.real("burst temperature", temperature)
        if math.copysign(1.0, number) > 0:
            raise ConfigError(f"burst temperature={temperature} must be negative, or -0.0")
        self.every, self.length = (
            _values.whole("every", every, 1),
            _values.whole("length", length, 1),
        )
        if length > every:
            raise ConfigError(f"length={length} must be at most every={every}")
        self.start = _values.whole("start", start, 0)
        self.burst, self.between = Temperature(number), _values.processor("between", between)

    @of_tokens
    def __call__(self, ids: Tensor | None, logits: Tensor) -> Tensor:
        """Logits[B,V] -> logits[B,V]; ids[B,T] only tell how many tokens there are."""
        assert ids is not None
        if (ids.shape[1] - self.start) % self.every >= self.every - self.length:
            return self.burst(ids, logits)
        return logits if self.between is None else self.between(ids, logits)


def inverse(x: float) -> float:
    """1 / x with 1 / +-0 = +-inf: beta of a temperature, or the temperature of a beta."""
    return 1 / x if x else math.copysign(math.inf, x)


def entropy(logits: Tensor) -> Tensor:
    """Entropy of softmax(logits) in nats, [...,V] -> [...]; removed tokens count nothing."""
    logp = tensor("logits", logits, of="floating-point").log_softmax(dim=-1)
    return torch.special.entr(logp.exp()).sum(dim=-1)


def sharpened(logits: Tensor, beta: Tensor) -> Tensor:
    """Beta (z - reference) in float32 at least, -inf where logits[...,V] are; beta [] or [...,1].

    The reference, the largest logit left for beta > 0 and the smallest for beta < 0, is taken
    off first, so that nothing but removed tokens overflows. Where beta overflows float32 only
    the reference's first token is left. NaN stays NaN.
    """
    z = logits.to(torch.promote_types(logits.dtype, torch.float32))
    removed = z == -math.inf
    largest = torch.finfo(z.dtype).max
    beta = beta.to(z.device)
    hottest = z.masked_fill(removed, math.inf)  # so that its smallest is one that is left
    reference = torch.where(
        beta.signbit(), hottest.amin(dim=-1, keepdim=True), z.amax(dim=-1, keepdim=True)
    )
    scaled = ((z - reference) * beta.clamp(-largest, largest).to(z.dtype)).masked_fill(
        removed, -math.inf
    )
    cold = beta.abs() >= largest
    if not cold.any():
        return scaled
    first = torch.where(
        beta.signbit(), hottest.argmin(dim=-1, keepdim=True), z.argmax(dim=-1, keepdim=True)
    )
    # Gathered, so that NaN and -inf stay what they are and decode can see them.
    alone = torch.full_like(scaled, -math.inf).scatter(-1, first, scaled.gather(-1, first))
    return torch.where(cold, alone, scaled)
