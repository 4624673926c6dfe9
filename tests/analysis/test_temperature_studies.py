"""The judge and the table of tokens equal their definitions; the studies run and go on."""

import csv
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import make_run, play, script

from phasegpt.analysis.temperature_study import Reader, once
from phasegpt.cli import training_corpus
from phasegpt.core.errors import ConfigError
from phasegpt.interpret import InterpretConfig, interpret, table
from phasegpt.interpretation.anomalous import anomalous_tokens, repeat_probe, to_csv
from phasegpt.model.loading import load_run

REPEAT = "Repeat the word {token}. I repeat the word {token}. I repeat the word "


@pytest.fixture(scope="module")
def run(tmp_path_factory: Any) -> Path:
    folder = tmp_path_factory.mktemp("studies")
    return make_run(folder / "run", "data=text", "data.tokenizer=char", *play(folder))


# ---- the table of tokens


class Letters:
    """A tokenizer of single letters, as far as the table needs one."""

    vocab_size = 60  # of a model of 65 tokens

    def decode(self, ids: list[int]) -> str:
        return "".join(chr(65 + i) for i in ids)

    def encode(self, text: str) -> np.ndarray:
        return np.array([ord(c) - 32 for c in text], dtype=np.uint16)


def test_the_table_equals_what_is_counted_by_hand(make_model: Any, roughen: Any) -> None:
    model = roughen(make_model("softmax"))
    ids = torch.randint(60, (9, 20), generator=torch.Generator().manual_seed(0))
    counts = np.arange(60)
    found = anomalous_tokens(
        model, ids, Letters(), repeat="#{token}$!{token}", counts_V=counts, rows=7
    )
    with torch.no_grad():
        z = model(ids).logits[..., :60].flatten(0, 1)
        embedding = model.transformer["wte"].weight[:60].double()
    least = torch.bincount(z.argmin(-1), minlength=60).double() / 180
    distance = (embedding - embedding.mean(0)).norm(dim=-1)
    assert [row["least_likely"] for row in found["tokens"]] == sorted(least.tolist())[:-8:-1]
    for row in found["tokens"]:
        i = row["token"]
        assert row["least_likely"] == pytest.approx(float(least[i]))
        assert row["inverse"] == pytest.approx(float((-z).softmax(-1)[:, i].mean()), rel=1e-4)
        assert row["probability"] == pytest.approx(float(z.softmax(-1)[:, i].mean()), rel=1e-4)
        assert (row["text"], row["train_count"]) == (chr(65 + i), i)
        assert row["centroid_rank"] == 1 + int((distance < distance[i]).sum())
        prompt = torch.tensor([[3, i, 4, 1, i]])
        with torch.no_grad():
            last = model(prompt).logits[0, -1, :60]
        assert row["repeat_rank"] == 1 + int((last > last[i]).sum())
        assert row["repeat_probability"] == pytest.approx(float(last.softmax(-1)[i]), rel=1e-4)
    logit = (z - z.mean(-1, keepdim=True)).mean(0)
    r = np.corrcoef(logit, np.log1p(counts))[0, 1]
    assert found["summary"]["correlation_logit_log_count"] == pytest.approx(r, rel=1e-4)
    two = z.sort(dim=-1).values
    gap = float((two[:, 1] - two[:, 0]).median())
    assert found["summary"]["median_gap_to_second_lowest"] == pytest.approx(gap, rel=1e-4)
    lines = to_csv(found).splitlines()
    assert len(lines) == 8 and lines[0].startswith("token,text,least_likely")


def test_a_long_probe_keeps_its_end(make_model: Any, roughen: Any) -> None:
    model = roughen(make_model("softmax", block_size=8))
    V = model.config.vocab_size
    long = repeat_probe(model, [5], [[1] * 50, [2, 3, 4, 6, 7, 8]], V)
    assert long == repeat_probe(model, [5], [[1], [2, 3, 4, 6, 7, 8]], V)


def test_interpret_writes_the_table_of_a_run(run: Path, tmp_path: Path, capsys: Any) -> None:
    settings = InterpretConfig(
        checkpoint=str(run), vocabulary=True, tokens=64, context=16, rows=5, output=str(tmp_path)
    )
    result = interpret(settings)
    assert {p.name for p in tmp_path.iterdir()} == {"tokens.json", "tokens.csv"}
    written = json.loads((tmp_path / "tokens.json").read_text())
    assert written == {k: v for k, v in result.items() if k != "output"}
    assert len(written["tokens"]) == 5
    text = training_corpus(load_run(run), None, None)
    counts = np.bincount(text.split("train"), minlength=text.tokenizer.vocab_size)
    for row in written["tokens"]:
        assert row["train_count"] == counts[row["token"]]
        assert text.tokenizer.decode([row["token"]]) == row["text"]
    other = tmp_path / "other.txt"
    other.write_text(text.tokenizer.decode(text.split("train").tolist()[::-1]))
    settings = replace(settings, data_path=str(other), output=str(tmp_path / "other"))
    assert {row["train_count"] for row in interpret(settings)["tokens"]} == {None}
    shown = table(result)
    assert "tokens.csv" in shown and "distance rank" in shown


