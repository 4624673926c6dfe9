"""The files of a study follow from its records alone, and say what the records say."""

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers import script

from phasegpt.analysis.study import TEST_FILE, collect, load_records, loss_sd
from phasegpt.analysis.study_view import band, study_view, write_study
from phasegpt.analysis.tables import baseline_of, cells, off_control, summary
from phasegpt.core.errors import ConfigError, DataError

KURAMOTO = {"name": "kuramoto", "readout": "bias", "coupling": 1.0, "steps": 10, "dt": 0.1}


def record(seed: int, ppl: float, **more: Any) -> dict[str, Any]:
    return {
        **{"status": "ok", "seed": seed, "step": 10, "best": {"val/ppl": ppl}},
        "final": {"phase/val/R_end/layer2": 0.5},
        "parameters": {"non_embedding": 7},
        "curves": {"val/ppl": [[5, ppl + 1], [10, ppl]], "phase/R/layer2": [[5, 0.4]]},
        **more,
    }


def ledger(study: Path, arm: str, ppl: list[float], **more: Any) -> None:
    """Records of seeds 1, 2 ...; `attention` is short for that part of the configuration."""
    if "attention" in more:
        more["config"] = {"attention": more.pop("attention")}
    (study / "runs").mkdir(parents=True, exist_ok=True)
    for seed, value in enumerate(ppl, start=1):
        path = study / "runs" / f"{arm}-seed{seed}.json"
        path.write_text(json.dumps(record(seed, value, **more)))


def rows_of(study: Path) -> dict[str, dict[str, Any]]:
    return {row["arm"]: row for row in summary(study).rows}


def test_mean_sd_and_t_interval_of_known_numbers(tmp_path):
    ledger(tmp_path, "b", [4.0, 5.0, 6.0])
    ledger(tmp_path, "a", [3.0])
    first, second = summary(tmp_path).rows
    assert (first["arm"], first["n"], first["sd"], first["low"]) == ("a", 1, None, None)
    assert second["mean"] == 5.0 and second["sd"] == 1.0
    half = 4.302652729911275 / 3**0.5  # Student's t at 0.975 with 2 degrees of freedom
    assert second["low"] == pytest.approx(5 - half) and second["high"] == pytest.approx(5 + half)


def test_differences_to_the_baseline_are_paired_by_seed(tmp_path):
    ledger(tmp_path, "softmax", [4.0, 8.0, 6.0])
    ledger(tmp_path, "other", [3.0, 7.0, 5.0])  # always one less, whatever the seed does
    ledger(tmp_path, "more", [3.0, 7.0, 5.0, 90.0])  # a seed without its partner makes no pair
    rows = rows_of(tmp_path)
    for arm in ("other", "more"):
        row = rows[arm]
        assert (row["difference"], row["difference_low"], row["difference_high"]) == (-1, -1, -1)
        assert row["difference_pairs"] == 3
    assert rows["softmax"]["difference"] is None
    table = cells(list(rows.values()), "softmax")
    column = table[0].index("minus softmax [95%]")
    told = {row[0]: row[column] for row in table[1:]}
    assert told["other"] == "-1.000 [-1.000 to -1.000]"
    assert told["more"] == "-1.000 [-1.000 to -1.000] (3 pairs)"


def test_arms_of_other_seeds_are_ranked_by_their_pairs(tmp_path):
    ledger(tmp_path, "softmax", [5.0, 5.0, 3.0, 3.0])
    ledger(tmp_path, "worse", [5.1, 5.1, 3.1, 3.1])  # its mean, 4.1, is below that of `better`
    ledger(tmp_path, "better", [4.9, 4.9])
    assert [row["arm"] for row in summary(tmp_path).rows] == ["better", "softmax", "worse"]


def test_the_baseline_is_softmax_or_the_arm_called_so():
    assert baseline_of(["K0", "softmax", "softmax_rope"]) == "softmax"
    assert baseline_of(["phase_a-baseline", "phase_a-l7"]) == "phase_a-baseline"
    assert baseline_of(["K0", "K1"]) is None


