"""Damaged files: of a run, an export, a cache, a text, published weights."""

from __future__ import annotations

import hashlib
import io
import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from hostile.judge import Case
from hostile.values import damage, spoil
from hostile.workshop import TINY, Workshop

import phasegpt
from phasegpt.core.composition import compose
from phasegpt.evaluate import EvaluateConfig, evaluate
from phasegpt.model import checkpoint, loading
from phasegpt.training.config import run_config


def run_file(rng: random.Random, shop: Workshop) -> Case:
    """A damaged file in a run folder: it is loaded, resumed, read."""
    folder = shop.copy(shop.run)
    files = sorted(p for p in folder.rglob("*") if p.is_file() and p.name != ".lock")
    victim = rng.choice(files)
    kind, content = damage(victim.read_bytes(), rng)
    if victim.suffix == ".ckpt" and rng.random() < 0.7:  # the hash fits what is there
        line = f"{hashlib.sha256(content).hexdigest()}  {victim.resolve().name}\n"
        victim.resolve().with_name(victim.resolve().name + ".sha256").write_text(line)
    victim.write_bytes(content)
    return Case(f"{victim.relative_to(folder)} {kind}: {_reading(folder, shop, rng, act := [])}",
                act[0])  # fmt: skip


def _reading(folder: Path, shop: Workshop, rng: random.Random, act: list[Callable[[], Any]]) -> str:
    from phasegpt.training.jobs import jobs
    from phasegpt.training.run_folder import read_metrics, read_phases, read_record

    words = [*shop.words, "resume=true"]
    ways: dict[str, Callable[[], Any]] = {
        "load": lambda: phasegpt.load(folder, which=rng.choice(("best", "last"))),
        "fit": lambda: phasegpt.fit(compose(words), folder),
        "metrics": lambda: read_metrics(folder / "metrics.csv"),
        "record": lambda: read_record(folder),
        "phases": lambda: read_phases(folder),
        "records": lambda: jobs(folder.parent),
        "evaluate": lambda: evaluate(EvaluateConfig(checkpoint=str(folder), split="val")),
        "export": lambda: loading.export(folder, shop.room() / "out"),
    }
    name = rng.choice(sorted(ways))
    act.append(ways[name])
    return name


def checkpoint_content(rng: random.Random, shop: Workshop) -> Case:
    """A checkpoint whose hash is right and whose content is not."""
    path = shop.copy(shop.run) / "checkpoints" / "last.ckpt"
    what, payload = spoil(checkpoint.read(path), rng)
    buffer = io.BytesIO()
    torch.save(payload, buffer)
    real = path.resolve()
    real.write_bytes(buffer.getvalue())
    digest = hashlib.sha256(buffer.getvalue()).hexdigest()
    real.with_name(real.name + ".sha256").write_text(f"{digest}  {real.name}\n")
    if rng.random() < 0.5:
        return Case(f"checkpoint {what}: load", lambda: phasegpt.load(path))

    def resume() -> None:
        record = json.loads((path.parents[1] / "run.json").read_text())
        record["status"] = "interrupted"
        (path.parents[1] / "run.json").write_text(json.dumps(record))
        phasegpt.fit(compose([*shop.words, "resume=true"]), path.parents[1])

    return Case(f"checkpoint {what}: resume", resume)


def export_file(rng: random.Random, shop: Workshop) -> Case:
    """A damaged exported folder, with sums that fit or not."""
    folder = shop.copy(shop.export)
    victim = rng.choice(sorted(p for p in folder.iterdir() if p.is_file()))
    if victim.suffix == ".json" and rng.random() < 0.6:
        kind, values = spoil(json.loads(victim.read_text()), rng)
        content = json.dumps(values, default=str).encode("utf-8", "replace")
    else:
        kind, content = damage(victim.read_bytes(), rng)
    victim.write_bytes(content)
    if victim.name != "SHA256SUMS" and rng.random() < 0.8:
        files = sorted(p for p in folder.iterdir() if p.name != "SHA256SUMS")
        sums = [f"{hashlib.sha256(p.read_bytes()).hexdigest()}  {p.name}\n" for p in files]
        (folder / "SHA256SUMS").write_text("".join(sums))
    return Case(f"export {victim.name} {kind}", lambda: phasegpt.load(folder))


def token_cache(rng: random.Random, shop: Workshop) -> Case:
    """A damaged cache of tokens, or a damaged text."""
    cache, text = shop.copy(shop.folder / "cache"), shop.copy(shop.text)
    files = [text, *sorted(p for p in cache.rglob("*") if p.is_file())]
    victim = rng.choice(files)
    kind, content = damage(victim.read_bytes(), rng)
    victim.write_bytes(content)
    words = [*TINY, f"data.path={text if victim == text else shop.text}", f"data.cache_dir={cache}"]

    def call() -> None:
        from phasegpt.data.corpus import prepare

        prepare(run_config(compose(words)).data)

    return Case(f"{'text' if victim == text else victim.name} {kind}: prepare", call)


def hf_folder(rng: random.Random, shop: Workshop) -> Case:
    """A folder in Hugging Face's form with a damaged file."""
    source = shop.folder / "gpt2"
    if not source.is_dir():
        from transformers import GPT2Config, GPT2LMHeadModel

        tiny = GPT2Config(vocab_size=32, n_positions=16, n_embd=8, n_layer=1, n_head=2)
        GPT2LMHeadModel(tiny).save_pretrained(source)
    folder = shop.copy(source)
    victim = rng.choice(sorted(p for p in folder.iterdir() if p.is_file()))
    if victim.suffix == ".json" and rng.random() < 0.7:
        kind, values = spoil(json.loads(victim.read_text()), rng)
        victim.write_text(json.dumps(values, default=str).encode("utf-8", "replace").decode())
    else:
        kind, content = damage(victim.read_bytes(), rng)
        victim.write_bytes(content)
    return Case(f"from_hf {victim.name} {kind}", lambda: phasegpt.GPT.from_hf(folder))
