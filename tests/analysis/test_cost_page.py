"""The benchmark of attention layers: what it writes, and which layers its page names."""

import json
from typing import Any

import pytest
import torch
from helpers import ROOT, script

from phasegpt.analysis import cost
from phasegpt.attention import layer_class
from phasegpt.core.composition import compose, plain
from phasegpt.model.config import GPTConfig
from phasegpt.model.gpt import GPT


@pytest.fixture(scope="module")
def record(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], str]:
    """cpu.json and README.md of a quick run into a folder that has a page."""
    folder = tmp_path_factory.mktemp("bench")
    (folder / "README.md").write_text("# Old\n\n## Why\n\nBecause.\n")
    with pytest.MonkeyPatch.context() as patch:
        words = ("--quick", "--out", folder, "--only", "phase_sync", "kuramoto", "as_coded")
        script(patch, "bench_attention.py", *words)
    return json.loads((folder / "cpu.json").read_text()), (folder / "README.md").read_text()


def test_every_layer_but_the_leaky_is_timed_beside_softmax(record: tuple) -> None:
    found, text = record
    wanted = {(n, T) for n in ("kuramoto", "phase_sync", "softmax") for T in (8, 16)}
    for part in ("training", "decoding"):
        assert {(row["name"], row["T"]) for row in found[part]} == wanted
        assert all(row["low"] <= row["ratio"] <= row["high"] for row in found[part])
        assert all(row["seconds"] > 0 for row in found[part])
    assert all(row["memory"] > 0 for row in found["training"])
    assert "# Old" not in text and "as_coded" not in text
    assert text == cost.page(found, text)  # it follows from the record
    assert text.endswith("\n## Why\n\nBecause.\n")


def test_flops_of_the_record_are_those_of_the_layers(record: tuple) -> None:
    for row in record[0]["training"]:
        options = plain(compose([f"attention={row['name']}"]))["attention"]
        del options["name"], options["layers"]
        config = GPTConfig(n_layer=1, n_head=2, n_embd=32, vocab_size=2, attention=row["name"],
                           attention_layers=(0,), attention_options=options)  # fmt: skip
        flops = GPT(config, seed=0).blocks[0].attn.flops(row["T"])
        softmax = 2 * 4 * 32 * 32 + 2 * 32 * (row["T"] + 1)
        assert row["flops"]["full"] == flops.products
        assert row["flops_ratio"]["causal"] == pytest.approx(flops.causal_products / softmax)


def test_what_is_remembered_is_counted_in_bytes(record: tuple) -> None:
    held = {(row["name"], row["T"]): row["state"] for row in record[0]["decoding"]}
    for T in (8, 16):
        assert held["softmax", T] == 4 * 2 * 32 * T
        assert held["kuramoto", T] == 4 * (2 * 32 + 2 * 2 * 32) * T
    steps = layer_class("phase_sync").Config().to_dict()["steps"]
    assert held["phase_sync", 8] == held["phase_sync", 16] == 4 * (2 * steps + 1) * 64


def row(name: str, ratio: float, flops: float = 2.0) -> dict[str, Any]:
    return {"name": name, "T": 512, "ratio": ratio, "low": ratio, "high": ratio, "seconds": 0.01,
            "flops_ratio": {"causal": flops, "full": flops}, "memory": 1e6,
            "memory_ratio": 1.0}  # fmt: skip


def test_the_page_names_the_layers_above_their_goal() -> None:
    rows = [row("a", 2.6), row("b", 2.4), row("kuramoto", 1.2), row("phase_sync", 0.9)]
    rows += [row("softmax", 1.01, 1.0), row("c", 9.9) | {"T": 128}]
    text = cost.page({
        "training": rows, "decoding": [], "device": "cpu", "threads": 2, "rounds": 3,
        "hardware": {"cpu": "this", "gpu": None}, "versions": {"torch": torch.__version__},
        "sizes": {"times": [128, 512], "width": 384, "heads": 6, "tokens": 1024},
        "positions": {"a": "learned", "b": "rope"}, "refused": {"c, T = 512": "too long"},
    })  # fmt: skip
    claim = "At T = 512, 2 of 4 layers are as fast as their goal; above it: `a`, `kuramoto`."
    assert text.splitlines()[2] == claim
    assert "| `a` | 10.0 | 2.60 (2.60 to 2.60) | 2.00 | 2.00 | 2.50 | above |" in text
    assert "| `kuramoto` | 10.0 | 1.20 (1.20 to 1.20) | 2.00 | 2.00 | 1.10 | above |" in text
    assert "| `c` | 9.90 (2.00) | refused |" in text
    assert "rotary of `b`" in text and "Refused: c, T = 512: too long" in text


def test_the_committed_page_follows_from_its_record() -> None:
    folder = ROOT / "results" / "attention"
    pages = {"cpu.json": "README.md", "cuda.json": "cuda.md"}
    there = {file.name for file in folder.glob("*.json")}
    assert "cpu.json" in there and there <= pages.keys()
    for name in there:
        text = (folder / pages[name]).read_text()
        assert text == cost.page(json.loads((folder / name).read_text()), text)
