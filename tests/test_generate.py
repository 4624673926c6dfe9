"""Text comes as it is written, is fixed by the seed, and prompts are taken to the letter."""

import math
import os
import random
import re
import signal
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import TEXT, command, make_run, text_data
from processes import Forked, python

from phasegpt.cli import literal
from phasegpt.core.composition import compose, plain
from phasegpt.core.errors import ConfigError, DataError
from phasegpt.generate import GenerateConfig, chain_of, generate
from phasegpt.model import loading
from phasegpt.samplers import DRY

PROMPTS = [
    "ROMEO:",
    "To be, or not to be: that is",
    "a=b",
    "it's",
    '"quoted"',
    "'both' \"kinds\"",
    "two\nlines\n",
    "${oc.env:HOME} \\${x} \\\\${y}",
    "[1,2] {a: b} (c)",
    "caf\u00e9 \u4f60\u597d \U0001f600",
    "back\\slash\\",
    "12",
    "true",
    "1e5",
    " spaces ",
    "# no comment",
    "~x",
    "+x",
    "",
]


@pytest.fixture(scope="module")
def bytes_run(tmp_path_factory: Any) -> Path:
    folder = tmp_path_factory.mktemp("generate-bytes")
    return make_run(folder / "run", *text_data(folder, TEXT, "byte"))


def settings(run: Path, **values: Any) -> GenerateConfig:
    return GenerateConfig(**{"checkpoint": str(run), "max_new_tokens": 60, **values})


# ---- the text


def test_the_same_seed_gives_the_same_text(run: Path) -> None:
    first = generate(settings(run, seed=3))
    assert generate(settings(run, seed=3)) == first
    assert generate(settings(run, seed=4)) != first
    assert first[0].startswith("\n")
    assert len(first[0]) == 61  # longer than the model's context of 32


def test_a_sample_does_not_depend_on_how_many_there_are(run: Path) -> None:
    three = generate(settings(run, num_samples=3, prompt="Shall I"))
    assert generate(settings(run, num_samples=1, prompt="Shall I")) == three[:1]
    assert len(set(three)) == 3
    assert all(text.startswith("Shall I") for text in three)


def test_samples_of_one_seed_are_not_those_of_the_next(run: Path) -> None:
    assert not set(generate(settings(run, num_samples=4, seed=1))) & set(
        generate(settings(run, num_samples=4, seed=2))
    )


def test_cached_text_equals_recomputed_text(run: Path) -> None:
    assert generate(settings(run)) == generate(settings(run, use_cache=False))


def test_temperature_zero_does_not_depend_on_the_seed(run: Path) -> None:
    texts = {generate(settings(run, temperature=0.0, seed=seed))[0] for seed in range(3)}
    assert len(texts) == 1
    (sharp,) = generate(settings(run, top_k=1, temperature=5.0))
    assert texts == {sharp}


def test_every_option_of_the_chain_reaches_the_text(run: Path, tmp_path: Path) -> None:
    plain = generate(settings(run, prompt="Shall"))
    (tmp_path / "words.txt").write_text("shall i summer\nday")
    for options in (
        {"temperature": -1.0},
        {"temperature": math.inf},
        {"temperature": 0.1, "temperature_high": 3.0},
        {"burst_every": 3, "burst_length": 2, "burst_temperature": -math.inf},
        {"typical_p": 0.2},
        {"top_n_sigma": 0.5},
        {"top_h": 0.2},
        {"epsilon_cutoff": 0.1},
        {"eta_cutoff": 0.9},
        {"p_less": True},
        {"repetition_penalty": 1.5},
        {"dry_multiplier": 3.0, "dry_allowed_length": 1},
        {"allowed": "ascii", "temperature": -0.5},
        {"allowed": "seen", "min_p": 0.3},
        {"allowed": "regex:[a-m ]"},
        {"allowed": f"words:{tmp_path / 'words.txt'}"},
    ):
        assert generate(settings(run, prompt="Shall", **options)) != plain, options


def test_allowed_holds_for_every_token_after_the_prompt(run: Path, tmp_path: Path) -> None:
    (text,) = generate(settings(run, prompt="Shall I", allowed="regex:[a-m ]", temperature=-2.0))
    assert set(text[7:]) <= set("abcdefghijklm ")
    (tmp_path / "words.txt").write_text("Shall\nI summer's day a")
    (text,) = generate(
        settings(run, prompt="Sh", allowed=f"words:{tmp_path / 'words.txt'}", temperature=3.0)
    )
    words = re.findall(r"[A-Za-z']+", text.lower())
    assert set(words[:-1]) <= {"shall", "i", "summer's", "day", "a"}
    assert len(words) > 3


