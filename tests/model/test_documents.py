"""Single documents: in a packed batch each gives what it gives alone, for every mechanism."""

import json
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import NOISY, SIX_STEPS, assert_identical, crash_at

import phasegpt
from phasegpt.core.composition import compose, plain
from phasegpt.core.errors import ConfigError, DataError
from phasegpt.data import hub
from phasegpt.data.config import DataConfig
from phasegpt.data.corpus import prepare
from phasegpt.data.windows import IGNORED, EvalWindows, TrainBatches
from phasegpt.evaluate import EvaluateConfig, evaluate, table
from phasegpt.model import documents
from phasegpt.model.scoring import score, token_nats
from phasegpt.phase.steering import NoiseKey, coherence
from phasegpt.training.assemble import assemble
from phasegpt.training.config import RunConfig, run_config
from phasegpt.training.run_folder import RunFolder

LENGTHS = [[40, 1, 3, 20], [7, 57], [64], [2, 33, 29]]
MECHANISMS: list[tuple[str, dict[str, Any]]] = [
    ("softmax", {}),
    ("softmax", {"positions": "rope"}),
    ("kuramoto", {"readout": "both"}),
    ("kuramoto", {"positions": "rope"}),
    ("phase_sync", {}),
    ("phase_sync", {"forget": 0.8, "positions": "rope"}),
    ("hybrid", {}),
    ("hybrid", {"partner": "phase_sync"}),
    ("as_coded", {}),
    ("kope", {"positions": "rope", "coupling": 0.5}),
    ("selective_rope", {}),
    ("uniform", {}),
    ("no_mixing", {}),
    ("lohe", {"positions": "rope"}),
    ("lohe", {"group": 2}),
    ("fixed_query", {"positions": "rope"}),
    ("ssa", {"positions": "rope"}),
    ("torus", {"positions": "rope"}),
    ("fsn", {}),
    ("token_shift", {"positions": "rope"}),
]


def begins_of(lengths: list[list[int]]) -> torch.Tensor:
    begins = torch.zeros(len(lengths), sum(lengths[0]), dtype=torch.bool)
    for row, found in zip(begins, lengths, strict=True):
        row[np.cumsum([0, *found])[:-1]] = True
    begins[:, 0] = False  # a row begins a document in any case
    return begins


@pytest.mark.filterwarnings("ignore:.*sees the future")
@pytest.mark.parametrize(
    ("name", "words"), MECHANISMS, ids=lambda x: x if isinstance(x, str) else ""
)
def test_a_packed_document_gives_what_it_gives_alone(
    name: str, words: dict[str, Any], make_model: Callable[..., Any]
) -> None:
    model = make_model(name, layers=(0, 1), block_size=64, **words)
    idx = torch.randint(60, (4, 64))
    packed = documents.forward(model, idx, begins_of(LENGTHS), return_phase=True)
    for row, lengths in enumerate(LENGTHS):
        at = 0
        for length in lengths:
            part = slice(at, at + length)
            alone = model(idx[row : row + 1, part], return_phase=True)
            torch.testing.assert_close(packed.logits[row, part], alone.logits[0])
            for layer, phase in alone.phase.items():
                for whole, single in zip(packed.phase[layer], phase, strict=True):
                    torch.testing.assert_close(whole[row, part], single[0])
            at += length
    whole = model(idx).logits
    assert (whole - packed.logits)[0, 45:].abs().max() > 1e-3  # the boundaries matter


@pytest.mark.parametrize("name", ["kuramoto", "phase_sync"])
def test_the_noise_of_a_document_is_that_of_its_places(
    name: str, make_model: Callable[..., Any]
) -> None:
    model = make_model(name, layers=(1,), block_size=64, noise_sigma=0.3, frequency_jitter=0.2)
    idx, begins = torch.randint(60, (4, 64)), begins_of(LENGTHS)
    drawn = model.draw_perturbations(NoiseKey(1, 2, (5, 6, 7, 8)), 64)
    packed = documents.forward(model, idx, begins, perturbations=drawn).logits
    noise, jitter = drawn[1]
    mine = {1: drawn[1]._replace(noise_SBTHN=noise[:, 1:2, 7:], jitter_BHN=jitter[1:2])}
    alone = model(idx[1:2, 7:], perturbations=mine).logits
    torch.testing.assert_close(packed[1, 7:], alone[0])
    one = torch.zeros_like(begins)  # without a boundary nothing changes
    whole = documents.forward(model, idx, one, perturbations=drawn).logits
    torch.testing.assert_close(whole, model(idx, perturbations=drawn).logits)


