"""PREREGISTRATION.md as code: its YAML blocks, their hashes, and the conditions they register.

The first block is the original registration and is never edited; every later one is an amendment.
The hash of a block is the sha256 of its content as canonical JSON (sorted keys, no spaces), so that
comments and layout may change and nothing else. Verdicts: phasegpt.analysis.verdicts.
"""

from __future__ import annotations

import datetime
import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Any, NamedTuple

from phasegpt.core.composition import CONF_DIR, compose
from phasegpt.core.errors import ConfigError, DataError, RegistrationError
from phasegpt.core.files import read_text
from phasegpt.core.sections import shown
from phasegpt.training.config import checked, hashed_fields

#: Beside conf/, in a checkout as in an installed wheel.
DOCUMENT = CONF_DIR.parent / "PREREGISTRATION.md"
_BLOCK = re.compile(r"^```yaml\n(.*?)^```\n(?:\s*sha256: `(\w*)`)?", re.MULTILINE | re.DOTALL)
_AMENDMENT = {"amendment", "date", "reason", "original", "covers", "fields"}
#: With K, what decides how strongly oscillators are coupled; no amendment may change these either.
_COUPLING = ["attention.learn_coupling", "attention.steps", "attention.dt"]


class Cell(NamedTuple):
    """What the runs of some seeds have in common: scale, analysis and condition."""

    scale: str
    analysis: str
    condition: str


@dataclass(frozen=True)
class Registration:
    """The original block, its amendments in order, and the hash that the page states for each."""

    block: dict[str, Any]
    amendments: tuple[dict[str, Any], ...] = ()
    stated: tuple[str, ...] = ()

    @property
    def hash(self) -> str:
        """sha256 of the original block."""
        return digest(self.block)

    @property
    def scales(self) -> tuple[str, ...]:
        """The registered scales, such as full and small."""
        return tuple(dict.fromkeys(scale for s in self.block["studies"].values() for scale in s))

    def cells(self) -> Iterator[Cell]:
        """Every condition in every analysis at every scale."""
        for scale in self.scales:
            for analysis in self.block["analyses"]:
                for condition in self.block["conditions"]:
                    yield Cell(scale, analysis, condition)

    def fields(self, cell: Cell, seed: int | None = None) -> dict[str, Any]:
        """The registered configuration of a cell by field; with a seed, as amended for that run.

        Later wins: the study's fields, the condition's, the scale's, the analysis' where the
        condition has such a field, the amendments that cover the run.
        """
        condition = self.block["conditions"][cell.condition]
        study = self.block["studies"][condition["study"]]
        found = study["full"] | condition["fields"]
        found |= {} if cell.scale == "full" else study[cell.scale]
        changes = self.block["analyses"][cell.analysis]
        found |= {name: value for name, value in changes.items() if name in found}
        for amendment in self.covering(cell, seed) if seed is not None else ():
            found |= amendment["fields"]
        return found

    def covering(self, cell: Cell, seed: int) -> list[dict[str, Any]]:
        """The amendments that cover the run of a cell and seed."""
        return [
            a
            for a in self.amendments
            if cell.condition in a["covers"]["conditions"]
            and seed in a["covers"]["seeds"]
            and cell.scale in a["covers"]["scales"]
        ]

    def registered(self) -> set[str]:
        """Every field that some condition registers."""
        return {name for cell in self.cells() for name in self.fields(cell)}


def digest(block: Mapping[str, Any]) -> str:
    """sha256 of a block as canonical JSON, 64 hex digits."""
    text = json.dumps(block, sort_keys=True, separators=(",", ":"), default=_iso)
    return hashlib.sha256(text.encode()).hexdigest()


def read(path: Path = DOCUMENT) -> Registration:
    """Parse the page; RegistrationError says which block is wrong and why.

    A hash that is not the stated one is no error here: `problems` tells.
    """
    import yaml

    if not path.is_file():
        raise RegistrationError(f"{path} is missing; put PREREGISTRATION.md beside conf/")
    try:
        found = _BLOCK.findall(read_text(path))
        blocks = [yaml.safe_load(text) for text, _ in found]
    except DataError as error:
        raise RegistrationError(str(error)) from error
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # ValueError: of a date
        raise RegistrationError(f"a block of {path} is not YAML: {error}") from error
    if wrong := [block for block in blocks if not isinstance(block, dict)]:
        raise RegistrationError(f"a block of {path} is no mapping: {shown(wrong[0])}; restore it")
    if not blocks or "registration" not in blocks[0]:
        raise RegistrationError(
            f"the first of {len(blocks)} yaml blocks of {path} must have the key registration"
        )
    original, *amendments = blocks
    registration = Registration(original, tuple(amendments), tuple(stated for _, stated in found))
    try:
        _ = registration.hash, registration.registered()
        for number, amendment in enumerate(amendments, start=1):
            _check(amendment, number, registration)
    except RegistrationError:
        raise
    except (LookupError, TypeError, AttributeError, ValueError) as error:
        raise RegistrationError(
            f"a block of {path} is not whole ({type(error).__name__}: {error!s:.200}); restore it"
        ) from error
    return registration


