"""The laws see a broken integration: each mistake below makes the ones named after it fail.

The mistakes are put into a copy of the reference's source, so that they are the ones that a hand
can make there. A mistake whose line has gone fails here too: restate it for the new source.
"""

import functools
import importlib.util
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

import laws
import pytest
from laws import Integration

from phasegpt import ops
from phasegpt.ops import reference as source

Law = Callable[[Integration], None]

beat: Law = functools.partial(laws.two_oscillators_beat_beyond_the_coupling, error=(2e-5, 2e-5))
ott_antonsen: Law = functools.partial(
    laws.identical_oscillators_follow_ott_antonsen, N=256, error=3e-3
)
LAWS = (
    laws.mean_field_is_the_sum_over_pairs,
    laws.prefix_field_is_the_mean_over_the_prefix,
    laws.mean_frequency_is_conserved,
    laws.lag_drags_the_mean_phase,
    laws.a_common_shift_changes_nothing_else,
    laws.reflection_reverses_the_motion,
    laws.R_squared_is_the_mean_cosine_of_all_pairs,
    laws.two_oscillators_lock_within_the_coupling,
    beat,
    ott_antonsen,
    laws.euler_is_stable_below_a_step_of_2_over_K,
    laws.tokens_follow_the_first_one,
)


class Mistake(NamedTuple):
    """`line` of phasegpt/ops/reference.py becomes `wrong`; `caught_by` must fail."""

    line: str
    wrong: str
    caught_by: tuple[Law, ...]


WRAP = "torch.remainder({} + torch.pi, 2 * torch.pi) - torch.pi"
MISTAKES = {
    "rows repel": Mistake(
        "mean_sin * cos - mean_cos * sin",
        "mean_cos * sin - mean_sin * cos",
        (
            laws.mean_field_is_the_sum_over_pairs,
            laws.lag_drags_the_mean_phase,
            laws.two_oscillators_lock_within_the_coupling,
            ott_antonsen,
            laws.euler_is_stable_below_a_step_of_2_over_K,
        ),
    ),
    "half of the sine has the wrong sign": Mistake(
        "mean_sin * cos - mean_cos * sin",
        "mean_sin * cos + mean_cos * sin",
        (
            laws.mean_field_is_the_sum_over_pairs,
            laws.mean_frequency_is_conserved,
            laws.a_common_shift_changes_nothing_else,
            laws.two_oscillators_lock_within_the_coupling,
        ),
    ),
    "rows without 1/N": Mistake(
        "cos.mean(-1, keepdim=True), sin.mean(-1, keepdim=True)",
        "cos.sum(-1, keepdim=True), sin.sum(-1, keepdim=True)",
        (
            laws.mean_field_is_the_sum_over_pairs,
            laws.lag_drags_the_mean_phase,
            laws.two_oscillators_lock_within_the_coupling,
            beat,
            ott_antonsen,
            laws.euler_is_stable_below_a_step_of_2_over_K,
        ),
    ),
    "rows store wrapped angles": Mistake(
        "theta = step(drift, theta, dt)",
        f"theta = {WRAP.format('step(drift, theta, dt)')}",
        (
            laws.mean_field_is_the_sum_over_pairs,
            laws.mean_frequency_is_conserved,
            laws.a_common_shift_changes_nothing_else,
            beat,
        ),
    ),
    "the lag has the wrong sign": Mistake(
        "(theta + lag).cos(), (theta + lag).sin()",
        "(theta - lag).cos(), (theta - lag).sin()",
        (laws.lag_drags_the_mean_phase,),
    ),
    "the scan repels": Mistake(
        "(sin_sum * cos - cos_sum * sin)",
        "(cos_sum * sin - sin_sum * cos)",
        (laws.prefix_field_is_the_mean_over_the_prefix, laws.tokens_follow_the_first_one),
    ),
    "the scan without 1/t": Mistake(
        "(sin_sum * cos - cos_sum * sin) / weight",
        "(sin_sum * cos - cos_sum * sin)",
        (laws.prefix_field_is_the_mean_over_the_prefix, laws.tokens_follow_the_first_one),
    ),
    "the scan stores wrapped angles": Mistake(
        "theta = theta + dt * (omega + coupling * force)",
        f"theta = {WRAP.format('theta + dt * (omega + coupling * force)')}",
        (
            laws.prefix_field_is_the_mean_over_the_prefix,
            laws.a_common_shift_changes_nothing_else,
            laws.tokens_follow_the_first_one,
        ),
    ),
}


@pytest.fixture
def install(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[[str, str], None]:
    """install(line, wrong): the reference integrates with one line replaced."""

    def put(line: str, wrong: str) -> None:
        text = Path(source.__file__).read_text(encoding="utf-8")
        assert text.count(line) == 1, f"{line!r} occurs {text.count(line)} times in the reference"
        file = tmp_path / "mistaken.py"
        file.write_text(text.replace(line, wrong), encoding="utf-8")
        spec = importlib.util.spec_from_file_location("mistaken", file)
        module: ModuleType = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        monkeypatch.setattr(source, "rows", module.rows)
        monkeypatch.setattr(source, "scan", module.scan)

    return put


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_fails_the_laws_named_with_it(
    name: str, reference: Integration, install: Callable[[str, str], None]
) -> None:
    line, wrong, caught_by = MISTAKES[name]
    install(line, wrong)
    for law in caught_by:
        with pytest.raises(AssertionError):
            law(reference)


def test_the_copy_without_a_mistake_obeys_every_law(
    reference: Integration, install: Callable[[str, str], None]
) -> None:
    before = source.rows
    line = MISTAKES["rows repel"].line
    install(line, f"({line})")
    assert ops.reference.rows is not before
    for law in LAWS:
        law(reference)


def test_every_law_catches_a_mistake() -> None:
    caught = {law for mistake in MISTAKES.values() for law in mistake.caught_by}
    blind = {laws.reflection_reverses_the_motion, laws.R_squared_is_the_mean_cosine_of_all_pairs}
    assert set(LAWS) - caught == blind  # symmetric under a sign and a scale; they guard R and psi
