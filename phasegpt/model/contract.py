"""What every attention layer must do, as checks of one mechanism: shapes, causality, decoding.

A check takes a Subject and returns nothing, or raises Broken with what it found and what helps.
What concerns training is in phasegpt.model.contract_training. tests/attention runs the checks over
every YAML of conf/attention, `python -m phasegpt.check NAME` over any mechanism. Sizes are small.

Shapes: B batch, T time, D model width, H heads, N oscillators, V words.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from phasegpt.attention import Attention, AttentionOutput, Flops, build, layer_class
from phasegpt.core.errors import ConfigError
from phasegpt.model.config import GPTConfig
from phasegpt.model.gpt import GPT
from phasegpt.phase.order import cumulative_sum

VOCAB = 65
SIZES = {"n_layer": 2, "n_head": 2, "n_embd": 16, "block_size": 96, "dropout": 0.0}


class Broken(AssertionError):
    """A layer breaks a rule of the contract: the value that was found, and what helps."""


class NotApplicable(Exception):
    """A rule says nothing about this layer; the reason."""


def need(condition: Any, message: str) -> None:
    """Broken with the message unless the condition holds."""
    if not condition:
        raise Broken(message)


def close(found: Any, expected: Any, message: str, *, rtol: float = 0.0, atol: float) -> None:
    """Broken with the message unless tensors, nested or not, agree in shape, dtype and values."""
    try:
        torch.testing.assert_close(found, expected, rtol=rtol, atol=atol)
    except AssertionError as error:
        lines = [line for line in str(error).splitlines() if line.strip()]
        raise Broken(f"{message} ({'; '.join(lines[:4])})") from None


@dataclass(frozen=True)
class Subject:
    """A mechanism with some of its options, in small models whose layer 1 it is.

    One that hands a state on has all layers of them, two at least.
    """

    name: str
    options: Mapping[str, Any] = field(default_factory=dict)
    positions: str = "learned"

    @property
    def layer_class(self) -> type[Attention]:
        """The class of the layer."""
        return layer_class(self.name)

    @property
    def keys(self) -> dict[str, Any]:
        """Every option of the mechanism by name, with its value."""
        return self.layer_class.Config.parse(self.options).to_dict()

    def config(self, *, layers: tuple[int, ...] = (1,), **words: Any) -> GPTConfig:
        """A small model's; words are sizes of GPTConfig, and all others options."""
        sizes = {k: v for k, v in words.items() if k in GPTConfig.__dataclass_fields__}
        options = {k: v for k, v in words.items() if k not in sizes}
        if self.layer_class.link is not None:
            sizes["n_layer"] = max(2, sizes.get("n_layer", 2))
            layers = tuple(range(sizes["n_layer"]))
        return GPTConfig(
            **{**SIZES, "vocab_size": VOCAB, "positions": self.positions, **sizes},
            attention=self.name,
            attention_layers=layers,
            attention_options={**self.options, **options},  # type: ignore[arg-type] # as keys
        )

    def gpt(self, *, seed: int = 0, **words: Any) -> GPT:
        """A small model in eval mode; see config."""
        return GPT(self.config(**words), seed=seed).eval()

    def layer(self, **words: Any) -> Attention:
        """Layer 1 of such a model, by itself."""
        return self.gpt(**words).blocks[1].attn

    def shrunk(self) -> dict[str, Any]:
        """Fewer oscillators and steps where the mechanism has such options."""
        return {k: v for k, v in {"num_oscillators": 3, "steps": 3}.items() if k in self.keys}


def tokens(batch: int, time: int) -> Tensor:
    """Random ids[B,T]."""
    return torch.randint(VOCAB, (batch, time))


def roughen(module: Any, scale: float = 0.2) -> Any:
    """Move every parameter off its initial value, so that no bias is 0, no gain 1 and no two heads
    agree; what equals another thing then does so for any weights."""
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for parameter in module.parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.add_(noise.to(parameter.dtype), alpha=scale)
    return module


def stirred(s: Subject) -> Attention:
    """The layer off its initial values: of a control that dies of large weights not far off."""
    return roughen(s.layer(), 0.02 if s.layer_class.dead else 0.2)


