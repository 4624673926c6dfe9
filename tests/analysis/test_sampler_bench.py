"""The benchmark of samplers: pairs are pairs, likelihoods are those drawn from, runs can be cut."""

import itertools
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import make_run, script, text_data
from torch import Tensor

from phasegpt.analysis.sampler_arms import ARMS, Arm, arms_for
from phasegpt.analysis.sampler_bench import Bench, Protocol, run
from phasegpt.analysis.sampler_subject import Subject
from phasegpt.analysis.sampling import PER_ARM, PER_SAMPLE, regenerate, summarise
from phasegpt.analysis.sampling_figure import ROLES
from phasegpt.cli import training_corpus
from phasegpt.core.errors import ConfigError, DataError
from phasegpt.data import synthetic
from phasegpt.model.loading import load_run
from phasegpt.samplers import decode

ROUNDS, TOKENS = 3, 40  # beyond the context of 32: the window moves on


@pytest.fixture(scope="module")
def subject(tmp_path_factory: pytest.TempPathFactory) -> Subject:
    """A tiny phase model with random weights, and the synthetic play."""
    folder = tmp_path_factory.mktemp("bench")
    data = text_data(folder, synthetic.generate(1, 24000))
    loaded = load_run(make_run(folder / "run", *data, "attention=kuramoto"))
    return Subject.from_run(loaded, training_corpus(loaded, None, None), "tiny")


@pytest.fixture(scope="module")
def bench(subject: Subject) -> Bench:
    prompts = ("Enter", "The ", "Now the ")
    return Bench(subject, Protocol(prompts=prompts, rounds=ROUNDS, tokens=TOKENS))


# ---- the table of arms


def test_every_arm_is_named_once_has_a_role_and_is_paired_with_an_arm() -> None:
    names = [arm.name for arm in ARMS]
    assert len(set(names)) == len(names)
    assert {arm.role for arm in ARMS} == set(ROLES)
    assert {arm.against for arm in ARMS} - {None} <= set(names)


def test_the_control_differs_from_phase_slip_by_the_slip_alone() -> None:
    known = {arm.name: arm for arm in ARMS}
    for arm in ARMS:
        if arm.role in ("slip", "phases") or arm.name == "phase_slip":
            assert arm.chain == known["control"].chain
        if arm.role == "loop":
            assert arm.temperature == known["temperature_0.2"].temperature


def test_arms_are_chosen_by_name_and_those_with_phases_need_phases() -> None:
    assert len(arms_for(True)) == len(ARMS)
    assert {arm.role for arm in ARMS} - {arm.role for arm in arms_for(False)} == {"phases"}
    chosen = arms_for(True, ["control", "human"])
    assert [arm.name for arm in chosen] == ["human", "control"]  # in the table's order
    with pytest.raises(ConfigError, match="the arm contrl is unknown; choose from: human, greedy"):
        arms_for(True, ["contrl"])
    with pytest.raises(ConfigError, match="needs oscillators"):
        arms_for(False, ["phases_1"])


# ---- what is measured


def test_perplexity_is_that_of_the_very_probabilities_drawn_from(subject: Subject) -> None:
    prompt = torch.tensor(subject.encode("Enter the"))
    seen: list[Tensor] = []

    def watch(ids: Tensor | None, logits: Tensor) -> Tensor:
        seen.append(logits.log_softmax(-1))
        return logits

    ids_BT = decode(
        subject.model, prompt.expand(4, -1), max_new_tokens=90, seeds=[1, 2, 3, 4], chain=[watch]
    )
    drawn = ids_BT[:, len(prompt) :]
    log_p = torch.stack(seen, dim=1).gather(-1, drawn[..., None])[..., 0]
    nats = torch.tensor(subject.nats(ids_BT, len(prompt)))
    torch.testing.assert_close(nats.float(), -log_p.mean(1), atol=1e-4, rtol=1e-4)


def test_human_rows_do_not_overlap_and_a_short_text_is_an_error(subject: Subject) -> None:
    rows = subject.human(6, 100)
    text = subject.decode(subject.human_T.tolist())
    places = [text.index(subject.decode(row.tolist())) for row in rows]
    assert all(b - a >= 100 for a, b in itertools.pairwise(places))
    with pytest.raises(DataError, match="use fewer rounds or tokens, or more text"):
        subject.human(100, 1000)


def test_openings_are_beginnings_of_lines_of_human_text(subject: Subject) -> None:
    text = "\n" + subject.decode(subject.human_T.tolist())
    openings = subject.openings(5)
    assert len(set(openings)) == 5
    assert all(f"\n{opening}" in text and len(opening) == 48 for opening in openings)


def test_rows_of_all_arms_have_the_same_prompt_and_random_stream(bench: Bench) -> None:
    slip = ("PhaseSlip", {"angle": 0.0, "force": True})
    chain = (("Temperature", 0.65), ("TopK", 40))
    plain = bench.record(Arm(name="plain", role="control", chain=chain))
    still = bench.record(Arm(name="still", role="slip", chain=chain, intervention=slip))
    assert plain["samples"] == still["samples"]
    assert plain["texts"] == still["texts"]
    assert plain["texts"][0]["prompt"] == "Enter"
    assert len({sample["text"] for sample in plain["texts"]}) == 3
    assert still["effect"]["kl"] == pytest.approx(0, abs=1e-6)


