"""The contract of an attention layer, continued: gradients, precision, compilation, noise.

See phasegpt.model.contract. Shapes: B batch, T time, D model width, S steps.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.gradcheck import GradcheckError
from torch.nn import functional as F

from phasegpt.attention import Attention
from phasegpt.model.contract import VOCAB, NotApplicable, Subject, close, need, roughen, tokens
from phasegpt.model.gpt import GPT
from phasegpt.phase.steering import NoiseKey, coherence_regularizer

DEAD_WIDTH = 256  # from here on what a control calls dead has no gradient; narrower it may have one
NOISE = {"noise_sigma": 0.03, "frequency_jitter": 0.02}


# --- gradients -------------------------------------------------------------------------------


def gradients(s: Subject) -> None:
    """Gradients of every parameter and of the input are those of finite differences, in float64."""
    model = roughen(s.gpt(**s.shrunk(), n_embd=4, block_size=4).train().double(), 0.7)
    layer, link = model.blocks[1].attn, model.link
    x = torch.randn(1, 4, 4, dtype=torch.float64, requires_grad=True)

    def of_layer(parameters: dict[str, Tensor], x: Tensor, *carry: Tensor) -> tuple[Tensor, ...]:
        words = {"return_phase": True, **({"carry": carry[0]} if carry else {})}
        out = torch.func.functional_call(layer, parameters, (x,), words)
        return out.y, *(out.phase or ())

    _exact(of_layer, layer, x)
    if link is not None:
        state = torch.rand_like(layer(x).carry).requires_grad_()
        _exact(lambda given, *args: torch.func.functional_call(link, given, args), link, x, state)
        _exact(of_layer, layer, x, link(x, state).detach().requires_grad_())


def _exact(call: Callable[..., Any], module: nn.Module, *inputs: Tensor) -> None:
    """gradcheck of call(parameters, *inputs) of a module, in its parameters and the inputs."""
    names, count = [n for n, _ in module.named_parameters()], len(inputs)

    def f(*values: Tensor) -> Any:
        parameters = dict(zip(names, values[count:], strict=True))
        return call(parameters, *values[:count])

    values = [p.detach().clone().requires_grad_() for p in module.parameters()]
    try:
        torch.autograd.gradcheck(f, (*inputs, *values))
    except GradcheckError as error:
        lines = " ".join(str(error).split())
        need(False, f"a gradient is not that of finite differences in float64: {lines:.300}; "
             "compute in the type of x, and detach nothing")  # fmt: skip


def alive(s: Subject, idx: Tensor, width: int = 64) -> None:
    """At initialisation every parameter has a gradient on a text, idx[B,129], and those of
    lr_factors one that is not lost beside the projection's."""
    model = s.gpt(n_embd=width, n_head=max(4, width // 64), block_size=128).train()
    logits = model(idx[:, :-1]).logits
    F.cross_entropy(logits.flatten(0, 1), idx[:, 1:].flatten()).backward()
    dead = model.blocks[1].attn.dead
    dies = width >= DEAD_WIDTH
    handed = () if model.link is None else model.link.named_parameters(prefix="link")
    for name, parameter in (*model.blocks[1].attn.named_parameters(), *handed):
        size = None if parameter.grad is None else parameter.grad.norm().item()
        if name in dead:
            need(
                not (dies and size and size > 1e-9),
                f"{name} is called dead, and has gradient {size}",
            )
            continue
        need(size, f"{name} has gradient {size or 'none'} at initialisation; use it in forward, "
             "and draw it in reset_oscillators so that no factor of 0 hides it")  # fmt: skip
    for name, layer in attention_modules(model.blocks[1]).items():
        own = dict(layer.named_parameters())
        projection = own.get("c_proj.weight", own.get("softmax.c_proj.weight"))
        for key in layer.lr_factors:
            if key not in own or projection is None or (dies and key in layer.dead):
                continue  # belongs to another readout, is fixed, or said to be dead
            mine, theirs = own[key].grad, projection.grad
            assert mine is not None and theirs is not None  # seen above
            ratio = (mine.norm() / theirs.norm()).item()
            floor = 1e-4 if key.endswith("phase.weight") else 1e-5
            need(ratio >= floor, f"the gradient of {name}.{key} is {ratio:.1e} of c_proj's; it "
                 f"must be {floor} at least")  # fmt: skip


def heard(s: Subject) -> None:
    """At initialisation a token of the prefix moves the last logits a tenth as far as in a model of
    uniform means, at least; heads are 64 wide, as GPT-2's."""
    if not s.layer_class.mixes or s.layer_class.dead:
        raise NotApplicable("no token is heard at the start, as the layer says")
    idx = tokens(32, 48)
    other = idx.clone()
    other[:, 16] = (idx[:, 16] + 1) % VOCAB

    def moved(subject: Subject) -> float:
        """In standard deviations of the logits over rows, root mean squares over the vocabulary."""
        model = subject.gpt(layers=(0, 1), n_embd=128, n_head=2)
        with torch.no_grad():
            logits, others = model(idx).logits[:, -1], model(other).logits[:, -1]
        spread = logits.std(0).square().mean().sqrt()
        return float((others - logits).square().mean().sqrt() / spread)

    mine, floor = moved(s), 0.1 * moved(Subject("uniform", positions=s.positions))
    need(mine > floor, f"it moves them by {mine:.1e} of their standard deviation, and must by "
         f"{floor:.1e}: attention may be on the token itself, or y have a large constant part; let "
         "reset_oscillators draw what holds at any width")  # fmt: skip


def attention_modules(model: nn.Module) -> dict[str, Attention]:
    """The attention layers in a module by name, those inside of others too."""
    return {n: m for n, m in model.named_modules() if isinstance(m, Attention)}


# --- precision and transformations -----------------------------------------------------------


def autocast(s: Subject) -> None:
    """Under bf16 autocast over 1024 tokens all is finite and phases stay float32."""
    model = s.gpt(layers=(0,), n_layer=1, n_head=1, block_size=1024)
    roughen(model).train()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = model(tokens(1, 1024), return_phase=True)
        loss = out.logits.float().square().mean()
    loss.backward()
    need(out.logits.dtype == torch.bfloat16, f"logits are {out.logits.dtype}")
    need(out.logits.isfinite().all(), "logits are not finite under bf16 autocast over 1024 tokens; "
         "sum in float32")  # fmt: skip
    for phase in out.phase.values():
        need(
            phase.theta.dtype in (torch.float32, torch.float64),
            f"theta is {phase.theta.dtype} under autocast; phasegpt.attention.Oscillators keeps "
            f"phases in float32",
        )
    for name, parameter in model.named_parameters():
        need(parameter.grad is not None and parameter.grad.isfinite().all(),
             f"the gradient of {name} is missing or not finite under bf16 autocast")  # fmt: skip


def precise_phases(s: Subject) -> None:
    """Under bf16 autocast phases keep float32 precision, or at their start, where attention then
    moves them."""
    layer, x = s.layer().train(), torch.randn(2, 20, 16)
    exact, path = layer(x, return_phase=True).phase, layer.trajectory(x)
    moved: Any
    if exact is None:
        raise NotApplicable("has_phases is False")
    with torch.autocast("cpu", dtype=torch.bfloat16):
        phase, moved = layer(x, return_phase=True).phase, layer.trajectory(x)
    help = "project to them outside of it, as phasegpt.attention.Oscillators.initial_phases does"
    if path is not None:
        close(moved.theta0, path.theta0, f"bf16 autocast moves first phases; {help}", atol=1e-5)
    close(tuple(phase), tuple(exact), f"bf16 autocast moves phases; {help}",
          atol=layer.phase_error)  # fmt: skip


def compiled(s: Subject) -> None:
    """torch.compile makes one graph of a model, whose values and gradients are the same."""
    torch._dynamo.reset()
    model = s.gpt(**s.shrunk(), layers=(0,), n_layer=1)
    idx = tokens(2, 8)
    one = torch.compile(model, fullgraph=True, backend="aot_eager")
    pairs = []
    try:
        for p in (False, True):  # the first without gradients, whose graph would not be used
            with torch.set_grad_enabled(p):
                pairs.append((model(idx, return_phase=p), one(idx, return_phase=p)))
    except torch._dynamo.exc.TorchDynamoException as error:
        lines = " ".join(str(error).split())
        need(False, f"torch.compile(fullgraph=True) breaks: {lines:.300}; branch on options, never "
             "on the values of tensors")  # fmt: skip
    for a, b in pairs:
        close(a.logits, b.logits, "compiled logits differ", rtol=1e-6, atol=1e-6)
        need(a.phase.keys() == b.phase.keys(), "compiled, the model returns other phases")
        for layer in a.phase:
            message = "compiled phases differ"
            close(a.phase[layer], b.phase[layer], message, rtol=1e-5, atol=1e-5)
    expected = torch.autograd.grad(a.logits.square().sum(), list(model.parameters()))
    grads = torch.autograd.grad(b.logits.square().sum(), list(model.parameters()))
    close(grads, expected, "compiled gradients differ", rtol=1e-4, atol=1e-5)


def activation_checkpointing(s: Subject) -> None:
    """model.activation_checkpointing gives the same loss and gradients."""
    idx = tokens(2, 16)
    noise: dict[str, Any] = {k: v for k, v in NOISE.items() if k in s.keys}
    results = []
    for recompute in (False, True):
        model = s.gpt(**noise, activation_checkpointing=recompute, dropout=0.2).train()
        key = NoiseKey(seed=1, step=2, sample_B=(3, 4))
        torch.manual_seed(3)
        out = model(idx, perturbations=model.draw_perturbations(key, 16), return_phase=True)
        loss = out.logits.square().mean()
        for phase in out.phase.values():
            loss = loss + coherence_regularizer(phase.R, target=0.1, weight=1.0)
        loss.backward()
        results.append([loss.detach(), *(p.grad for p in model.parameters())])
    first, second = results
    close(first, second, "model.activation_checkpointing changes the loss or a gradient; "
          "forward must be one function of its arguments and dropout", atol=1e-7)  # fmt: skip


# --- training noise --------------------------------------------------------------------------


def drawn(model: GPT, samples: tuple[int, ...], seed: int = 1, step: int = 5) -> list[Tensor]:
    """Everything drawn for one batch, sample first: [B, ...]."""
    key = NoiseKey(seed=seed, step=step, sample_B=samples)
    found: list[Any] = []
    for noise, jitter in model.draw_perturbations(key, 6).values():
        found += [None if noise is None else noise.transpose(0, 1), jitter]
    return found


def no_noise(s: Subject) -> None:
    """Without noise nothing is drawn, and the outputs stay bit-identical."""
    model, idx = s.gpt().train(), tokens(2, 6)
    perturbations = model.draw_perturbations(NoiseKey(seed=1, step=0, sample_B=(0, 1)), 6)
    need(perturbations == {}, f"with the default options noise is drawn: {perturbations!s:.80}; "
         "draw_perturbation returns None where it is off")  # fmt: skip
    need(torch.equal(model(idx, perturbations=perturbations).logits, model(idx).logits),
         "two forward passes in training without dropout and noise differ")  # fmt: skip


def _noisy(s: Subject, **words: Any) -> GPT:
    if not NOISE.keys() <= s.keys.keys():
        raise NotApplicable("no options noise_sigma and frequency_jitter")
    given: dict[str, Any] = {**NOISE, **words}
    return s.gpt(**given)


_KEYED = "draw it with phasegpt.phase.steering.draw_perturbation, keyed by run, step, layer, sample"


def noise_of_a_sample(s: Subject) -> None:
    """Noise of a sample does not depend on its batch."""
    model = _noisy(s)
    whole = drawn(model, (10, 11, 12, 13))
    first, second = drawn(model, (10, 11)), drawn(model, (12, 13))
    need(len(whole) == 2, f"{len(whole)} tensors are drawn; noise and jitter are two")
    for a, b, c in zip(whole, first, second, strict=True):
        need(torch.equal(a, torch.cat((b, c))), f"noise depends on the batch; {_KEYED}")
        alike = len({tuple(row.flatten().tolist()) for row in a})
        need(alike == 4, f"of 4 samples {alike} have noise of their own; {_KEYED}")


def noise_of_its_key(s: Subject) -> None:
    """Noise changes with seed, step, sample and layer."""
    model = _noisy(s, layers=(0, 1))
    base = drawn(model, (0,))
    others = {
        "the seed": drawn(model, (0,), seed=2),
        "the step": drawn(model, (0,), step=6),
        "the sample": drawn(model, (1,)),
    }
    for name, other in others.items():
        for a, b in zip(base, other, strict=True):
            need(not torch.equal(a, b), f"noise does not change with {name}; {_KEYED}")
    noise_0, jitter_0, noise_1, jitter_1 = base
    same = torch.equal(noise_0, noise_1) or torch.equal(jitter_0, jitter_1)
    need(not same, f"two layers have the same noise; {_KEYED}")


def noise_of_its_own_stream(s: Subject) -> None:
    """Noise neither reads nor moves the global generator."""
    model = _noisy(s)
    torch.manual_seed(1)
    state = torch.get_rng_state()
    a = drawn(model, (0, 1))
    need(torch.equal(torch.get_rng_state(), state), f"noise moves torch's generator; {_KEYED}")
    torch.manual_seed(2)
    for x, y in zip(a, drawn(model, (0, 1)), strict=True):
        need(torch.equal(x, y), f"noise depends on torch's generator; {_KEYED}")


def noise_size(s: Subject) -> None:
    """Noise has the size that was asked for."""
    noise, jitter = drawn(_noisy(s), tuple(range(64)))
    for name, x, wanted, within in (("noise", noise, 0.03, 0.02), ("jitter", jitter, 0.02, 0.05)):
        std = x.std().item()
        need(abs(std - wanted) <= within * wanted, f"{name} has std {std}; asked for is {wanted}")
    need(abs(noise.mean().item()) < 3e-4, f"noise has mean {noise.mean().item():.1e}")


def noise_acts(s: Subject) -> None:
    """Noise alone, or jitter alone, changes the outputs in training; evaluation draws none."""
    idx = tokens(2, 6)
    clean = s.gpt()(idx).logits
    for name in NOISE:
        model = _noisy(s, **{**dict.fromkeys(NOISE, 0.0), name: 0.3})
        noise = model.draw_perturbations(NoiseKey(seed=1, step=0, sample_B=(0, 1)), 6)
        moved = (model(idx, perturbations=noise).logits - clean).abs().max().item()
        need(moved > 1e-6, f"{name} moves no logit; forward must use its `perturbation`")
        need(torch.equal(model(idx).logits, clean), f"{name} acts without a perturbation")