# --- shapes ----------------------------------------------------------------------------------


def shapes(s: Subject) -> None:
    """y is [B,T,D] in the type of x; phases are [B,T,H,N] and R is in [0, 1]."""
    layer, x_BTD = s.layer(), torch.randn(3, 7, 16)
    y = layer(x_BTD)
    need(isinstance(y, AttentionOutput), f"forward returned a {type(y).__name__}; return "
         "phasegpt.attention.AttentionOutput(y, phase)")  # fmt: skip
    need(
        y.y.shape == x_BTD.shape and y.y.dtype == x_BTD.dtype,
        f"y is {list(y.y.shape)} of {y.y.dtype} for x [3, 7, 16] of {x_BTD.dtype}; it must be as x "
        f"is: phasegpt.attention.join_heads gives [B,T,D]",
    )
    model = s.gpt()
    out = model(tokens(3, 7), return_phase=True)
    need(out.logits.shape == (3, 7, VOCAB), f"logits are {list(out.logits.shape)}")
    need(out.logits.dtype == torch.float32, f"logits are {out.logits.dtype}")
    given = set(out.phase) == set(model.config.attention_layers)
    need(
        given == layer.has_phases,
        f"has_phases is {layer.has_phases}, and forward(return_phase=True) returned "
        f"{'phases' if given else 'none'}; set the class attribute has_phases to say which it is",
    )
    for phase in out.phase.values():
        B, T, H, _ = phase.theta.shape
        need((B, T, H) == (3, 7, 2), f"theta is {list(phase.theta.shape)}; it must be [B,T,H,N]")
        need(
            phase.R.shape in ((B, T, H), phase.theta.shape),
            f"R is {list(phase.R.shape)}; it must be [B,T,H], over oscillators, or [B,T,H,N], over "
            f"a prefix: phasegpt.phase.order_parameter, prefix_order_parameter",
        )
        low, high = phase.R.min().item(), phase.R.max().item()
        need(low >= 0 and high <= 1 + 1e-6, f"R is from {low} to {high}; it must be in [0, 1]")
    need(model(tokens(3, 7)).phase == {}, "phases came without return_phase")


def float32_phases(s: Subject) -> None:
    """Phases of a float32 model are float32."""
    for phase in s.gpt()(tokens(1, 5), return_phase=True).phase.values():
        found = (phase.theta.dtype, phase.R.dtype)
        need(found == (torch.float32, torch.float32), f"theta and R of a float32 model are {found}")


def same_logits_with_phases(s: Subject) -> None:
    """Asking for phases changes no logit."""
    model, idx = s.gpt(), tokens(2, 9)
    plain = model(idx).logits
    for asked in (True, "coupling"):
        found = model(idx, return_phase=asked).logits
        need(
            torch.equal(plain, found),
            f"return_phase={asked} moves logits by {(found - plain).abs().max():.1e}; compute y "
            f"before, and the same way, whether phases are asked for or not",
        )


# --- causality -------------------------------------------------------------------------------


def causality(s: Subject) -> None:
    """Outputs before t are bit-identical when tokens from t on change."""
    helps = (
        "no token may see a later one: mix with phasegpt.attention.causal_attention, or with sums "
        "over the prefix (torch.cumsum, phasegpt.phase.prefix_force), and normalise per token; a "
        "control that is to see the future says leaky = True"
    )
    T = 80
    model, idx = roughen(s.gpt()), tokens(2, T)
    with torch.no_grad():
        before = model(idx, return_phase=True)
        for t in (1, 2, 33, 64, T - 1):
            changed = idx.clone()
            changed[:, t:] = (idx[:, t:] + torch.randint(1, VOCAB, (2, T - t))) % VOCAB
            after = model(changed, return_phase=True)
            pairs = {"logits": (before.logits, after.logits)}
            for layer, phase in before.phase.items():
                pairs[f"theta of layer {layer}"] = (phase.theta, after.phase[layer].theta)
                pairs[f"R of layer {layer}"] = (phase.R, after.phase[layer].R)
            for name, (old, new) in pairs.items():
                moved = (old[:, :t] - new[:, :t]).abs().max().item()
                need(
                    torch.equal(old[:, :t], new[:, :t]),
                    f"{name} before token {t} move by {moved:.1e} when later ones change; {helps}",
                )
            need(
                not torch.equal(before.logits[:, t], after.logits[:, t]),
                f"the logits of token {t} do not depend on it",
            )
    poisoned(s, helps)


