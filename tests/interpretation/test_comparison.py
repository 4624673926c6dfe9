"""Two models on one text: attention with known entropy and distance, and whose loss is lower."""

import base64
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import TEXT, make_run, script, text_data

from phasegpt.analysis.report import pack, unpack
from phasegpt.core.errors import ConfigError
from phasegpt.data.config import DataConfig
from phasegpt.data.corpus import prepare
from phasegpt.interpretation.comparison import compare_attention, documents
from phasegpt.model import loading
from phasegpt.model.scoring import losses, score


def test_uniform_attention_has_entropy_1_and_looks_halfway_back(
    make_model: Any, text_ids: Any
) -> None:
    model, T = make_model("softmax"), 24
    for block in model.blocks:
        torch.nn.init.zeros_(block.attn.c_attn.weight)
    found = compare_attention(model, model, text_ids(3, T + 1))
    for row in found["layers"]:
        assert row["entropy"]["baseline"]["mean"] == pytest.approx(1, abs=1e-5)
        # Of token t it is (t - 1) / 2, and the first token has no choice.
        distance = np.mean([(t - 1) / 2 for t in range(2, T + 1)])
        assert row["distance"]["phase"]["mean"] == pytest.approx(distance, abs=1e-4)
        assert row["entropy"]["difference"]["mean"] == 0 and row["maps"] is None
    assert (found["sequences"], found["context"]) == (3, T)


def test_only_layers_with_oscillators_differ_when_all_other_weights_agree(
    make_model: Any, text_ids: Any
) -> None:
    """With the same seed both models share every weight before the phase layer."""
    baseline = make_model("softmax", n_layer=3)
    found = compare_attention(
        baseline, make_model("kuramoto", layers=(1,), n_layer=3), text_ids(2, 33)
    )
    first, phase, after = found["layers"]
    assert first["entropy"]["difference"]["mean"] == 0 == first["distance"]["difference"]["mean"]
    assert phase["phase"] and phase["entropy"]["difference"]["mean"] != 0
    assert not after["phase"] and after["maps"] is None
    for which, packed in phase["maps"].items():
        A_HTT = unpack(packed)
        assert A_HTT.shape == (2, 32, 32), which
        assert np.allclose(A_HTT.sum(-1), 1, atol=32 / 255) and (np.triu(A_HTT[0], 1) == 0).all()
    off = make_model("kuramoto", layers=(1,), n_layer=3, beta=0.0)
    same = compare_attention(baseline, off, text_ids(2, 33))["layers"][1]
    assert same["entropy"]["difference"]["mean"] == pytest.approx(0, abs=1e-6)
    assert same["maps"]["phase"] == same["maps"]["baseline"]


def test_models_without_attention_weights_or_causality_are_refused(
    make_model: Any, text_ids: Any
) -> None:
    softmax, phase_sync = make_model("softmax"), make_model("phase_sync")
    for other in (phase_sync, make_model("selective_rope"), make_model("fixed_query"),
                  make_model("kope", layers=(0, 1))):  # fmt: skip
        with pytest.raises(ConfigError, match="no layer of both models is softmax or kuramoto"):
            compare_attention(softmax, other, text_ids(1, 9))
    with pytest.warns(UserWarning):
        leaky = make_model("as_coded", layers=(1,))
    with pytest.raises(ConfigError, match="sees the future"):
        compare_attention(softmax, leaky, text_ids(1, 9))


def test_packed_values_come_back_to_half_a_step() -> None:
    values = torch.rand(3, 5, generator=torch.Generator().manual_seed(1))
    for bits, kind in ((8, "u1"), (16, "<u2")):
        step = 1 / (2**bits - 1)
        packed = pack(values, step=step, bits=bits)
        raw = np.frombuffer(base64.b64decode(packed["data"]), kind).reshape(packed["shape"])
        for back in (raw * step, unpack(packed)):
            assert np.abs(back - values.numpy()).max() <= step / 2 + 1e-7