@pytest.mark.parametrize("name", ["kuramoto", "phase_sync"])
@pytest.mark.parametrize("axis", ["coupled", "oscillators", "heads", "prefix"])
def test_R_of_a_penalty_is_over_the_tokens_of_each_document(
    name: str, axis: str, make_model: Callable[..., Any]
) -> None:
    model = make_model(name, layers=(1,), block_size=64)
    idx, attn = torch.randint(60, (4, 64)), model.blocks[1].attn
    groups = documents.forward(model, idx, begins_of(LENGTHS), return_phase=True).groups
    found = documents.order(attn, groups, 1, axis)
    expected = []
    for row, lengths in enumerate(LENGTHS):
        for part in idx[row].split(lengths):
            theta = model(part[None], return_phase=True).phase[1].theta
            first = attn.first_token(len(part))
            R = (
                attn.order_parameter(theta)[:, first:]
                if axis == "coupled"
                else coherence(theta, axis)
            )
            expected.append(R[0])
    assert len(found) == sum(map(len, expected))
    torch.testing.assert_close(found.double().sum(), torch.cat(expected).double().sum())


def test_the_longest_documents_are_measured() -> None:
    idx = torch.arange(4 * 64).view(4, 64)
    rows = documents.longest(idx, begins_of(LENGTHS), 3)
    assert sorted(rows[:, 0].tolist()) == [0, 71, 128] and rows.shape == (3, 40)


# --- from files to losses --------------------------------------------------------------------

TEXTS = [f"document {i} says {'something ' * (i % 5)}again" for i in range(60)]


def data(folder: Path, **words: Any) -> Any:
    path = folder / "docs.jsonl"
    path.write_text("\n".join(json.dumps({"text": text}) for text in TEXTS))
    found = {"tokenizer": "byte", "documents": True, **words}
    values = [f"data.{k}={str(v).lower() if v is True else v}" for k, v in found.items()]
    return [
        *SIX_STEPS,
        "data=text",
        f"data.path={path}",
        f"data.cache_dir={folder / 'cache'}",
        *values,
    ]


def composed(*words: str) -> RunConfig:
    return run_config(plain(compose(list(words))))