def poisoned(s: Subject, helps: str) -> None:
    """The same of the layer by itself, with inputs from t on that are a million times as large."""
    layer, x_BTD = roughen(s.layer()), torch.randn(2, 40, 16)
    with torch.no_grad():
        before = layer(x_BTD).y
        for t in (1, 20, 39):
            huge = x_BTD.clone()
            huge[:, t:] *= 1e6
            moved = (layer(huge).y[:, :t] - before[:, :t]).abs().max().item()
            need(moved == 0, f"y before token {t} moves by {moved:.1e} when later inputs are huge; "
                 + helps)  # fmt: skip


def leak(s: Subject) -> None:
    """A layer that says `leaky` sees the future at every token, and refuses a cache by name."""
    model, idx = roughen(s.gpt()), tokens(2, 20)
    changed = idx.clone()
    changed[:, 12:] = (idx[:, 12:] + 1) % VOCAB
    with torch.no_grad():
        moved = (model(idx).logits - model(changed).logits)[:, :12].abs().amax((0, 2))
    need((moved > 1e-6).all(), f"leaky is True, and later tokens move logits by {moved.min():.1e}; "
         "leave leaky out")  # fmt: skip
    need(model.leaky, "the model does not say that it is leaky")
    try:
        model.new_cache()
    except ConfigError:
        return
    raise Broken("a model that sees the future offers a decode cache")


def not_leaky(s: Subject) -> None:
    """A causal mechanism is not marked leaky."""
    need(not s.gpt().leaky, "leaky is True for a layer that is causal; leave it out")


def mixing(s: Subject) -> None:
    """A token reaches every later one and none before."""
    layer = stirred(s)
    x = torch.randn(1, 12, 16)
    moved = x.clone()
    moved[:, 4] += 1
    with torch.no_grad():
        change = (layer(moved).y - layer(x).y).abs().amax(-1).squeeze(0)
    if not layer.mixes:
        need((change[5:] == 0).all(), f"mixes is False, and token 4 moves a later y by "
             f"{change[5:].max():.1e}; leave it out")  # fmt: skip
        return
    need((change[:4] == 0).all(), f"token 4 moves an earlier y by {change[:4].max():.1e}")
    need(
        (change[5:] > 1e-5).all(),
        f"token 4 moves a later y by {change[5:].min():.1e} alone; an attention layer mixes tokens",
    )


def order(s: Subject) -> None:
    """With rotary positions the layer knows the order of the tokens before, or refuses them."""
    if s.positions != "rope":
        raise NotApplicable("model.positions=rope alone leaves the order to the layer")
    layer, x = stirred(s).double(), torch.randn(1, 8, 16, dtype=torch.float64)
    with torch.no_grad():
        moved = (layer(x[:, [0, 3, 2, 1, 4, 5, 6, 7]]).y - layer(x).y)[:, 4:].abs().max().item()
    if not (layer.mixes and layer.knows_order):
        need(moved < 1e-12, f"knows_order is False, and another order of the tokens before moves y "
             f"by {moved:.1e}; leave it out")  # fmt: skip
        return
    need(
        moved > 1e-9,
        "with model.positions=rope no y depends on the order of the tokens before it; where "
        "self.rope is true turn queries and keys with phasegpt.attention.rotate and rotary_angles, "
        "from cache.length on, or raise ConfigError('... positions=learned only') in __init__",
    )
    other = s.layer(rope_theta=100.0).double()
    other.load_state_dict(layer.state_dict())
    with torch.no_grad():
        moved = (other(x).y - layer(x).y).abs().max().item()
    need(moved > 1e-9, "model.rope_theta changes no y; give self.rope_theta to rotary_angles")