def test_dry_breakers_are_characters_to_the_letter(run: Path) -> None:
    from phasegpt.model.loading import load_run

    loaded = load_run(run)
    (dry, _) = chain_of(settings(run, dry_multiplier=1.0, dry_breakers="?\n,"), loaded, prompt=1)
    assert isinstance(dry, DRY)
    assert loaded.tokenizer.decode(dry.breakers.tolist()) == "\n,?"


def test_a_padded_vocabulary_is_never_sampled(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", "model.vocab_size=300", *text_data(tmp_path, TEXT))
    (text,) = generate(settings(run, temperature=100.0, max_new_tokens=200))
    assert len(text) == 201


@pytest.mark.parametrize("tokenizer", ["char", "byte"])
def test_the_first_text_is_written_as_it_comes(run: Path, bytes_run: Path, tokenizer: str) -> None:
    pieces: list[str] = []
    options = {"num_samples": 2, "max_new_tokens": 80, "temperature": 3.0}
    chosen = run if tokenizer == "char" else bytes_run
    texts = generate(settings(chosen, **options), write=pieces.append)
    assert "".join(pieces) == texts[0]
    assert pieces[0] == "\n"
    if tokenizer == "char":
        assert [len(p) for p in pieces] == [1] * 81 + [0]
    else:
        assert "" in pieces[1:-1]  # a byte that is no whole character yet


def test_writing_stops_the_moment_the_reader_does(run: Path) -> None:
    pieces: list[str] = []

    def write(text: str) -> None:
        pieces.append(text)
        if len(pieces) == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        generate(settings(run, max_new_tokens=10**6), write=write)
    assert len(pieces) == 4


# ---- the command


def test_one_sample_is_printed_alone_and_several_under_headers(
    run: Path, monkeypatch: Any, capsys: Any
) -> None:
    arguments = [f"checkpoint={run}", "prompt=Shall I", "max_new_tokens=9", "seed=5"]
    command(monkeypatch, "generate", *arguments)
    alone = capsys.readouterr().out
    command(monkeypatch, "generate", *arguments, "num_samples=3")
    texts = generate(settings(run, prompt="Shall I", max_new_tokens=9, seed=5, num_samples=3))
    assert alone == texts[0] + "\n"
    assert capsys.readouterr().out == "".join(
        f"--- sample {i} of 3 ---\n{text}\n" for i, text in enumerate(texts, start=1)
    )


def test_the_line_of_the_readme_works(run: Path, monkeypatch: Any, capsys: Any) -> None:
    command(
        monkeypatch, "generate", f"checkpoint={run}", "prompt=Rough:", "max_new_tokens=20",
        "temperature=0.8", "top_k=40", "top_p=0.95", "min_p=0.05", "seed=1", "num_samples=3",
    )  # fmt: skip
    out = capsys.readouterr().out
    assert out.count("Rough:") == 3
    assert out.count("--- sample") == 3


@pytest.mark.parametrize("prompt", PROMPTS)
def test_a_prompt_reaches_the_model_to_the_letter(prompt: str) -> None:
    arguments = literal([f"prompt={prompt}", "seed=3"], "prompt")
    assert arguments[1] == "seed=3"
    values = plain(compose(arguments, config_name="generate"))
    assert GenerateConfig.parse(values).prompt == prompt


def test_any_text_survives_hydras_grammar() -> None:
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from omegaconf import OmegaConf

    parser, rng = OverridesParser.create(), random.Random(0)
    for _ in range(300):
        text = "".join(rng.choice("ab1'\"\\${}[]() \n\t=,:#~+\u00e9") for _ in range(8))
        (argument,) = literal([f"prompt={text}"], "prompt")
        value = parser.parse_override(argument).value()
        assert OmegaConf.to_container(OmegaConf.create({"x": value}), resolve=True) == {"x": text}


def test_null_other_keys_and_sweeps_keep_hydras_meaning() -> None:
    for arguments in (["output=null"], ["other=a,b"], ["-m", "output=a,b"], ["--help"], ["output"]):
        assert literal(arguments, "output") == arguments


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["checkpoint=null"], "checkpoint is not set"),
        (["prompt="], "prompt is empty"),
        (["prompt=caf\u00e9"], "'\u00e9' (place 3)"),
        (["temperature=nan"], "temperature=nan"),
        (["temperature=null"], "give one of the two"),
        (["temperature_high=-1"], "of one sign"),
        (["burst_every=0"], "every=0"),
        (["burst_every=5", "burst_temperature=1"], "must be negative"),
        (["burst_every=5", "burst_length=6"], "at most every=5"),
        (["burst_length=3"], "burst_length=3 does nothing while burst_every=None"),
        (["dry_base=2"], "dry_base=2.0 does nothing while dry_multiplier=None"),
        (["typical_p=0"], "typical_p=0.0"),
        (["top_n_sigma=0"], "top_n_sigma=0.0"),
        (["repetition_penalty=0"], "repetition_penalty=0.0"),
        (["dry_multiplier=-1"], "dry_multiplier=-1.0"),
        (["dry_multiplier=1", "dry_base=1"], "dry_base=1.0"),
        (["allowed=letters"], "ascii, seen, regex:PATTERN, words:FILE"),
        (["allowed=regex:["], "no regular expression"),
        (["allowed=regex:9+"], "no token matches"),
        (["allowed=words:nowhere.txt"], "cannot read nowhere.txt"),
        (["temperature=hot"], "temperature='hot'"),
        (["top_p=2"], "top_p=2.0"),
        (["top_p=0"], "top_p=0.0"),
        (["top_k=0"], "null to keep every token"),
        (["min_p=-1"], "min_p=-1.0"),
        (["num_samples=0"], "num_samples=0"),
        (["max_new_tokens=0"], "max_new_tokens=0"),
        (["seed=-1"], "seed=-1"),
        (["seed=1.5"], "seed=1.5"),
        (["checkpoint=nowhere"], "nowhere does not exist"),
        (["which=first"], "best, last"),
        (["promt=x"], "promt"),
        (["top_p=a,b"], "top_p"),
    ],
)
def test_bad_input_gives_a_short_message_and_a_failure(
    run: Path, monkeypatch: Any, capsys: Any, arguments: list[str], says: str
) -> None:
    given = arguments if "checkpoint" in arguments[0] else [f"checkpoint={run}", *arguments]
    with pytest.raises(SystemExit) as end:
        command(monkeypatch, "generate", *given)
    assert end.value.code not in (0, None)
    captured = capsys.readouterr()
    assert says in captured.err
    assert captured.out == ""
    assert len(captured.err.splitlines()) <= 20
    assert "Traceback" not in captured.err


