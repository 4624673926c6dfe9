"""Byte pairs trained here, and any tokenizer.json: kept with the model, the same everywhere."""

import dataclasses
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tokenizers as hf
import torch
from helpers import TEXT, make_run, text_data
from tokenizers import decoders, models, normalizers, pre_tokenizers
from transformers import AutoTokenizer

import phasegpt
from phasegpt.core.errors import ConfigError, DataError
from phasegpt.data import hf_tokenizers, tokenizers
from phasegpt.data.corpus import prepare
from phasegpt.data.json_tokenizers import JsonTokenizer
from phasegpt.data.tokenizers import StreamDecoder, Tokenizer, from_file, train_byte_pairs
from phasegpt.evaluate import EvaluateConfig, evaluate
from phasegpt.export import ExportConfig, export
from phasegpt.generate import GenerateConfig, generate
from phasegpt.model import loading, pretrained
from phasegpt.model.config import gpt_config
from phasegpt.training.config import RunConfig, run_config

ODD = "don't  \n\n a caf\u00e9 \u65e5\u672c \U0001f600\t<|endoftext|> <unk> 123\r\n"


def sentence_pieces() -> str:
    """A tokenizer.json that puts a space in front, has bytes for the unknown, and cuts off."""
    words = ["<unk>", "\u2581", "t", "h", "e", "a", "\u2581t", "he", "\u2581the", "!"]
    vocabulary = {token: i for i, token in enumerate(words)}
    vocabulary |= {f"<0x{b:02X}>": 10 + b for b in range(256)}
    merges = [("\u2581", "t"), ("h", "e"), ("\u2581t", "he")]
    fast = hf.Tokenizer(models.BPE(vocabulary, merges, unk_token="<unk>", byte_fallback=True))
    fast.normalizer = normalizers.Sequence(
        [normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")]
    )
    replaced = decoders.Replace("\u2581", " ")
    fast.decoder = decoders.Sequence(
        [replaced, decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    fast.add_special_tokens(["<|endoftext|>"])
    fast.enable_truncation(3)
    return fast.to_str()


def byte_level() -> str:
    fast = hf.Tokenizer(models.BPE())
    fast.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    fast.decoder = decoders.ByteLevel()
    trainer = hf.trainers.BpeTrainer(
        vocab_size=300,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=["<|endoftext|>"],
        show_progress=False,
    )
    fast.train_from_iterator([TEXT], trainer)
    return fast.to_str()


def of_kind(kind: str) -> Tokenizer:
    if kind == "bpe":
        return train_byte_pairs([TEXT], 300)
    return JsonTokenizer(byte_level() if kind == "bytes" else sentence_pieces())


def test_a_tokenizer_that_changes_the_text_is_refused_there():
    fast = hf.Tokenizer.from_str(byte_level())
    fast.normalizer = normalizers.Lowercase()
    lower = JsonTokenizer(fast.to_str())
    assert lower.decode(lower.encode("small")) == "small"
    with pytest.raises(DataError, match=r"does not keep the text: 'a Cat' becomes 'a cat', and"):
        lower.encode("a Cat")
    words = hf.Tokenizer(models.WordLevel({"<unk>": 0, "so": 1, "\u2581so": 2}, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="never")
    words.decoder = decoders.Metaspace()
    unknown = JsonTokenizer(words.to_str())
    assert unknown.encode("so so").tolist() == [1, 2]
    with pytest.raises(DataError, match=r"'so be' becomes 'so<unk>'"):
        unknown.encode("so be")
    assert hf_tokenizers.prefix_token(unknown) == 0  # it has no end of a line


@pytest.mark.parametrize("kind", ["bpe", "bytes", "pieces"])
def test_text_is_taken_to_the_letter(kind: str, tmp_path: Path) -> None:
    tokenizer = of_kind(kind)
    for text in (ODD, TEXT, " the", "", " "):
        ids = tokenizer.encode(text)
        assert tokenizer.decode(ids) == text  # nothing in front, nothing cut off
        decoder = StreamDecoder(tokenizer)
        assert "".join(decoder.push(int(i)) for i in ids) + decoder.flush() == text
    assert len(tokenizer.encode("<|endoftext|>")) > 1
    again = tokenizers.from_state(json.loads(json.dumps(tokenizer.state())))
    assert again.fingerprint == tokenizer.fingerprint
    assert np.array_equal(again.encode(ODD), tokenizer.encode(ODD))


@pytest.mark.parametrize("kind", ["bpe", "bytes", "pieces"])
def test_autotokenizer_has_the_same_ids_and_texts(kind: str, tmp_path: Path) -> None:
    tokenizer = of_kind(kind)
    (tmp_path / "tokenizer.json").write_text(hf_tokenizers.tokenizer_json(tokenizer))
    config = hf_tokenizers.tokenizer_config(tokenizer, 32)
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    theirs = AutoTokenizer.from_pretrained(tmp_path)
    for text in (ODD, TEXT, " the", "", "".join(map(chr, range(1, 700)))):
        ids = theirs(text)["input_ids"]
        assert ids == tokenizer.encode(text).tolist() and theirs.decode(ids) == text
    if kind == "pieces":  # of bytes that are no text, theirs replaces those beside them too
        return
    generator = torch.Generator().manual_seed(0)
    for ids in torch.randint(tokenizer.vocab_size, (20, 12), generator=generator).tolist():
        assert theirs.decode(ids) == tokenizer.decode(ids)


def test_the_same_text_gives_the_same_byte_pairs_in_any_process() -> None:
    program = (
        "import sys\nfrom phasegpt.data.tokenizers import train_byte_pairs\n"
        "print(train_byte_pairs(sys.argv[1:], 300).fingerprint)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, *TEXT.splitlines(keepends=True)],
        capture_output=True, text=True, check=True,
        env={**os.environ, "TOKENIZERS_PARALLELISM": "true"},
    )  # fmt: skip
    here = {train_byte_pairs(TEXT.splitlines(keepends=True), 300).fingerprint for _ in "ab"}
    assert here == {done.stdout.strip()}


def test_a_text_with_too_few_pairs_is_an_error() -> None:
    with pytest.raises(DataError, match=r"data.vocab_size=5000 is too large .* tokens; lower it"):
        train_byte_pairs([TEXT], 5000)


def test_a_wide_vocabulary_gets_wider_ids(data_config: Any, tmp_path: Path) -> None:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokens = [*alphabet, *(f"never{i}" for i in range(70_000)), "w1"]
    vocabulary = {token: i for i, token in enumerate(tokens)}
    fast = hf.Tokenizer(models.BPE(vocabulary, [("w", "1")]))
    fast.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    fast.decoder = decoders.ByteLevel()
    (tmp_path / "tokenizer.json").write_text(fast.to_str())
    (tmp_path / "t.txt").write_text("w1 " * 100)
    c = data_config("text", path=str(tmp_path / "t.txt"), tokenizer="hf",
                    tokenizer_path=str(tmp_path))  # fmt: skip
    corpus = prepare(c)
    assert corpus.split("train").dtype == np.uint32
    assert corpus.split("train")[0] == 70_256 == corpus.tokenizer.vocab_size - 1
    assert corpus.tokenizer.decode(corpus.split("train")) == "w1 " * 90


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda tree: tree.update(decoder=None), r"the decoder null, which gives a token no text"),
        (lambda tree: tree.update(decoder={"type": "WordPiece", "prefix": "##", "cleanup": True}),
         r"the decoder WordPiece"),
        (lambda tree: tree.update(decoder={"type": "Replace", "pattern": {"Regex": "_+"},
                                           "content": " "}),
         r"the decoder Replace by Regex, which gives"),
        (lambda tree: tree.update(decoder={"type": "Replace", "pattern": 3, "content": " "}),
         r"no tokenizer\.json"),
        (lambda tree: tree.update(model={"type": "BPE"}), r"no tokenizer\.json"),
        (lambda tree: tree.pop("model"), r"no tokenizer\.json"),
    ],
)  # fmt: skip
def test_a_file_that_does_not_serve_is_refused_by_name(
    tmp_path: Path, change: Any, says: str
) -> None:
    tree = json.loads(byte_level())
    change(tree)
    (tmp_path / "tokenizer.json").write_text(json.dumps(tree))
    with pytest.raises(DataError, match=says) as error:
        from_file(str(tmp_path))
    assert str(tmp_path) in str(error.value)


def test_no_file_and_no_json_are_errors(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="cannot read"):
        from_file(str(tmp_path / "nothing.json"))
    (tmp_path / "a.json").write_text("{")
    with pytest.raises(DataError, match="is not JSON"):
        from_file(str(tmp_path / "a.json"))


def test_without_the_extra_the_error_says_what_to_install(
    data_config: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "t.txt").write_text(TEXT)
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    c = data_config("text", path=str(tmp_path / "t.txt"), tokenizer="bpe", vocab_size=300)
    with pytest.raises(ConfigError, match=r"tokenizer=bpe needs .* pip install 'phasegpt\[hf\]'"):
        prepare(c)


def test_keys_that_are_missing_or_idle_are_refused(data_config: Any) -> None:
    with pytest.raises(ConfigError, match=r"tokenizer=bpe needs data\.vocab_size"):
        data_config(tokenizer="bpe")
    with pytest.raises(ConfigError, match=r"tokenizer=hf needs data\.tokenizer_path"):
        data_config(tokenizer="hf")
    for words in ({"vocab_size": 300}, {"tokenizer_path": "x"}):
        with pytest.raises(ConfigError, match=r"does nothing while data\.tokenizer=char"):
            data_config(**words).check_idle()


# --- a model with such a tokenizer -----------------------------------------------------------


@pytest.fixture(scope="module", params=["bpe", "hf"])
def made(request: Any, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A run, and its folder, from which the cache and the tokenizer's file are gone."""
    folder = tmp_path_factory.mktemp(request.param)
    words = ["data.vocab_size=300"]
    if request.param == "hf":
        (folder / "own.json").write_text(byte_level())
        words = [f"data.tokenizer_path={folder / 'own.json'}"]
    run = make_run(folder / "run", *text_data(folder, TEXT, request.param), *words)
    shutil.rmtree(folder / "cache")
    (folder / "own.json").unlink(missing_ok=True)
    return run, folder


def test_a_run_needs_no_file_and_no_training_of_its_tokenizer(
    made: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    run, folder = made
    monkeypatch.setattr(tokenizers, "train_byte_pairs", None)
    model = phasegpt.load(run)
    assert model.tokenizer.vocab_size == model.config.vocab_size
    cache = str(folder / "other")
    result = evaluate(EvaluateConfig(checkpoint=str(run), split="val", cache_dir=cache))
    assert result["unit"] in ("BPE token", "token") and result["finite"]
    assert result["bytes_scored"] < len(TEXT) // 10 + 1
    (folder / "new.txt").write_text(TEXT[::-1])
    other = evaluate(
        EvaluateConfig(checkpoint=str(run), split="val", cache_dir=cache,
                       data_path=str(folder / "new.txt"))
    )  # fmt: skip
    assert other["tokens_scored"] != result["tokens_scored"]


def test_text_is_generated_and_words_are_held(made: tuple[Path, Path], tmp_path: Path) -> None:
    run, _ = made
    (tmp_path / "words.txt").write_text("shall\ni\nthee\n")
    settings = GenerateConfig(
        checkpoint=str(run), prompt="Shall I", max_new_tokens=30, seed=1,
        allowed=f"words:{tmp_path / 'words.txt'}",
    )  # fmt: skip
    (text,) = generate(settings)
    assert text.startswith("Shall I")  # and single bytes are no words
    assert {word.lower() for word in re.findall("[A-Za-z]+", text)} <= {"shall", "i", "thee"}


def test_an_export_has_the_tokenizer_and_training_goes_on_with_it(
    made: tuple[Path, Path], tmp_path: Path
) -> None:
    run, _ = made
    tokenizer = phasegpt.load(run).tokenizer
    for form in ("hf", "phasegpt"):
        export(ExportConfig(checkpoint=str(run), out=str(tmp_path / form), format=form))
        assert phasegpt.load(tmp_path / form).tokenizer.fingerprint == tokenizer.fingerprint
        again = from_file(str(tmp_path / form))
        assert again.fingerprint == tokenizer.fingerprint
    theirs = AutoTokenizer.from_pretrained(tmp_path / "hf")
    assert theirs(TEXT)["input_ids"] == tokenizer.encode(TEXT).tolist()
    shape = loading.load_run(run).model.config
    pretrained.start(str(run), shape, again)
    with pytest.raises(ConfigError, match=r"data\.tokenizer=hf and data\.tokenizer_path=EXPORT"):
        pretrained.start(str(run), shape, train_byte_pairs([TEXT[:500]], 270))


def test_characters_of_an_export_serve_another_text(tmp_path: Path, data_config: Any) -> None:
    run = make_run(tmp_path / "run", *text_data(tmp_path, TEXT))
    export(ExportConfig(checkpoint=str(run), out=str(tmp_path / "hf")))
    (tmp_path / "other.txt").write_text("a shade of summer " * 20)
    c = data_config("text", path=str(tmp_path / "other.txt"), tokenizer="hf",
                    tokenizer_path=str(tmp_path / "hf"))  # fmt: skip
    tokenizer = prepare(c).tokenizer
    assert tokenizer.fingerprint == phasegpt.load(run).tokenizer.fingerprint
    (tmp_path / "new.txt").write_text("{}" * 20)
    with pytest.raises(DataError, match="not among the"):
        prepare(dataclasses.replace(c, path=str(tmp_path / "new.txt")))


def test_hashes_tell_tokenizers_apart_and_leave_old_runs_alone(tmp_path: Path) -> None:
    (tmp_path / "own.json").write_text(byte_level())
    run = RunConfig.parse(
        phasegpt.core.composition.plain(
            phasegpt.compose(["model=nano", "data=text", "data.path=x"])
        )
    )
    changed = {
        dataclasses.replace(run, data=dataclasses.replace(run.data, **words)).hash
        for words in (
            {},
            {"tokenizer": "bpe", "vocab_size": 300},
            {"tokenizer": "bpe", "vocab_size": 301},
            {"tokenizer": "hf", "tokenizer_path": "a"},
        )
    }
    assert len(changed) == 4
    data = dataclasses.replace(run.data, tokenizer="hf", tokenizer_path=str(tmp_path / "own.json"))
    assert gpt_config(run.model, run.attention, data).vocab_size == 300
    data = dataclasses.replace(run.data, tokenizer="bpe", vocab_size=512)
    assert gpt_config(run.model, run.attention, data).vocab_size == 512
    assert run_config(run) is run