def test_the_off_control_differs_in_nothing_but_its_coupling():
    def arm(**attention: Any) -> list[dict[str, Any]]:
        return [{"config": {"attention": KURAMOTO | attention}, "seed": 1}]

    arms = {"k1": arm(), "k0": arm(coupling=0.0), "learned": arm(learn_coupling=True)}
    arms |= {"s20": arm(steps=20), "noise": arm(noise_sigma=0.1), "gate": arm(readout="gate")}
    arms |= {"gate_s20": arm(readout="gate", steps=20)}
    arms |= {"gate_k0": arm(readout="gate", coupling=0.0)}
    arms |= {"softmax": [{"config": {"attention": {"name": "softmax"}}, "seed": 1}]}
    assert {name: off_control(name, arms) for name in arms} == {
        **{"k1": "k0", "learned": "k0", "s20": "k0", "gate": "gate_k0"},
        **{"k0": None, "noise": None, "gate_s20": None, "gate_k0": None, "softmax": None},
    }


def test_tests_begin_at_five_seeds_and_fewer_are_called_descriptive(tmp_path):
    ppl = [4.0, 8.0, 6.0, 5.0, 7.0]
    for n in (4, 5):
        study = tmp_path / str(n)
        ledger(study, "softmax", ppl[:n])
        ledger(study, "k0", [v - 1 for v in ppl[:n]], attention=KURAMOTO | {"coupling": 0})
        ledger(study, "k1", [v - 2 for v in ppl[:n]], attention=KURAMOTO)
        row = rows_of(study)["k1"]
        p = None if n < 5 else 2**-5
        assert (row["difference_sign_flip"], row["off_sign_flip"]) == (p, p)
        assert (row["difference"], row["off"], row["budget"]) == (-2, -1, 1)
        write_study(study)
        text = (study / "table.md").read_text()
        assert ("descriptive only" in text) == (n < 5) == ("sign-flip p |" not in text)


def test_leaky_arms_are_set_apart_and_not_ranked(tmp_path):
    ledger(tmp_path, "softmax", [4.0, 5.0], leaky=False)
    ledger(tmp_path, "best", [1.0, 2.0], leaky=True)
    written = {path.name for path in write_study(tmp_path)}
    assert {"leaky.csv", "leaky.png"} <= written

    def arms(name: str) -> list[str]:
        with open(tmp_path / name, newline="") as file:
            return [row["arm"] for row in csv.DictReader(file)]

    assert arms("table.csv") == ["softmax"] and arms("leaky.csv") == ["best"]
    assert arms("metrics.csv") == ["best", "best", "softmax", "softmax"]
    for name in ("table.md", "table.tex"):
        causal, leaky = (tmp_path / name).read_text().split("see the future")
        assert "best" not in causal.replace("best validation", "") and "softmax" in causal
        assert "best" in leaky


def test_a_run_collapsed_before_any_validation_is_counted(tmp_path):
    ledger(tmp_path, "softmax", [4.0, 5.0])
    ledger(tmp_path, "k2", [3.0, 4.0])
    lost = record(2, 0.0, status="collapsed", best=None, curves={}, final={})
    (tmp_path / "runs" / "k2-seed2.json").write_text(json.dumps(lost))
    write_study(tmp_path)
    row = rows_of(tmp_path)["k2"]
    assert (row["n"], row["collapsed"], row["difference_pairs"]) == (1, 1, 1)


def test_phases_of_the_last_validation_are_averaged_over_layers_and_seeds(tmp_path):
    ledger(tmp_path, "softmax", [4.0, 5.0])
    ledger(tmp_path, "kuramoto", [3.0, 4.0])
    assert "phases.png" not in {path.name for path in write_study(tmp_path)}
    for seed, dR in ((1, 0.1), (2, 0.3)):
        path = tmp_path / "runs" / f"kuramoto-seed{seed}.json"
        found = json.loads(path.read_text())
        for layer, more in ((1, 0.0), (2, 0.2)):
            found["final"] |= {f"phase/val/dR/layer{layer}": dR + more}
            found["final"] |= {f"phase/val/R_end/layer{layer}": 0.5}
        path.write_text(json.dumps(found))
    kuramoto, softmax = summary(tmp_path).rows
    half = 12.706204736432095 * 0.1  # Student's t, 1 degree of freedom; sd 0.2/sqrt 2, n = 2
    assert kuramoto["dR"] == pytest.approx(0.3)
    assert kuramoto["dR_low"] == pytest.approx(0.3 - half)
    assert softmax["dR"] is None and kuramoto["ppc"] is None
    assert "phases.png" in {path.name for path in write_study(tmp_path)}


