"""What a training run says before it starts and shows when it ends."""

from __future__ import annotations

import math
import os
import re
import shlex
import sys
import time
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from phasegpt import ops
from phasegpt.attention import Oscillators, coupled_axis, layer_class
from phasegpt.core import modules
from phasegpt.core.errors import ConfigError, DataError
from phasegpt.data import ngram
from phasegpt.data.config import TaskConfig
from phasegpt.data.corpus import Corpus
from phasegpt.model import growth
from phasegpt.model.loading import load
from phasegpt.model.scoring import UNITS
from phasegpt.phase import null_order_parameter
from phasegpt.samplers import Temperature, Vocabulary, decode
from phasegpt.training.callbacks import duration
from phasegpt.training.config import RunConfig
from phasegpt.training.optim import SKIP_ON_DEVICE
from phasegpt.training.run_folder import RunFolder

if TYPE_CHECKING:
    from phasegpt.training.assemble import Assembled

# A training step reaches about this share of the speed of a bare matrix product on a CPU.
_CPU_EFFICIENCY = 0.5
_MEASURED_S = 0.2  # how long that product is timed
_WORTH_SAYING_S = 600.0
_TRIGRAM_VOCABULARY = 1024  # of more tokens a trigram model takes long to count
_R = re.compile(r"phase/R/layer(\d+)")


def header(run: RunConfig, folder: RunFolder, parts: Assembled) -> str:
    """What is about to be trained, where, on what, and on a CPU for about how long."""
    model, t = parts.lit.model, run.trainer
    config = model.config
    layers = f" in layers {list(config.attention_layers)}" if config.attention_layers else ""
    lines = [
        f"{run.name}: {config.n_layer} x {config.n_embd}, {config.attention}{layers}, "
        f"{model.num_parameters(non_embedding=False):,} parameters; {t.steps} steps of "
        f"{parts.tokens_per_step:,} tokens",
        f"folder: {folder.path}",
        f"device: {_device(run, parts)}",
        _cost(folder),
    ]
    if start := folder.record.get("init_from"):
        lines.append(f"begins with {start['path']} ({start['sha256'][:16]}): {growth.said(start)}")
    if any(isinstance(found, Oscillators) for found in model.oscillators.values()):
        lines.append(f"oscillators: {_kernels(parts)}")
    if t.smoke:
        lines.append(_SMOKE)
    if not parts.cuda:
        seconds = parts.flops.products * parts.tokens_per_step * t.steps / _speed()
        lines.append(f"time: about {duration(seconds)}, if nothing else runs here")
        if seconds >= _WORTH_SAYING_S:
            lines.append(f"a small version of it: {_smaller()}")
    return "\n".join(lines)


def _cost(folder: RunFolder) -> str:
    """FLOPs of a token, and how the parameters were matched; see run.json."""
    flops, parameters = folder.record["flops_per_token"], folder.record["parameters"]
    text = (
        f"FLOPs of a token, forward and backward: {flops['full']:.3g}, {flops['causal']:.3g} "
        f"without keys that are masked"
    )
    if "softmax" in parameters:
        share = parameters["all"] / parameters["softmax"] - 1
        text += (
            f"\nparameters matched: MLPs {folder.record['mlp_width']} wide, {share:+.2%} of the "
            f"{parameters['softmax']:,} of softmax"
        )
    return text


def _device(run: RunConfig, parts: Assembled) -> str:
    """The device; of a CPU how its threads wait, and why it is not a GPU."""
    processes = run.trainer.processes
    devices = "" if processes == 1 else f"{processes} x "
    if parts.cuda:
        name = torch.cuda.get_device_name(parts.trainer.strategy.root_device)
        return f"{devices}{name}{_waits(run)}"
    threads, policy = torch.get_num_threads(), os.environ.get("OMP_WAIT_POLICY", "not set")
    text = f"{devices}CPU, {threads} thread{'s' * (threads > 1)} (OMP_WAIT_POLICY {policy})"
    if run.trainer.accelerator == "auto":
        hidden = os.environ.get("CUDA_VISIBLE_DEVICES") == ""
        text += ", since no GPU is visible" + (": CUDA_VISIBLE_DEVICES is empty" if hidden else "")
    return text