def stamp(path: Path = DOCUMENT) -> dict[str, Any]:
    """What run.json says of the registration that stands when a run starts: hashes of its blocks.

    The page comes with a checkout and with the wheel; where somebody took it away, `original` is
    None with the reason, and no registered analysis will count the run.
    """
    if not path.is_file():
        reason = "PREREGISTRATION.md is missing from this installation"
        return {"original": None, "amendments": [], "reason": reason}
    registration = read(path)
    amendments = [digest(block) for block in registration.amendments]
    return {"original": registration.hash, "amendments": amendments}


def config_fields(config: Mapping[str, Any]) -> dict[str, Any]:
    """A run's configuration by field, without its seed and what changes no number."""
    return {name: value for name, value in hashed_fields(config).items() if name != "seed"}


def differences(expected: Mapping[str, Any], found: Mapping[str, Any]) -> list[str]:
    """The registered fields that a configuration has otherwise, in words."""
    return [
        f"{name} is {found.get(name, 'absent')!r}, registered {value!r}"
        for name, value in sorted(expected.items())
        if name not in found or found[name] != value
    ]


def problems(registration: Registration) -> list[str]:
    """Where the page disagrees with itself or with conf/; empty if nowhere.

    Every cell is composed from its experiment and the overrides of its scale and analysis, and
    must have every registered field; those that are not registered must be one for all conditions.
    """
    blocks = (registration.block, *registration.amendments)
    found = [
        f"{_name(block)} has sha256 {digest(block)}, but the page states {stated or 'none'}"
        for block, stated in zip(blocks, registration.stated, strict=True)
        if digest(block) != stated
    ]
    free: dict[str, dict[str, list[str]]] = {}
    for cell in registration.cells():
        try:
            fields = config_fields(checked(compose(command(registration, cell))).to_dict())
        except ConfigError as error:
            found.append(f"{'/'.join(cell)} does not compose: {error}")
            continue
        wrong = differences(registration.fields(cell), fields)
        found += [f"{'/'.join(cell)}: {text}" for text in wrong]
        for name in fields.keys() - registration.registered():
            free.setdefault(name, {}).setdefault(repr(fields[name]), []).append("/".join(cell))
    found += [
        f"{name} is not registered and differs: "
        + ", ".join(f"{value} in {cells[0]}" for value, cells in values.items())
        for name, values in sorted(free.items())
        if len(values) > 1
    ]
    return found


def command(registration: Registration, cell: Cell) -> list[str]:
    """The overrides of `python -m phasegpt.train` for a cell, without the seed."""
    condition = registration.block["conditions"][cell.condition]
    base = registration.fields(Cell("full", "primary", cell.condition))
    changed = {k: v for k, v in registration.fields(cell).items() if base[k] != v}
    words = [f"{k}={'null' if v is None else v}" for k, v in changed.items()]
    return [f"+experiment={condition['experiment']}", *words]


def _check(amendment: dict[str, Any], number: int, registration: Registration) -> None:
    """RegistrationError if an amendment is malformed or changes what may not change."""
    where = f"amendment {number}"
    if amendment.keys() != _AMENDMENT:
        raise RegistrationError(
            f"{where} has the keys {sorted(amendment)}; it must have {sorted(_AMENDMENT)}"
        )
    if amendment["amendment"] != number or amendment["original"] != registration.hash:
        raise RegistrationError(
            f"{where} calls itself {amendment['amendment']} of {amendment['original']}; it must "
            f"be {number} of {registration.hash}"
        )
    try:
        datetime.date.fromisoformat(str(amendment["date"]))
    except ValueError as error:
        raise RegistrationError(f"{where} has the date {amendment['date']}: {error}") from error
    if not amendment["reason"]:
        raise RegistrationError(f"{where} must give a reason")
    allowed = {
        "conditions": list(registration.block["conditions"]),
        "seeds": registration.block["seeds"],
        "scales": registration.scales,
    }
    covers, fields = amendment["covers"], amendment["fields"]
    if not isinstance(covers, dict) or covers.keys() != allowed.keys():
        raise RegistrationError(f"{where}: covers must be lists of {', '.join(allowed)}")
    for name, values in covers.items():
        if not isinstance(values, list) or not values or not set(values) <= set(allowed[name]):
            raise RegistrationError(
                f"{where} covers {name} {values}; it must be a list of some of {allowed[name]}"
            )
    if not isinstance(fields, dict) or not fields.keys() <= registration.registered():
        raise RegistrationError(f"{where} changes {fields}; it must name registered fields")
    for field in fields:
        if any(fnmatch(field, p) for p in (*registration.block["frozen"], *_COUPLING)):
            raise RegistrationError(f"{where} changes {field}, which is frozen; leave it")


def _name(block: Mapping[str, Any]) -> str:
    return f"amendment {block['amendment']}" if "amendment" in block else "the original block"


def _iso(value: Any) -> str:
    """YAML reads a date as a date."""
    if isinstance(value, datetime.date):
        return value.isoformat()
    raise TypeError(f"{value!r} cannot be hashed; write it as text")