def test_the_noise_of_the_loss_is_about_its_line_over_the_last_quarter():
    """Plus and minus a about any line is an sd of a sqrt(n / (n - 2)), whatever came before."""
    n, a = 400, 0.03
    points = [[s, 5 - s / 100 + a * (-1) ** s if s > 1200 else 99.0] for s in range(1, 1601)]
    assert loss_sd({"curves": {"train/loss": points}}) == pytest.approx(
        a * (n / (n - 2)) ** 0.5, rel=1e-4
    )
    assert loss_sd({"curves": {"train/loss": points[:4]}}) is None
    assert loss_sd({}) is None


def test_a_curve_is_the_mean_and_range_where_every_seed_has_a_value():
    curves = [[[5, 4.0], [10, 2.0], [15, 1.0]], [[5, 6.0], [10, 3.0]]]  # one stopped early
    found = band([{"curves": {"val/ppl": c}} for c in curves], "val/ppl")
    assert found == {"steps": [5, 10], "mean": [5.0, 2.5], "low": [4.0, 2.0], "high": [6.0, 3.0]}
    assert band([{"curves": {}}], "val/ppl") is None


@pytest.mark.parametrize(("name", "low"), [("phase_a-l7", 0.30), ("phase_b-mid", 0.35)])
def test_phase_a_has_its_own_target_band_and_phase_b_the_registered(tmp_path, name, low):
    ledger(tmp_path, name, [3.0], config={"name": name})
    assert study_view(tmp_path, summary(tmp_path))["band"] == [low, 0.55]


def test_two_records_of_one_seed_in_an_arm_are_refused(tmp_path):
    ledger(tmp_path, "a", [4.0, 5.0])
    (tmp_path / "runs" / "a-seed2.json").write_text(json.dumps(record(1, 5.0)))
    with pytest.raises(ConfigError, match=r"seed 1: a-seed1\.json and a-seed2\.json"):
        summary(tmp_path)