def _waits(run: RunConfig) -> str:
    """Of an optimizer of ours that cannot skip a step by itself, what that costs on a GPU."""
    name = run.optimizer.name
    if name in (*SKIP_ON_DEVICE, "own"):
        return ""
    return f"; every step waits for it, since optimizer={name} must be told of a bad gradient"


def _kernels(parts: Assembled) -> str:
    """What integrates the oscillators on the run's device."""
    device = "cuda" if parts.cuda else "cpu"
    why = ops.fused.KERNELS[device].unavailable()
    if why is not None:
        return f"plain PyTorch, which is slower ({why})"
    return "compiled kernels, " + ops.fused.KERNELS[device].describe().split(",")[0]


def _speed() -> float:
    """Floating-point operations per second that training will reach on this CPU, roughly."""
    a = torch.randn(768, 768)  # of torch's generator: the dropout of every run comes after it
    begin, products, seconds = time.perf_counter(), 0, 0.0
    while products == 0 or seconds < _MEASURED_S:
        torch.mm(a, a)
        products, seconds = products + 1, time.perf_counter() - begin
    return _CPU_EFFICIENCY * products * 2 * 768**3 / seconds


def _smaller() -> str:
    given = [word for word in sys.argv[1:] if not word.startswith(("trainer=", "model="))]
    return shlex.join(["python", "-m", "phasegpt.train", *given, "trainer=cpu", "model=nano"])


def closing(run: RunConfig, folder: RunFolder, corpus: Corpus, text: str) -> str:
    """The summary of a finished run: perplexities, R, the sample `text`, where things are."""
    record = folder.record
    lines = [
        "",
        f"{run.name}: {record['step']} steps, {record['tokens']:,} tokens in "
        f"{record['wall_seconds']:.0f} s ({record['tokens_per_s']:,.0f} tokens/s)",
        *(_of_text if corpus.task is None else _of_task)(run, record, corpus),
    ]
    if run.trainer.smoke:
        lines.append(_SMOKE)
    final = record["final"]
    for layer in (m[1] for name in final if (m := _R.fullmatch(name))):
        # R and dR of the same validation windows, so that R - dR is R at K = 0.
        measures = (final.get(f"phase/val/{m}/layer{layer}") for m in ("R_end", "dR", "dR_se"))
        R, gain, error = measures
        if R is None:  # not monitored
            R = final[f"phase/R/layer{layer}"]
        lines.append(f"order parameter R of layer {layer}: {R:.3f}{_null(run)}")
        if gain is not None and error is not None:
            lines.append(
                f"  of which by coupling: dR {gain:.2g} (standard error {error:.1g}; 0 without)"
            )
    if text:
        lines += ["sample:", *("  " + line for line in text.splitlines())]
    best = folder.path / "checkpoints" / "best.ckpt"
    paths = {"checkpoint": best, "metrics": folder.path / "metrics.csv"}
    paths["picture"] = folder.path / "curves.png"
    lines += [f"{name}: {path}" for name, path in paths.items()]
    given = shlex.quote(f"checkpoint={folder.path}")
    if modules.dotted(run.attention.name):
        given += f" imports={run.attention.name}"
    lines += ["next:", *(f"  python -m phasegpt.{words}" for words in _next(run, given, corpus))]
    return "\n".join(lines)


def _next(run: RunConfig, given: str, corpus: Corpus) -> list[str]:
    """The commands that take the run, each with what it needs for this corpus."""
    if corpus.task is not None:
        return [f"evaluate {given}"]
    split = "" if "test" in corpus.splits else " split=val"  # evaluate's default is test
    own = run.attention
    phases = own.layers != () and layer_class(own.name).phased(own.options)
    return [f"evaluate {given}{split}", f"generate {given}", *[f"interpret {given}"] * phases]


