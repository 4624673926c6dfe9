"""The registration: its hashes, its conditions, and its verdicts on ledgers with known answers."""

import copy
import functools
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from helpers import ROOT, script

from phasegpt.analysis import statistics, verdicts
from phasegpt.core.composition import compose
from phasegpt.core.errors import RegistrationError
from phasegpt.training import preregistration
from phasegpt.training.config import run_config
from phasegpt.training.preregistration import Cell, Registration, digest, problems, read, stamp

# Never changes: write an amendment.
ORIGINAL = "6704f2f59e8ba930638ba39a9b091b61a0559e5b37b20a89b567262144dd0f91"
PAGE = read()
SEEDS = PAGE.block["seeds"]

Record = dict[str, Any]
Records = dict[str, Record]


composed_once = functools.cache(compose)


@pytest.fixture(autouse=True)
def _compose_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(preregistration, "compose", lambda words: composed_once(tuple(words)))


@functools.cache
def config(cell: Cell) -> str:
    words = tuple(preregistration.command(PAGE, cell))
    return json.dumps(run_config(composed_once(words)).to_dict())


def record(cell: Cell, seed: int, ppl: float, R: float, settled: int, last: float = 1.05) -> Record:
    """A run of five validations, with R at 0.6 before step `settled` and `R` from then on."""
    steps = [598 * i for i in range(1, 6)]
    final = {"val/ppl": last * ppl, "phase/val/dR/layer7": 0.1}
    final |= {"phase/val/R_start/layer7": R - 0.1, "phase/val/R_end/layer7": R}
    return {
        **{"status": "ok", "seed": seed, "step": steps[-1], "started": "2026-12-01T00:00:00Z"},
        "config": json.loads(config(cell)) | {"seed": seed},
        "preregistration": {"original": PAGE.hash, "amendments": []},
        **{"git": {"sha": "0", "dirty": False}, "hardware": {"gpu": None}},
        "data": {"fingerprint": PAGE.block["conditions"][cell.condition]["study"]},
        **{"best": {"val/ppl": ppl}, "final": final},
        "curves": {
            "phase/val/R_end/layer7": [[step, R if step >= settled else 0.6] for step in steps]
        },
    }


#: By condition: perplexity, its spread over seeds, R, and the validation at which R settles.
HOLDS = {
    "B1": (100, 1, 0.2, [1, 1, 1, 1, 1]),
    "B2": (96, 1, 0.40, [1, 1, 1, 1, 1]),
    "B3": (98, 1, 0.46, [4, 5, 4, 5, 5]),
    "B4": (94, 1, 0.45, [1, 1, 1, 2, 1]),
    "A": (5, 5, 0.30, [1, 1, 1, 1, 1]),
}
FAILS = HOLDS | {
    "B2": (120, 1, 0.50, [1, 1, 1, 1, 1]),
    "B3": (118, 1, 0.46, [1, 2, 1, 1, 1]),
    "B4": (119, 100, 0.70, [4, 4, 5, 4, 4]),
    "A": (5, 0.1, 0.30, [1, 1, 1, 1, 1]),
}


def make_ledger(table: dict[str, Any], analysis: str = "primary", wobble: float = 0.1) -> Records:
    """Five seeds per condition: perplexities with a common spread and a `wobble` (percent) of
    their own, the same in every call."""
    found = {}
    for number, (condition, (ppl, spread, R, settled)) in enumerate(table.items()):
        own = np.random.default_rng(number).normal(0, wobble, len(SEEDS))
        for i, seed in enumerate(SEEDS):
            value = ppl * (1 + 0.001 * spread * (i - 2) + 0.01 * own[i])
            found[f"{condition}-seed{seed}"] = record(
                Cell("full", analysis, condition), seed, value, R + 0.01 * own[i], 598 * settled[i]
            )
    return found