@pytest.mark.parametrize(
    ("words", "says"),
    [({"repeat": "again"}, "{token}"), ({"repeat": "\u00e9 {token}"}, "cannot be used")],
)
def test_a_probe_that_cannot_be_used_is_named(run: Path, words: Any, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        interpret(InterpretConfig(checkpoint=str(run), vocabulary=True, tokens=64, **words))


def test_the_table_of_tokens_is_for_one_run(run: Path) -> None:
    with pytest.raises(ConfigError, match="for one run"):
        interpret(InterpretConfig(checkpoint=str(run.parent), vocabulary=True))


# ---- the studies


def test_human_text_is_what_the_judge_accepts(run: Path) -> None:
    corpus = training_corpus(load_run(run), None, None)
    reader = Reader(corpus, rows=20, length=60)
    human = reader.quality(reader.human_BT)
    assert human["accepted"] == 0.95
    noise = reader.human_BT.clone()
    noise[:, 16:] = torch.randint(corpus.tokenizer.vocab_size, (20, 60))
    random = reader.quality(noise)
    assert random["accepted"] == 0
    assert random["judge_nats"] > human["judge_nats"] + 2
    assert human["kept_judge_nats"] < human["judge_nats"]
    assert human["real_words"] > 0.5 > random["real_words"]
    with pytest.raises(ConfigError, match="rows=1, length=5000"):
        Reader(corpus, rows=1, length=5000)


def test_a_record_is_made_once_and_not_with_other_settings(tmp_path: Path) -> None:
    made = [once(tmp_path, "a", 1, {"rows": 2}, lambda: {"x": 0.5}) for _ in range(2)]
    assert made[0] == made[1]
    code = made[0].pop("environment")["git"]
    assert code.keys() == {"sha", "dirty"}
    assert made[0] == {"arm": "a", "seed": 1, "settings": {"rows": 2}, "x": 0.5}
    assert once(tmp_path, "a", 1, {"rows": 2}, lambda: {"x": 9.0})["x"] == 0.5
    with pytest.raises(ConfigError, match="another folder"):
        once(tmp_path, "a", 1, {"rows": 3}, lambda: {"x": 0.5})


def test_the_temperature_study_runs_and_goes_on(
    run: Path, tmp_path: Path, monkeypatch: Any, capsys: Any
) -> None:
    arguments = [str(run), "--out", str(tmp_path), "--rows", "4", "--length", "20"]
    script(monkeypatch, "study_temperature.py", *arguments, "--seeds", "1", "2")
    records = {p.stem: p.read_bytes() for p in (tmp_path / "arms").glob("*.json")}
    assert {"human-seed0", "T=-0.01-seed1", "T=-inf-seed2", "T=inf-seed1"} <= set(records)
    assert (tmp_path / "curve.png").stat().st_size > 10_000
    rows = {row["arm"]: row for row in csv.DictReader((tmp_path / "table.csv").open())}
    assert len(records) == 2 * (len(rows) - 1) + 1
    cold, hot = (float(rows[f"T={T}"]["nll_at_one"]) for T in (0.01, -0.01))
    assert cold < float(rows["T=1"]["nll_at_one"]) < float(rows["T=inf"]["nll_at_one"]) < hot
    lost = tmp_path / "arms" / "T=1-seed2.json"
    lost.unlink()
    capsys.readouterr()
    script(monkeypatch, "study_temperature.py", *arguments, "--seeds", "1", "2")
    assert {p.stem: p.read_bytes() for p in (tmp_path / "arms").glob("*.json")} == records
    assert "T=0.5 burst -1 every 20" in capsys.readouterr().out


def test_the_study_of_two_negative_temperatures_runs_and_goes_on(
    run: Path, tmp_path: Path, monkeypatch: Any, capsys: Any
) -> None:
    arguments = [
        str(run), "--out", str(tmp_path / "out"), "--work", str(tmp_path / "work"), "--seeds", "3",
        "--characters", "5000", "--steps", "3", "--rows", "3", "--length", "20",
    ]  # fmt: skip
    script(monkeypatch, "study_negative_temperature.py", *arguments)
    rows = {row["arm"]: row for row in csv.DictReader((tmp_path / "out" / "table.csv").open())}
    assert set(rows) == {
        *("human", "random", "first at T=1", "first at T=-1"),
        *(f"{c} model at T={T}" for c in ("inverse", "plain") for T in (1, -1)),
        *(f"human under {c} model" for c in ("inverse", "plain")),
    }
    nats = {arm: float(row["nll_at_one"]) for arm, row in rows.items() if row["nll_at_one"]}
    assert nats["first at T=1"] < nats["random"] < nats["first at T=-1"]
    second = load_run(tmp_path / "work" / "inverse-seed3")
    assert second.tokenizer.fingerprint == load_run(run).tokenizer.fingerprint
    capsys.readouterr()
    before = (tmp_path / "out" / "table.csv").read_bytes()
    script(monkeypatch, "study_negative_temperature.py", *arguments)
    assert (tmp_path / "out" / "table.csv").read_bytes() == before
    assert "nothing to do" in capsys.readouterr().err