def test_a_prompt_beyond_the_context_says_that_only_its_end_is_seen(run: Path, capsys: Any) -> None:
    (text,) = generate(settings(run, prompt="so long " * 10, max_new_tokens=5))
    assert len(text) == 85
    assert "80 tokens; the model attends to at most 32" in capsys.readouterr().err


@pytest.mark.filterwarnings("ignore:.*sees the future")
def test_a_model_that_sees_the_future_writes_only_without_the_cache(tmp_path: Path) -> None:
    data = text_data(tmp_path, TEXT)
    run = make_run(tmp_path / "run", "attention=as_coded", *data)
    with pytest.raises(ConfigError, match="use_cache=false"):
        generate(settings(run))
    assert len(generate(settings(run, use_cache=False))[0]) == 61


def test_an_exported_folder_writes_the_same_text(run: Path, tmp_path: Path) -> None:
    folder = loading.export(run, tmp_path / "shared")
    assert generate(settings(folder)) == generate(settings(run))


def test_a_prompt_outside_the_vocabulary_names_the_character(run: Path) -> None:
    with pytest.raises(DataError, match="'0'"):
        generate(settings(run, prompt="Sonnet 0"))


def stops_at_ctrl_c() -> None:
    """A shell's background job ignores Ctrl-C, and so would its children."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


def test_text_streams_from_a_real_process_and_ctrl_c_ends_it_quietly(run: Path) -> None:
    words = (f"checkpoint={run}", "prompt=Shall I, ", "max_new_tokens=10000000")
    process = Forked(
        python("-m", "phasegpt.generate", *words),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        before=stops_at_ctrl_c,
    )
    assert process.stdout is not None
    assert process.stdout.read(40).startswith("Shall I, ")  # long before the end
    os.kill(process.pid, signal.SIGINT)
    _, err = process.communicate()
    assert process.returncode == 130
    assert err.split() == ["stopped"]


def test_the_global_generator_is_left_alone(run: Path) -> None:
    state = torch.get_rng_state()
    generate(settings(run, max_new_tokens=3))
    assert torch.equal(torch.get_rng_state(), state)