def words(records: Records, page: Registration = PAGE, analysis: str = "primary") -> dict[str, Any]:
    found = verdicts.judge(page, verdicts.admit(page, records), "full", analysis)
    return {v.name: v.verdict or v.refused for v in found}


def excluded(records: Records, page: Registration = PAGE) -> dict[str, str]:
    return verdicts.admit(page, records).excluded


# --- the page --------------------------------------------------------------------------------


def test_the_original_registration_was_never_edited() -> None:
    assert PAGE.hash == ORIGINAL == PAGE.stated[0]
    assert digest(PAGE.block) == digest(json.loads(json.dumps(PAGE.block, default=str)))


def test_the_conditions_equal_the_experiments_field_by_field() -> None:
    assert problems(PAGE) == []
    experiments = {f"phase_b/{p.stem}" for p in (ROOT / "conf/experiment/phase_b").glob("*.yaml")}
    conditions = PAGE.block["conditions"].values()
    assert {c["experiment"] for c in conditions if c["study"] == "phase_b"} == experiments


def test_scale_small_is_the_registered_small_scale() -> None:
    for cell in PAGE.cells():
        experiment = PAGE.block["conditions"][cell.condition]["experiment"]
        if (cell.scale, cell.analysis) == ("small", "primary"):
            study = experiment.split("/")[0]
            bytes_of_b = ["+scale/phase_b=small"] if study == "phase_b" else []
            run = run_config(compose([f"+experiment={experiment}", "+scale=small", *bytes_of_b]))
            fields = preregistration.config_fields(run.to_dict())
            assert preregistration.differences(PAGE.fields(cell), fields) == []


def test_every_field_that_changes_a_result_is_registered():
    fields = preregistration.config_fields(json.loads(config(Cell("full", "primary", "B4"))))
    free = {name for name in fields if name not in PAGE.registered()}
    unused = {"path", "name", "subset", "text_column", "val_fraction", "characters"}
    guard = {"R_low", "R_high", "patience", "loss_factor", "coupling_factor", "max_rollbacks"}
    machine = {"accelerator", "precision", "deterministic", "log_every_n_steps"}
    assert free == {
        "compile",
        "model.activation_checkpointing",
        *(f"data.{name}" for name in unused),
        *(f"trainer.{name}" for name in machine),
        *(f"callbacks.collapse_guard.{name}" for name in guard),  # whose action is null
        *("regularizer.width", "regularizer.warmup_steps"),  # of a band, of a warm-up
    }


def edited(change: Callable[[dict[str, Any]], Any]) -> Registration:
    block = copy.deepcopy(PAGE.block)
    change(block)
    return Registration(block, (), PAGE.stated)


def test_an_edited_block_is_found_by_its_hash_and_by_conf() -> None:
    fields = {"attention.coupling": 0.6}
    page = edited(lambda block: block["conditions"]["B2"]["fields"].update(fields))
    found = problems(page)
    assert "but the page states " + ORIGINAL in found[0]
    assert "full/primary/B2: attention.coupling is 0.5, registered 0.6" in found
    criteria = problems(edited(lambda block: block.update(band=[0.3, 0.6])))
    assert len(criteria) == 1 and "sha256" in criteria[0]


def test_a_field_that_is_not_registered_may_not_tell_conditions_apart() -> None:
    page = edited(
        lambda b: [c["fields"].pop("attention.coupling", 0) for c in b["conditions"].values()]
    )
    assert any(
        t.startswith("attention.coupling is not registered and differs") for t in problems(page)
    )


def test_layout_and_comments_do_not_change_a_hash_and_values_do() -> None:
    assert digest(yaml.safe_load("{a: 1, b: [2]}")) == digest(yaml.safe_load("b:\n- 2  # c\na: 1"))
    assert digest({"a": 1}) != digest({"a": 2})