@pytest.mark.parametrize(
    ("text", "said"),
    [("{", "is not JSON"), ("\xff", "is not JSON"), ("[]", "has no seed"), ("{}", "has no seed")],
)
def test_a_record_that_is_none_is_named(tmp_path, text, said):
    ledger(tmp_path, "a", [4.0])
    (tmp_path / "runs" / "b-seed1.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(DataError, match=rf"b-seed1\.json {said}"):
        summary(tmp_path)


def test_a_study_without_records_says_so(tmp_path):
    with pytest.raises(ConfigError, match="holds no records"):
        write_study(tmp_path)


SHA = "5" * 64
SCORE = {"sha256": SHA, "split": "test", "context": 8, "stride": 8, "data_fingerprint": "f"}
SCORE |= {"loss": 1.0, "perplexity": 2.75}


def finished(folder: Path, *, attention: Any = None, **more: Any) -> Path:
    """A finished run with a best checkpoint that has the sum SHA."""
    (folder / "checkpoints").mkdir(parents=True)
    for name, text in (("step-10.ckpt", ""), ("step-10.ckpt.sha256", f"{SHA}  step-10.ckpt\n")):
        (folder / "checkpoints" / name).write_text(text)
    (folder / "checkpoints" / "best.ckpt").symlink_to("step-10.ckpt")
    config = {"model": {"block_size": 8}, "attention": attention or {"name": "softmax"}}
    known = {"config": config, "data": {"fingerprint": "f"}} | more
    (folder / "run.json").write_text(json.dumps(record(1, 3.0, **known)))
    return folder


def test_unfinished_runs_are_not_collected(tmp_path):
    for name, status in (("a-seed1", "ok"), ("a-seed2", "running")):
        finished(tmp_path / "runs" / name, status=status)
    written = collect(tmp_path / "runs", tmp_path / "study")
    assert [p.name for p in written] == ["a-seed1.json"]


def test_a_record_names_its_folder_without_what_lies_above(tmp_path):
    folder = tmp_path / "runs" / "a-seed1"
    command = f"python -m phasegpt.train seed=1 hydra.run.dir='{folder}' resume=true"
    (file,) = collect(finished(folder, command=command).parent, tmp_path / "study")
    told = json.loads(file.read_text())["command"]
    assert told == "python -m phasegpt.train seed=1 hydra.run.dir='runs/runs/a-seed1' resume=true"


def test_a_record_gets_test_perplexity_and_the_last_histogram(tmp_path):
    attention = {"name": "phase_sync", "coupling": 1.0, "steps": 10, "dt": 0.1}
    run = finished(tmp_path / "runs" / "a-seed1", attention=attention)
    (run / TEST_FILE).write_text(json.dumps(SCORE))
    (run / "phase").mkdir()
    for step, R in ((5, 0.1), (10, 0.513)):
        R_HT = np.full((2, 40), R)
        R_HT[:, :31] = 0.99  # prefixes that are too short to count
        np.savez(run / "phase" / f"step-{step:08d}.npz", **{"layer7/R_HT": R_HT})
    collect(tmp_path / "runs", tmp_path / "study")
    ((found,),) = load_records(tmp_path / "study").values()
    assert found["best"]["test/ppl"] == 2.75
    counts = found["R_histogram"]["layer7"]
    assert sum(counts) == 2 * 9 == counts[25]  # 0.513 is between 25 / 50 and 26 / 50
    (row,) = summary(tmp_path / "study").rows
    assert (row["test"], row["budget"]) == (2.75, 1.0)
    assert (tmp_path / "study" / "histograms.png") in write_study(tmp_path / "study")


def test_runs_of_two_sizes_do_not_get_into_one_study(tmp_path):
    for scale, width in (("small", 64), ("full", 768)):
        config = {"attention": {"name": "softmax"}, "model": {"n_embd": width}}
        finished(tmp_path / scale / f"{scale}-seed1", config=config)
    collect(tmp_path / "small", tmp_path / "study")
    with pytest.raises(ConfigError, match="different sizes"):
        collect(tmp_path / "full", tmp_path / "study")


OTHER_SCORES = [{"sha256": "6" * 64}, {"context": 4}, {"stride": 1}, {"split": "val"}]
OTHER_SCORES += [{"data_fingerprint": "g"}]


@pytest.mark.parametrize("other", OTHER_SCORES, ids=lambda other: next(iter(other)))
def test_a_score_of_other_weights_windows_or_text_is_not_the_runs(tmp_path, other):
    run = finished(tmp_path / "runs" / "a-seed1")
    for text in (json.dumps(SCORE | other), '{"loss": 1.0, "perplexity": 2.75}', "{"):
        (run / TEST_FILE).write_text(text)
        collect(tmp_path / "runs", tmp_path / "study")
        ((found,),) = load_records(tmp_path / "study").values()
        assert "test/ppl" not in found["best"]


def test_a_record_is_not_replaced_by_one_of_another_configuration(tmp_path):
    for sweep, value, names in (("a", "1", "x"), ("b", "2", "wx"), ("c", "1", "x")):
        for name in names:
            finished(tmp_path / sweep / f"{name}-seed1", config_hash=value)
    study = tmp_path / "study"
    collect(tmp_path / "a", study)
    with pytest.raises(ConfigError, match=r"x-seed1\.json is of configuration 1, .* of 2"):
        collect(tmp_path / "b", study)
    assert [path.name for path in (study / "runs").iterdir()] == ["x-seed1.json"]
    assert len(collect(tmp_path / "c", study)) == 1


def test_the_command_writes_every_study_and_prints_both_tables(tmp_path, monkeypatch, capsys):
    ledger(tmp_path / "results" / "a", "softmax", [4.0, 5.0])
    ledger(tmp_path / "results" / "b", "leak", [4.0, 5.0], leaky=True)
    script(monkeypatch, "analyze_results.py", tmp_path / "results")
    printed = capsys.readouterr().out
    assert "\nb: LEAKY arms, apart\n" in printed and printed.startswith("a\n")
    for study in "ab":
        page = (tmp_path / "results" / study / "report.html").read_text()
        assert "data:image/svg+xml" in page


def test_the_command_writes_nothing_into_folders_inside_a_study(tmp_path, monkeypatch, capsys):
    ledger(tmp_path / "a", "softmax", [4.0, 5.0])
    ledger(tmp_path / "a" / "inner", "softmax", [4.0, 5.0])
    ledger(tmp_path / "page" / "arms", "softmax", [4.0, 5.0])
    for given in (tmp_path, tmp_path / "a"):
        script(monkeypatch, "analyze_results.py", given)
    assert (tmp_path / "a" / "table.csv").is_file()
    for folder in ("a/inner", "page/arms"):
        assert [path.name for path in (tmp_path / folder).iterdir()] == ["runs"]


@pytest.mark.parametrize("words", [[], ["--into", "new"], ["--into", "new", "--test"]])
def test_the_command_says_where_there_are_no_runs(tmp_path, monkeypatch, capsys, words):
    monkeypatch.chdir(tmp_path)
    Path("empty").mkdir()
    with pytest.raises(SystemExit) as stop:
        script(monkeypatch, "analyze_results.py", "empty", *words)
    assert stop.value.code == 2 and "empty holds no runs" in capsys.readouterr().err
    assert not Path("new").exists()


def test_the_command_names_the_arms_where_against_is_none_of_them(tmp_path, monkeypatch, capsys):
    ledger(tmp_path, "softmax", [4.0, 5.0])
    ledger(tmp_path, "k1", [4.0, 5.0])
    with pytest.raises(SystemExit) as stop:
        script(monkeypatch, "analyze_results.py", tmp_path, "--against", "sotfmax")
    assert stop.value.code == 2
    assert "no arm 'sotfmax'; choose from: k1, softmax" in capsys.readouterr().err


def test_the_test_split_is_scored_once_and_only_where_there_is_one(tmp_path, monkeypatch, capsys):
    for name, splits in (("a-seed1", ["train", "test"]), ("b-seed1", ["train", "val"])):
        data = {"corpus": name, "splits": dict.fromkeys(splits), "fingerprint": "f"}
        finished(tmp_path / "runs" / name, data=data)
    lost = finished(tmp_path / "runs" / "c-seed1", data=data | {"splits": ["test"]})
    (lost / "checkpoints" / "best.ckpt").unlink()  # the last one is no substitute
    (tmp_path / "runs" / "a-seed1" / TEST_FILE).write_text(json.dumps(SCORE | {"stride": 1}))
    scored = []

    def evaluate(settings):
        scored.append((Path(settings.checkpoint).name, settings.split, settings.which))
        return SCORE

    monkeypatch.setattr("phasegpt.evaluate.evaluate", evaluate)
    study, words = tmp_path / "study", ("--into", tmp_path / "study", "--test")
    for _ in range(2):
        script(monkeypatch, "analyze_results.py", tmp_path / "runs", *words)
    assert scored == [("a-seed1", "test", "best")]
    assert {arm: r[0]["best"].get("test/ppl") for arm, r in load_records(study).items()} == {
        **{"a": 2.75, "b": None, "c": None}
    }
    printed = capsys.readouterr().out
    assert "b-seed1: b-seed1 has no test split; validation stands" in printed
    assert "c-seed1: not scored: it has no best checkpoint" in printed


def test_a_leftover_figure_goes_when_its_records_are_gone(tmp_path):
    ledger(tmp_path, "softmax", [4.0, 5.0])
    ledger(tmp_path, "leak", [4.0, 5.0], leaky=True)
    write_study(tmp_path)
    assert (tmp_path / "leaky.png").is_file() and (tmp_path / "leaky.csv").is_file()
    for seed in (1, 2):
        (tmp_path / "runs" / f"leak-seed{seed}.json").unlink()
    write_study(tmp_path)
    assert not (tmp_path / "leaky.png").exists() and not (tmp_path / "leaky.csv").exists()