@pytest.fixture(scope="module")
def runs(tmp_path_factory: Any) -> list[Path]:
    """Two kuramoto runs on one text, in the first of which phases hardly reach the logits."""
    folder = tmp_path_factory.mktemp("comparison")
    data = text_data(folder, TEXT)
    arms = {"plain-seed1": ["attention.beta=0"], "phase-seed1": []}
    return [make_run(folder / "sweep" / name, *words, *data) for name, words in arms.items()]


def test_the_losses_of_a_split_are_those_that_score_adds_up(runs: list[Path]) -> None:
    loaded = loading.load_run(runs[0])
    assert loaded.config is not None
    corpus = prepare(DataConfig.parse(loaded.config["data"]))
    total = score(loaded.model, corpus, "val", context=16, stride=16, batch_size=3)
    nats_T = losses(loaded.model, corpus.split("val"), context=16, batch_size=5)
    assert len(nats_T) == total.tokens == len(corpus.split("val")) - 1
    assert nats_T.double().sum().item() == pytest.approx(total.nats, rel=1e-6)


def test_documents_begin_at_the_headings_of_wikitext(tmp_path: Path) -> None:
    article = " = {} = \n \n Words of it .\n \n = = Part = = \n \n More , 2 = 1 + 1 .\n"
    text = " \n" + "".join(article.format(name) for name in ("One", "Two three", "Four"))
    for tokenizer in ("char", "byte"):
        folder = tmp_path / tokenizer
        folder.mkdir()
        run = loading.load_run(make_run(folder / "r", *text_data(folder, text * 20, tokenizer)))
        assert run.config is not None
        corpus = prepare(DataConfig.parse(run.config["data"]))
        document_T = documents(corpus, "train")
        assert document_T is not None
        raw = bytes(corpus.tokenizer.token_bytes(int(i))[0] for i in corpus.split("train"))
        assert document_T[-1] + 1 == raw.count(b"\n = ") - raw.count(b"\n = = ")
        second = raw.index(b" = Two three")
        assert document_T[second - 2 : second].tolist() == [0, 1]  # of tokens 1 .. T - 1
        assert document_T[0] == 0
        assert (np.diff(document_T) >= 0).all()


def test_a_text_without_headings_has_no_documents(runs: list[Path]) -> None:
    config = loading.load_run(runs[0]).config
    assert config is not None
    assert documents(prepare(DataConfig.parse(config["data"])), "val") is None


def test_the_commands_compare_two_runs_and_write_records(
    runs: list[Path], tmp_path: Path, monkeypatch: Any, capsys: Any
) -> None:
    out = tmp_path / "c.json"
    script(monkeypatch, "compare_checkpoints.py", runs[0], runs[0], "--out", out)
    assert json.loads(out.read_text())["difference"]["effect"] == 0
    script(monkeypatch, "compare_checkpoints.py", runs[1], runs[0], "--out", out)
    result = json.loads(out.read_text())
    a, b = (run["perplexity"] for run in result["runs"])
    found = result["difference"]
    assert found["effect"] == pytest.approx(a - b, rel=1e-4) and result["unit"] == "character"
    assert found["low"] < found["effect"] < found["high"]
    assert "windows of 32" in capsys.readouterr().out

    study = tmp_path / "study"
    (study / "runs").mkdir(parents=True)
    record = {"seed": 1, "best": {"val/ppl": 3.0}, "curves": {}}
    (study / "runs" / "softmax-seed1.json").write_text(json.dumps(record))
    words = [*runs, "--into", study, "--split", "train", "--tokens", 96]
    script(monkeypatch, "compare_attention.py", *words)
    files = [study / "attention.json", study / "attention.png", study / "report.html"]
    first = [file.read_bytes() for file in files]
    script(monkeypatch, "compare_attention.py", *words)
    assert [file.read_bytes() for file in files] == first
    comparison = json.loads(first[0])
    assert comparison["phase"]["name"] == "phase-seed1" and len(comparison["layers"]) == 2
