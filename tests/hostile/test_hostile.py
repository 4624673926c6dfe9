"""A few hundred hostile inputs: each succeeds or is answered by one short error."""

from pathlib import Path

import pytest
from hostile.judge import Case, verdict
from hostile.surfaces import cases
from hostile.workshop import Workshop

from phasegpt.core.errors import ConfigError

COUNT, PARTS = 320, 8


@pytest.fixture(scope="session")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Workshop:
    return Workshop(tmp_path_factory.mktemp("hostile"))


@pytest.mark.parametrize("part", range(PARTS))
def test_a_hostile_input_is_answered_by_one_short_error(part: int, shop: Workshop) -> None:
    faults = {}
    for number, case in cases(part, range(COUNT // PARTS), shop):
        found = verdict(case)
        if found is not None:
            faults[f"seed {part} case {number}: {case.name}"] = found
    assert faults == {}


def test_the_judge_tells_an_answer_from_a_fault(tmp_path: Path) -> None:
    def refuse(text: str) -> Case:
        def call() -> None:
            raise ConfigError(text)

        return Case("refused", call)

    assert verdict(refuse("x=1 is wrong; give 2")) is None
    assert "without a message" in (verdict(refuse("  ")) or "")
    assert "21 lines" in (verdict(refuse("a\n" * 21)) or "")
    assert "ZeroDivisionError" in (verdict(Case("crash", lambda: 1 / 0)) or "")
    assert "SystemExit" in (verdict(Case("exit", lambda: exec("raise SystemExit(1)"))) or "")
    assert verdict(Case("fine", lambda: 1)) is None