def test_a_run_is_stamped_with_the_hashes_and_says_why_it_is_not(tmp_path: Path) -> None:
    assert stamp() == {"original": ORIGINAL, "amendments": []}
    assert "missing" in stamp(tmp_path / "none.md")["reason"]
    (tmp_path / "page.md").write_text("```yaml\nhello: 1\n```\n")
    with pytest.raises(RegistrationError, match="the key registration"):
        read(tmp_path / "page.md")


# --- verdicts --------------------------------------------------------------------------------


def test_a_ledger_in_which_everything_holds_is_supported() -> None:
    assert words(make_ledger(HOLDS)) == dict.fromkeys(PAGE.block["hypotheses"], "supported")


def test_a_ledger_in_which_everything_is_reversed_is_not_supported() -> None:
    records = make_ledger(FAILS)
    records["B4-seed3"]["final"]["val/ppl"] *= 2  # one collapse
    assert words(records) == dict.fromkeys(PAGE.block["hypotheses"], "not supported")


def test_a_ledger_of_noise_is_inconclusive() -> None:
    same = dict.fromkeys(["B2", "B3", "B4"], (105, 1, 0.545, [2, 2, 2, 2, 2]))
    table = HOLDS | same | {"A": (5, 1, 0.3, [1, 1, 1, 1, 1])}
    found = words(make_ledger(table, wobble=3.0))
    assert found.pop("H5") == "supported"
    assert set(found.values()) == {"inconclusive"}


def test_effects_and_p_are_those_of_the_records() -> None:
    records = make_ledger(HOLDS)
    ledger = verdicts.admit(PAGE, records)
    h1 = verdicts.judge(PAGE, ledger, "full", "primary")[0]
    ppl = {c: [records[f"{c}-seed{s}"]["best"]["val/ppl"] for s in SEEDS] for c in HOLDS}
    limit = [1.05 * v for v in ppl["B1"]]
    expected = [statistics.less(ppl[c], limit) for c in ("B2", "B3", "B4")]
    assert [part for _, part in h1.parts] == expected
    assert h1.parts[0][0] == "ppl: B2 - 1.05 x B1"
    assert h1.p >= max(part.p for part in expected)  # Holm only raises it


def test_a_missing_seed_refuses_the_hypotheses_that_need_it_and_no_other() -> None:
    records = make_ledger(HOLDS)
    del records["B2-seed4"]
    found = words(records)
    assert {n: v for n, v in found.items() if n in ("H1", "H2", "H3", "H5")} == dict.fromkeys(
        ("H1", "H2", "H3", "H5"), "B2 lacks seeds 4"
    )
    assert found["H4"] == found["H6"] == "supported"


def test_a_missing_condition_refuses() -> None:
    records = {n: r for n, r in make_ledger(HOLDS).items() if not n.startswith("A-")}
    assert words(records)["H4"] == "A lacks every seed"


def test_a_tampered_record_is_excluded_with_its_reason() -> None:
    records = make_ledger(HOLDS)
    records["B3-seed1"]["preregistration"]["original"] = "f" * 64
    records["B3-seed2"]["preregistration"] = None
    records["B3-seed3"]["config"]["attention"]["coupling"] = 0.7
    records["B3-seed4"]["git"]["dirty"] = True
    records["B3-seed5"]["status"] = "failed"
    reasons = excluded(records)
    assert "under another registration (ffff" in reasons["B3-seed1"]
    assert "under another registration (none)" in reasons["B3-seed2"]
    assert (
        "nearest is full/primary/B3: attention.coupling is 0.7, registered 0.75"
        in (reasons["B3-seed3"])
    )
    assert "uncommitted" in reasons["B3-seed4"] and "failed" in reasons["B3-seed5"]
    assert words(records)["H2"] == "B3 lacks every seed"