@pytest.mark.parametrize("processes", [1, 2])
def test_tokens_know_where_their_documents_begin(
    tmp_path: Path, processes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    from phasegpt.data import encoding
    from phasegpt.data.tokenizers import ByteTokenizer

    monkeypatch.setattr(ByteTokenizer, "piece", 100)
    monkeypatch.setattr(encoding, "_cores", lambda: processes)
    corpus = prepare(composed(*data(tmp_path)).data)
    whole = "".join(f"{text}\n" for text in TEXTS)
    train = corpus.split("train").astype(np.uint8).tobytes().decode()
    assert train + corpus.split("val").astype(np.uint8).tobytes().decode() == whole
    assert train.split("\n")[:-1] == TEXTS[: len(corpus.documents["train"]) - 1]
    begins = corpus.documents["train"].tolist()
    assert [train[a:b] for a, b in pairwise(begins)] == [
        f"{text}\n" for text in TEXTS[: len(begins) - 1]
    ]
    assert corpus.documents["val"][0] == 0  # where the split cut a document
    plain_one = prepare(replace(composed(*data(tmp_path)).data, documents=False))
    assert plain_one.fingerprint != corpus.fingerprint and not plain_one.documents
    assert np.array_equal(plain_one.split("train"), corpus.split("train"))


def test_a_long_document_is_cut_into_pieces_and_stays_one(tmp_path: Path) -> None:
    from phasegpt.data import encoding

    texts = ["a b " * 100 + "\n", "c\n", "d e\n" * 200, "f\n"]
    (tmp_path / "t").write_text("".join(texts))
    first = np.cumsum([0, *map(len, texts)])[:-1]
    first.astype(np.int64).tofile(tmp_path / "d")
    span = encoding.Span.of(tmp_path / "t", tmp_path / "d")
    pieces = list(encoding.pieces(span, encoding.before_space, 50))
    assert len(pieces) > 20
    assert np.array_equal(np.concatenate([piece.begins for piece in pieces]), first)


def test_no_first_token_is_a_target_and_every_other_is_once(tmp_path: Path) -> None:
    corpus = prepare(composed(*data(tmp_path)).data)
    tokens, begins = corpus.split("train"), corpus.documents["train"]
    scored = []
    windows = EvalWindows(tokens, context=16, stride=16, documents=begins)
    for i in range(len(windows)):
        found = windows[i]
        scored += found["targets"][found["targets"] != IGNORED].tolist()
    assert scored == np.delete(tokens, begins).tolist()
    batch = TrainBatches(tokens, block_size=16, batch_size=40, seed=0, documents=begins)[0]
    after = torch.cat((batch["begins"][:, 1:], torch.zeros(40, 1, dtype=torch.bool)), 1)
    assert bool((batch["targets"][after] == IGNORED).all())
    # And the batches are those of the same tokens in one text.
    one = TrainBatches(tokens, block_size=16, batch_size=40, seed=0)[0]
    assert torch.equal(one["idx"], batch["idx"]) and "begins" not in one


def test_documents_of_one_token_are_an_error() -> None:
    tokens, every = np.arange(40), np.arange(40)
    with pytest.raises(DataError, match="40 documents of a split has one token"):
        EvalWindows(tokens, context=8, stride=8, documents=every)
    with pytest.raises(DataError, match="one token"):
        TrainBatches(tokens, block_size=8, batch_size=2, seed=0, documents=every)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    folder = tmp_path_factory.mktemp("documents")
    words = [*data(folder), "attention=phase_sync", "attention.layers=[1]", "regularizer=ceiling",
             "attention.noise_sigma=0.05", "callbacks.collapse_guard.action=report"]  # fmt: skip
    record = phasegpt.fit(compose(words), folder / "run")
    return folder / "run", record


def test_a_training_on_documents_ends_and_is_evaluated_alike(
    trained: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    run, record = trained
    assert 0 < record["final"]["val/loss"] < 10 and "phase/val/dR/layer1" in record["final"]
    result = evaluate(EvaluateConfig(checkpoint=str(run), split="val", which="last"))
    assert result["loss"] == pytest.approx(record["final"]["val/loss"], rel=1e-5)
    corpus = prepare(composed(*data(run.parent)).data)
    val, begins = corpus.split("val"), corpus.documents["val"]
    assert result["tokens_scored"] == len(val) - len(begins)
    assert result["documents"] == len(begins)
    assert f"of {len(val):,}, {len(begins)} documents, context" in table(result)
    assert result["bytes_scored"] == result["tokens_scored"]


def test_the_score_is_the_sum_over_documents_that_stand_alone(
    trained: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    model = phasegpt.load(trained[0])
    corpus = prepare(composed(*data(tmp_path)).data)
    val, begins = corpus.split("val"), corpus.documents["val"]
    context = model.config.block_size
    total = 0.0
    for window in range(0, len(val) - 1, context):
        at = min(window, len(val) - 1 - context)
        ids = torch.from_numpy(val[at : at + context + 1].astype(np.int64))
        edges = sorted(
            {0, context + 1, *(b - at for b in begins.tolist() if 0 < b - at <= context)}
        )
        for a, b in pairwise(edges):
            if b - a < 2:
                continue
            with torch.no_grad():
                nats = token_nats(model(ids[None, a : b - 1]).logits, ids[None, a + 1 : b])[0]
            total += nats[max(0, window - at - a) :].sum().item()
    found = score(model, corpus, "val", context=context, stride=context, batch_size=4)
    assert found.nats == pytest.approx(total, rel=1e-5)
    assert found.word_ppl is None


def test_interpret_looks_at_the_first_tokens_of_documents(
    trained: tuple[Path, dict[str, Any]],
) -> None:
    from phasegpt.interpret import InterpretConfig, token_windows
    from phasegpt.model.loading import load_run

    loaded = load_run(trained[0])
    assert loaded.config is not None
    val = prepare(DataConfig.parse(loaded.config["data"])).split("val")
    texts = bytes(val.astype(np.uint8)).split(b"\n")
    ids, source = token_windows(InterpretConfig(), loaded)
    assert source == "documents of the split val of text" and ids.shape == (len(ids), 17)
    for row in ids:
        assert any(f"{text.decode()}\n".startswith(bytes(row.tolist()).decode()) for text in texts)
    short = trained[0] / "short.jsonl"
    short.write_text("\n".join(json.dumps({"text": "abc"}) for _ in range(30)))
    with pytest.raises(ConfigError, match=r"the longest of the documents .* 4 tokens; .*=16"):
        token_windows(InterpretConfig(context=16, data_path=str(short)), loaded)


def test_what_reads_one_text_refuses_a_model_of_documents(
    trained: tuple[Path, dict[str, Any]],
) -> None:
    from phasegpt.cli import training_corpus
    from phasegpt.model.loading import load_run

    with pytest.raises(ConfigError, match=r"single documents \(data.documents=true\)"):
        training_corpus(load_run(trained[0]), None, None)


def test_a_file_of_plain_text_is_one_document(
    tmp_path: Path, trained: tuple[Path, dict[str, Any]]
) -> None:
    (tmp_path / "a.txt").write_text("one text " * 50)
    words = [*data(tmp_path), f"data.path={tmp_path / 'a.txt'}"]
    corpus = prepare(composed(*words).data)
    assert [places.tolist() for places in corpus.documents.values()] == [[0], [0]]
    (tmp_path / "b.txt").write_text("another\n" * 3)
    corpus = prepare(composed(*words, f"data.path={tmp_path / '?.txt'}").data)
    assert corpus.documents["val"].tolist() == [0, 24]  # the rest of the first, and the second
    found = evaluate(EvaluateConfig(checkpoint=str(trained[0]), split="val",
                                    data_path=str(tmp_path / "a.txt")))  # fmt: skip
    assert found["documents"] == 1 and found["training_text"] is False
    with pytest.raises(ConfigError, match=r"data.documents=true does nothing while data.corpus"):
        composed("data=synthetic", "data.documents=true")


@pytest.mark.parametrize("through", ["all", "coupling"])
@pytest.mark.parametrize("name", ["kuramoto", "phase_sync"])
def test_a_step_is_that_of_documents_alone(tmp_path: Path, name: str, through: str) -> None:
    run = composed(
        *data(tmp_path), f"attention={name}", "model.dropout=0", "attention.coupling=2",
        "regularizer=center", f"regularizer.through={through}", "regularizer.weight=5",
    )  # fmt: skip
    parts = assemble(run, RunFolder(tmp_path / "run"), prepare(run.data))
    lit, batch = parts.lit, next(iter(parts.data.train_dataloader()))
    parameters = [*lit.model.parameters()]
    found = lit.training_step(batch, 0)
    gradients = torch.autograd.grad(found["loss"], parameters, retain_graph=True)
    assert found["R"][1].shape == (2,)

    # The same from single documents: sums of nats over targets, of squares over what counts.
    nats, scored, distance, attn = torch.zeros(()), 0, [], lit.model.blocks[1].attn
    for row in range(len(batch["idx"])):
        edges = [0, *batch["begins"][row, 1:].nonzero().add(1).flatten().tolist(), 16]
        for a, b in pairwise(edges):
            want: Any = "coupling" if through == "coupling" else True
            out = lit.model(batch["idx"][row : row + 1, a:b], return_phase=want)
            targets = batch["targets"][row : row + 1, a:b]
            nats = nats + token_nats(out.logits, targets).double().sum()
            scored += int((targets != IGNORED).sum())
            R = attn.order_parameter(out.phase[1].theta)[0, attn.first_token(b - a) :]
            distance.append((R - run.regularizer.target).square().flatten())
    loss = nats / scored + 5 * torch.cat(distance).mean()
    torch.testing.assert_close(found["loss"], loss)
    expected = torch.autograd.grad(loss, parameters)
    for mine, theirs in zip(gradients, expected, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-3, atol=1e-5)


def test_the_rows_of_a_dataset_are_documents(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, data_config: Callable[..., Any]
) -> None:
    rows = [{"text": f"{i} " * (i % 4 + 1)} for i in range(20)]
    monkeypatch.setattr(hub, "load_dataset", lambda *_, **__: {"train": rows})
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    words = {"name": "own/set", "tokenizer": "byte", "val_fraction": 0.1}
    corpus = prepare(data_config("hub", documents=True, **words))
    for split, kept in (("train", [r for i, r in enumerate(rows) if i not in (9, 19)]),
                        ("val", [rows[9], rows[19]])):  # fmt: skip
        lengths = [len(row["text"]) + 1 for row in kept]
        assert corpus.documents[split].tolist() == [0, *np.cumsum(lengths)[:-1]]
    one = prepare(data_config("hub", **words))
    assert np.array_equal(one.split("train"), corpus.split("train"))
    # Other boundaries in the same text are another corpus.
    joined = [{"text": "\n".join(row["text"] for row in rows[:9])}, *rows[9:]]
    monkeypatch.setattr(hub, "load_dataset", lambda *_, **__: {"train": joined, "validation": rows})
    other = prepare(data_config("hub", documents=True, **{**words, "name": "own/other"}))
    assert other.fingerprint != corpus.fingerprint


def test_a_training_on_documents_resumes_bit_for_bit(tmp_path: Path) -> None:
    words = [word for word in NOISY if word != "attention=kuramoto"]
    words += [*data(tmp_path)[len(SIX_STEPS) :], "attention=phase_sync"]
    phasegpt.fit(compose(words), tmp_path / "whole")
    with crash_at(7):
        phasegpt.fit(compose(words), tmp_path / "cut")
    phasegpt.fit(compose([*words, "resume=true"]), tmp_path / "cut")
    assert_identical(tmp_path / "whole", tmp_path / "cut")