def test_a_slip_moves_the_samples_and_its_size_is_told(bench: Bench) -> None:
    known = {arm.name: arm for arm in ARMS}
    bare, gated, seed = (
        bench.record(known[name]) for name in ("slip_1_bare", "slip_1", "phase_slip")
    )
    assert bare["effect"]["kl"] > 100 * seed["effect"]["kl"] > 0
    assert bare["effect"]["weight"] == 1 and 0 < gated["effect"]["weight"] < 0.55
    assert bare["samples"]["ppl"] != gated["samples"]["ppl"]


def test_a_model_that_sees_the_future_is_refused(tmp_path: Path) -> None:
    loaded = load_run(make_run(tmp_path / "run", "attention=as_coded"))
    corpus: Any = None
    with pytest.raises(ConfigError, match="sees the future"):
        Subject.from_run(loaded, corpus, "leaky")


# ---- end to end


def test_every_arm_runs_has_finite_metrics_and_makes_tables(bench: Bench, tmp_path: Path) -> None:
    lines: list[str] = []
    run(bench, ARMS, tmp_path, say=lines.append)
    assert len(lines) == len(ARMS)
    rows = summarise(tmp_path)
    assert [row["arm"] for row in rows] == [arm.name for arm in ARMS]
    for row in rows:
        assert row["n"] == 3 * ROUNDS
        assert all(row[metric] is not None for metric in PER_SAMPLE)
    record = json.loads((tmp_path / "arms" / "human.json").read_text())
    assert set(record["samples"]) == set(PER_SAMPLE) and set(record["together"]) == set(PER_ARM)
    assert {path.name for path in regenerate(tmp_path)} == {"table.csv", "table.md", "frontier.png"}


def test_a_run_that_was_cut_goes_on_and_other_conditions_are_refused(
    bench: Bench, tmp_path: Path
) -> None:
    arms = arms_for(True, ["human", "greedy", "control"])
    run(bench, arms[:2], tmp_path)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.json")}
    lines: list[str] = []
    run(bench, arms, tmp_path, say=lines.append)
    assert [line.endswith("has its record") for line in lines] == [True, True, False]
    assert all(path.stat().st_mtime_ns == time for path, time in before.items())
    other = Bench(bench.subject, Protocol(prompts=("Now",), rounds=ROUNDS, tokens=TOKENS))
    with pytest.raises(ConfigError, match="another protocol; give another --out, or --force"):
        run(other, arms, tmp_path)
    run(other, arms, tmp_path, force=True)
    assert summarise(tmp_path)[0]["n"] == ROUNDS


def test_the_same_arm_measured_again_gives_the_same_record(bench: Bench) -> None:
    (arm,) = arms_for(True, ["standard"])
    a, b = bench.record(arm), bench.record(arm)
    assert {k: v for k, v in a.items() if k != "cost"} == {
        k: v for k, v in b.items() if k != "cost"
    }


def test_a_hugging_face_model_goes_through_the_same_bench(tmp_path: Path) -> None:
    from transformers import GPT2Config, GPT2LMHeadModel

    text = synthetic.generate(2, 12000)
    alphabet = sorted(set(text))

    class Letters:
        """The part of a Hugging Face tokenizer that the bench uses, over characters."""

        def get_vocab(self) -> dict[str, int]:
            return {c: i for i, c in enumerate(alphabet)}

        def __call__(self, text: str, add_special_tokens: bool) -> dict[str, list[int]]:
            return {"input_ids": [alphabet.index(c) for c in text]}

        def decode(self, ids: list[int], clean_up_tokenization_spaces: bool) -> str:
            return "".join(alphabet[i] for i in ids)

    config = GPT2Config(
        n_layer=2, n_head=2, n_embd=16, n_positions=64, vocab_size=len(alphabet) + 3,
        initializer_range=0.3, bos_token_id=0, eos_token_id=0,
    )  # fmt: skip
    subject = Subject.from_hugging_face(GPT2LMHeadModel(config), Letters(), text, "theirs")
    bench = Bench(subject, Protocol(prompts=("Enter", "The "), rounds=2, tokens=20))
    run(bench, arms_for(False, ["human", "control", "slip_1", "shock_1"]), tmp_path)
    rows = {row["arm"]: row for row in summarise(tmp_path)}
    assert rows["slip_1"]["kl"] > 0 and rows["control"]["kl"] is None
    assert not subject.phases


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--text", "nowhere.txt"], "cannot read nowhere.txt"),
        ([], "give --text FILE"),
        (["--regenerate", "nowhere"], "nowhere"),
    ],
)
def test_the_command_says_what_it_lacks(
    arguments: list[str], says: str, monkeypatch: Any, capsys: Any, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as end:
        script(monkeypatch, "bench_samplers.py", "some/model", *arguments)
    assert end.value.code not in (0, None)
    assert says in capsys.readouterr().err


@pytest.mark.parametrize("wrong", [{"rounds": 0}, {"tokens": 0}, {"rounds": 1.5}])
def test_a_protocol_needs_rounds_and_tokens(wrong: dict) -> None:
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        Protocol(prompts=("a",), **wrong)