def test_a_record_of_another_schema_or_unknown_code_is_excluded() -> None:
    records = make_ledger(HOLDS)
    del records["B3-seed1"]["config"], records["B3-seed2"]["data"], records["B3-seed3"]["seed"]
    records["B3-seed4"]["git"] = None
    del records["B3-seed5"]["preregistration"]["amendments"]  # there were none
    reasons = excluded(records)
    for seed, key in ((1, "config"), (2, "data"), (3, "seed")):
        assert reasons[f"B3-seed{seed}"] == f"is of another schema: it has no {key}"
    assert "uncommitted" in reasons["B3-seed4"] and "B3-seed5" not in reasons


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_number_that_is_none_supports_nothing(value: float) -> None:
    records = make_ledger(HOLDS)
    records["B4-seed2"]["best"]["val/ppl"] = value
    found = words(records)
    for name in ("H1", "H3", "H4"):
        assert found[name] == f"phase_b-diverse with seed 2 has {value} as " + (
            "log_ppl" if name == "H4" else "ppl"
        )
    records = make_ledger(HOLDS)
    records["B4-seed2"]["final"]["val/ppl"] = value
    assert words(records)["H5"] == "not supported"


def test_of_two_runs_of_a_seed_the_first_counts_whatever_it_found() -> None:
    records = make_ledger(HOLDS)
    again = copy.deepcopy(records["B4-seed1"])
    again |= {"started": "2026-12-02T00:00:00Z", "best": {"val/ppl": 1.0}}
    assert list(excluded({"again": again, **records})) == ["again"]


def test_a_field_that_is_not_registered_must_be_the_same_in_all_runs() -> None:
    records = make_ledger(HOLDS)
    records["B4-seed1"]["config"]["trainer"]["precision"] = "bf16-mixed"
    assert words(records)["H1"] == "runs differ in trainer.precision: 'auto', 'bf16-mixed'"
    records = make_ledger(HOLDS)
    records["B4-seed1"]["hardware"]["gpu"] = "one"
    assert words(records)["H5"] == "runs differ in device: CPU, GPU"


def test_a_collapse_counts_and_leaves_no_other_verdict_without_a_value() -> None:
    records = make_ledger(HOLDS)
    run = records["B2-seed2"]
    run |= {"status": "collapsed", "final": {}, "best": None}
    run["curves"]["val/ppl"] = [[598, 97.0]]
    found = words(records)
    assert found["H5"] == "not supported" and found["H1"] == "supported"
    assert found["H2"] == "phase_b-soft with seed 2 has no R"


def test_fewer_seeds_than_the_minimum_are_descriptive_only() -> None:
    page = edited(lambda block: block.update(seeds=[1, 2, 3]))
    records = make_ledger(HOLDS)
    for run in records.values():
        run["preregistration"]["original"] = page.hash
    kept = {n: r for n, r in records.items() if r["seed"] <= 3}
    assert set(words(kept, page).values()) == {"n = 3 is below 5: descriptive only"}


def test_the_secondary_analysis_shares_the_baseline_and_nothing_else() -> None:
    records = make_ledger(HOLDS, "secondary")
    assert words(records, analysis="secondary")["H1"] == "supported"
    assert words(records)["H1"] == "B2 lacks every seed"


# --- amendments ------------------------------------------------------------------------------


def amendment(**changes: Any) -> dict[str, Any]:
    return {
        **{"amendment": 1, "date": "2026-12-01", "reason": "memory", "original": ORIGINAL},
        "covers": {"conditions": ["B4"], "seeds": [5], "scales": ["full"]},
        "fields": {"data.batch_size": 4, "trainer.accumulate_grad_batches": 2},
        **changes,
    }


def amended(folder: Path, block: dict[str, Any]) -> Registration:
    text = (ROOT / "PREREGISTRATION.md").read_text(encoding="utf-8")
    path = folder / "page.md"
    text += f"\n```yaml\n{yaml.safe_dump(block)}```\n\nsha256: `{digest(block)}`\n"
    path.write_text(text, encoding="utf-8")
    return read(path)