def _of_text(run: RunConfig, record: dict[str, Any], corpus: Corpus) -> list[str]:
    """The perplexity of a text, and what it compares with."""
    unit = UNITS[corpus.tokenizer.name]
    scored, batches = len(corpus.split("val")) - 1, run.trainer.val_batches
    if batches is not None:
        scored = min(scored, batches * run.data.batch_size * run.model.block_size)
    begins = corpus.documents.get("val", np.empty(0, np.int64))
    scored -= int(((begins > 0) & (begins <= scored)).sum())
    lines = [
        f"validation perplexity per {unit} ({scored:,} scored, context and stride "
        f"{run.model.block_size}):",
        f"  this model      {record['best']['val/ppl']:.3f}   best, at step "
        f"{record['best']['step']}",
    ]
    if has_trigram(run, corpus):
        lines.append(f"  trigram model   {math.exp(ngram.trigram(corpus)):.3f}")
    floor = None if run.trainer.smoke else ngram.floor(corpus)
    if floor is not None:
        lines.append(f"  entropy floor   {math.exp(floor):.3f}   only a leak can go below it")
    return lines


def _of_task(run: RunConfig, record: dict[str, Any], corpus: Corpus) -> list[str]:
    """The accuracy of a task, by load where there are several, and what it compares with."""
    assert corpus.task is not None and isinstance(run.data, TaskConfig)
    best, task = record["best"], corpus.task
    lines = [
        f"validation accuracy of data={run.data.corpus}:",
        f"  this model      {best['val/accuracy']:.4f}   best loss, at step {best['step']}",
    ]
    for at in run.data.loads if len(run.data.loads) > 1 else ():
        value = best.get(f"val/accuracy/{at}")
        shown = "n/a   " if value is None else f"{value:.4f}"
        said = "   beyond the training" if at > run.data.trained else ""
        lines.append(f"    at {at:<9} {shown}{said}")
    lines.append(f"  chance          {task.chance:.4f}")
    if task.ceiling < 1:
        lines.append(f"  ceiling         {task.ceiling:.4f}   of the best predictor there is")
    return lines


def has_trigram(run: RunConfig, corpus: Corpus) -> bool:
    """Whether a trigram model is counted: of one text, all of it, as the model is scored on it."""
    whole = corpus.task is None and not corpus.documents and not run.trainer.smoke
    return whole and corpus.tokenizer.vocab_size <= _TRIGRAM_VOCABULARY


#: What is said of a run that only tries whether it works.
_SMOKE = "SMOKE RUN: not trained and validated in full; its numbers compare with no other run's"


def _null(run: RunConfig) -> str:
    """What R would be with random phases, where R is over the oscillators of a head."""
    oscillators = coupled_oscillators(run)
    if not oscillators:
        return ""
    return f" (random phases: {null_order_parameter(oscillators):.3f})"


def coupled_oscillators(run: RunConfig) -> int:
    """How many phases R is over; 0 where it is not over the oscillators of a head."""
    attention = run.attention.to_dict()
    within = coupled_axis(attention) == "oscillators"
    return (attention.get("num_oscillators") or 0) if within else 0


def prompt_ids(run: RunConfig, corpus: Corpus) -> np.ndarray:
    """The prompt of the closing sample in tokens; ConfigError where the tokenizer has none for it.

    A text without the default's line break begins as it does itself.
    """
    settings = run.callbacks.sample_text
    try:
        ids = corpus.tokenizer.encode(settings.prompt)
    except DataError as error:
        if settings.prompt == type(settings).prompt:
            return corpus.split("train")[:1]
        raise ConfigError(f"callbacks.sample_text.prompt={settings.prompt!r}: {error}") from error
    if not len(ids):
        raise ConfigError(
            f"callbacks.sample_text.prompt={settings.prompt!r} has no tokens; give a text to "
            f"continue, or callbacks.sample_text.max_new_tokens=0 for no sample"
        )
    return ids


def sample(run: RunConfig, folder: RunFolder, corpus: Corpus) -> str:
    """A continuation of the configured prompt by the best checkpoint; the same for a seed.

    Empty where the configuration wants none, and of a task, which has no text.
    """
    settings = run.callbacks.sample_text
    if not settings.max_new_tokens or corpus.task is not None:
        return ""
    model = load(folder.path, which="best")
    tokenizer = model.tokenizer
    prompt = prompt_ids(run, corpus)
    ids = torch.as_tensor(prompt.astype("int64"))[None]
    out = decode(
        model,
        ids,
        max_new_tokens=settings.max_new_tokens,
        seeds=[run.seed],
        chain=[Vocabulary(tokenizer.vocab_size), Temperature(settings.temperature)],
        use_cache=not model.leaky,
    )
    return tokenizer.decode(out[0].tolist()).strip("\n")
