"""scripts/reproduce.py trains a record again and tells its numbers from others."""

import json
import runpy

import pytest
from helpers import ROOT, SIX_STEPS, play, script

import phasegpt
from phasegpt.analysis.study import collect
from phasegpt.core.errors import ConfigError
from phasegpt.training.run import fit

SCRIPT = runpy.run_path(str(ROOT / "scripts" / "reproduce.py"))


def test_a_record_is_reproduced_and_a_wrong_number_is_found(tmp_path):
    fit(phasegpt.compose([*SIX_STEPS, *play(tmp_path)]), tmp_path / "runs" / "arm-seed1")
    (file,) = collect(tmp_path / "runs", tmp_path / "study")
    record = json.loads(file.read_text())
    assert SCRIPT["reproduce"](record, tmp_path / "again") == 0
    record["curves"]["val/ppl"][0][1] *= 1 + 1e-9
    assert 0 < SCRIPT["reproduce"](record, tmp_path / "again") < 2e-9


def test_a_record_of_a_generated_task_is_reproduced(tmp_path):
    task = ["data=copying_small", "data.length=4", "data.val_lengths=[4,8]", "data.val_examples=4"]
    words = [*SIX_STEPS, *task, "data.batch_size=2"]
    fit(phasegpt.compose(words), tmp_path / "runs" / "arm-seed1")
    (file,) = collect(tmp_path / "runs", tmp_path / "study")
    record = json.loads(file.read_text())
    assert SCRIPT["reproduce"](record, tmp_path / "again") == 0
    assert "val/accuracy" in record["curves"]


@pytest.mark.parametrize(
    ("text", "said"), [("{", "is not JSON"), ('{"seed": 1, "curves": {}}', "has no config")]
)
def test_a_record_that_cannot_be_trained_again_is_named(tmp_path, monkeypatch, capsys, text, said):
    (tmp_path / "a-seed1.json").write_text(text)
    with pytest.raises(SystemExit) as stop:
        script(monkeypatch, "reproduce.py", tmp_path / "a-seed1.json")
    assert stop.value.code == 2 and f"a-seed1.json {said}" in capsys.readouterr().err


def test_a_record_that_names_code_is_not_trained_again(tmp_path):
    config = {"optimizer": {"_target_": "trap.Opt"}, "callbacks": {"extra": [{"_target_": "a.B"}]}}
    with pytest.raises(ConfigError, match=r"names code of its own \(trap\.Opt, a\.B\)"):
        SCRIPT["reproduce"]({"config": config, "curves": {}}, tmp_path / "again")
    assert not (tmp_path / "again").exists()