def test_an_amendment_covers_only_the_named_runs_made_under_it(tmp_path) -> None:
    page = amended(tmp_path, amendment())
    assert page.hash == ORIGINAL and problems(page) == []
    assert stamp(tmp_path / "page.md")["amendments"] == [digest(amendment())]
    records = make_ledger(HOLDS)
    assert "B4: data.batch_size is 8, registered 4" in excluded(records, page)["B4-seed5"]
    run = records["B4-seed5"]
    run["config"]["data"]["batch_size"], run["config"]["trainer"]["accumulate_grad_batches"] = 4, 2
    assert "covered by amendment 1 and began before it" in excluded(records, page)["B4-seed5"]
    run["preregistration"]["amendments"] = [digest(amendment())]
    assert excluded(records, page) == {}
    assert words(records, page) == dict.fromkeys(PAGE.block["hypotheses"], "supported")
    assert "an amendment that the page does not have" in excluded(records)["B4-seed5"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"fields": {"attention.coupling": 0.6}}, "attention.coupling, which is frozen"),
        ({"fields": {"regularizer.weight": 0.1}}, "regularizer.weight, which is frozen"),
        ({"fields": {"attention.steps": 1}}, "attention.steps, which is frozen"),
        ({"fields": {"no.such.field": 1}}, "must name registered fields"),
        ({"fields": None}, "must name registered fields"),
        ({"covers": None}, "covers must be lists of conditions, seeds, scales"),
        ({"covers": {"conditions": "B4", "seeds": [5], "scales": ["full"]}}, "conditions B4"),
        ({"covers": {"conditions": ["B9"], "seeds": [5], "scales": ["full"]}}, "'B9'"),
        ({"date": "never"}, "has the date never"),
        ({"alpha": 0.1}, "has the keys"),
        ({"reason": ""}, "must give a reason"),
        ({"original": "0" * 64}, "it must be 1 of"),
    ],
)
def test_an_amendment_may_not_touch_treatments_or_criteria(changes, message, tmp_path) -> None:
    with pytest.raises(RegistrationError, match=message):
        amended(tmp_path, amendment(**changes))


# --- the script ------------------------------------------------------------------------------


def exit_code(monkeypatch: pytest.MonkeyPatch, *words: str | Path) -> int:
    """Of the script that checks."""
    with pytest.raises(SystemExit) as end:
        script(monkeypatch, "check_preregistration.py", *words)
    return end.value.code


def test_the_script_gives_verdicts_and_reasons(tmp_path, monkeypatch, capsys) -> None:
    (tmp_path / "runs").mkdir()
    records = make_ledger(HOLDS)
    records["B2-seed1"]["preregistration"]["original"] = "f" * 64
    for name, run in records.items():
        (tmp_path / "runs" / f"{name}.json").write_text(json.dumps(run))
    page = tmp_path / "verdicts.md"
    assert exit_code(monkeypatch, tmp_path, "--out", page) == 0
    told = capsys.readouterr().out
    written = page.read_text(encoding="utf-8")
    assert written.partition("```text\n")[2].removesuffix("```\n").split() == (
        told.partition("before correction\n")[2].split()
    )
    assert PAGE.hash in written and exit_code(monkeypatch, tmp_path, "--out", page) == 0
    assert page.read_text(encoding="utf-8") == written
    capsys.readouterr()
    assert "every condition equals conf/ field by field" in told
    assert "25 records: 24 count, 1 are excluded" in told
    assert "B2 (seed 1) ran under another" in told
    assert "H1 no verdict (B2 lacks seeds 1)" in told and "H6 supported" in told
    assert "full scale, secondary analysis: no runs of its own" in told


def test_the_script_fails_on_an_edited_page(tmp_path, monkeypatch, capsys) -> None:
    page = (ROOT / "PREREGISTRATION.md").read_text(encoding="utf-8")
    (tmp_path / "page.md").write_text(page.replace("alpha: 0.05", "alpha: 0.10"))
    assert exit_code(monkeypatch, "--page", tmp_path / "page.md") == 1
    assert "MISMATCH  the original block has sha256" in capsys.readouterr().out
