"""scripts/reproduce.py trains a record again and tells its numbers from others."""

import json
import runpy
from pathlib import Path

from helpers import SIX_STEPS, play

import phasegpt
from phasegpt.analysis import collect
from phasegpt.train import train

SCRIPT = runpy.run_path(str(Path(__file__).parents[1] / "scripts" / "reproduce.py"))


def test_a_record_is_reproduced_to_the_last_digit_and_a_wrong_number_is_found(tmp_path):
    train(phasegpt.compose([*SIX_STEPS, *play(tmp_path)]), tmp_path / "runs" / "arm-seed1")
    (file,) = collect(tmp_path / "runs", tmp_path / "study")
    record = json.loads(file.read_text())
    assert SCRIPT["reproduce"](record, tmp_path / "again") == 0
    record["curves"]["val/ppl"][0][1] *= 1 + 1e-9
    assert 0 < SCRIPT["reproduce"](record, tmp_path / "again") < 2e-9