def off_control(s: Subject) -> None:
    """With `off` the layer is what it says: softmax attention, or every token alone."""
    off = s.layer_class.off
    if off is None:
        raise NotApplicable("no off control: set off = Off(options, equals)")
    if off.equals == "own":
        raise NotApplicable("the off control is a layer that the mechanism's own tests compare")
    if off.positions not in (None, s.positions):
        raise NotApplicable(f"the off control is {off.equals} with positions={off.positions}")
    try:
        s.layer_class.Config.parse({**s.options, **off.options}).check_idle()
    except ConfigError as error:
        raise NotApplicable(f"with these options there is none: {error}") from None
    on, layer = s.layer().double(), s.layer(**off.options).double()
    switched = switches(on, layer)
    initial = {name: p.detach().clone() for name, p in layer.named_parameters()}
    roughen(layer)
    with torch.no_grad():
        for name, parameter in layer.named_parameters():
            if name in switched:
                parameter.copy_(initial[name])
    x = torch.randn(2, 30, 16, dtype=torch.float64)
    told = ", ".join(f"{k}={v}" for k, v in off.options.items())
    if off.equals == "alone":
        with torch.no_grad():
            moved = (layer(torch.cat((x[:, :7] + 1, x[:, 7:]), 1)).y - layer(x).y)[:, 7:].abs()
        need(moved.max() < 1e-12, f"with {told} earlier tokens move y by {moved.max():.1e}; each "
             "must be alone")  # fmt: skip
        return
    need(
        layer.softmax_parts,
        f"with {told} the layer is to equal {off.equals}, and softmax_parts does not say where its "
        f"c_attn and c_proj are",
    )
    config = s.config(**off.options)
    softmax: Any = build("softmax", config, None, 1).double().eval()
    prefix = layer.softmax_parts[0]
    own = layer.state_dict()
    softmax.load_state_dict({name: own[prefix + name] for name in softmax.state_dict()})
    with torch.no_grad():
        expected = softmax(x).y
        if off.equals == "uniform":
            v = cumulative_sum(softmax.c_attn(x)[..., -x.shape[-1] :], 1)
            expected = softmax.c_proj(v / torch.arange(1, 31).unsqueeze(-1))
        apart = (layer(x).y - expected).abs().max().item()
    need(apart < 1e-12, f"with {told} y differs from {off.equals} attention's by {apart:.1e}")


# --- cost ------------------------------------------------------------------------------------


def flops(s: Subject) -> None:
    """FLOPs that the layer states are those counted where every product runs, within 2%."""
    if s.layer_class.leaky:
        raise NotApplicable("a layer that sees the future enters no table of equal FLOPs")
    model = s.gpt(n_embd=64, n_head=2, block_size=128)
    layer: Any = model.blocks[1].attn
    for T in (32, 128):
        x_BTD = torch.randn(1, T, 64)
        _counted("Attention.flops", layer.flops(T), layer, x_BTD)
        if model.link is not None:
            _counted("Link.flops", model.link.flops(T), model.link, x_BTD, layer(x_BTD).carry)


def _counted(name: str, stated: Flops, module: nn.Module, *args: Tensor) -> None:
    """What one call of a module costs a token is what it states."""
    T = args[0].shape[1]
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as count:
        module(*args)
    counted, told = count.get_total_flops() / T, stated.weights + stated.mixing
    need(
        abs(told - counted) <= 0.02 * counted,
        f"flops({T}) states weights {stated.weights:.0f} + mixing {stated.mixing:.0f} for a "
        f"token, and {counted:.0f} are counted (torch.utils.flop_counter); state them in "
        f"{name} with phasegpt.attention.Flops.of",
    )
    need(stated.causal <= stated.mixing, "flops().causal is more than mixing")


def switches(on: nn.Module, off: nn.Module) -> set[str]:
    """Parameters of `off` whose values its options set; one of another shape cannot learn back."""
    old = dict(on.named_parameters())
    return {
        name
        for name, p in off.named_parameters()
        if name not in old or (old[name].shape == p.shape and not torch.equal(old[name], p))
    }
