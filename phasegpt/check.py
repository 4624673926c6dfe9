"""`python -m phasegpt.check`: hold an attention layer to its contract, rule by rule."""

from __future__ import annotations

import argparse
import sys
import textwrap
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from phasegpt.attention import Attention
    from phasegpt.model.contract import Subject

#: What a layer may leave out, and what it does then.
OPTIONAL = {
    "Config": "has no options",
    "reset_oscillators": "its parameters begin by GPT-2's rule",
    "lr_factors": "no parameter has a learning rate of its own, or is kept from decay by name",
    "has_phases": "returns no phases",
    "phased": "has_phases whatever its options",
    "order_parameter": "R is over the oscillators of a head",
    "coupled_axis": "couples the oscillators of a head",
    "phase_error": "phases keep float32 precision under bf16 autocast",
    "first_token": "R counts from the first token, of prefixes from phasegpt.phase.first_prefix",
    "flops": "its FLOPs are those of its linear maps and of softmax's mixing",
    "link": "hands no state from layer to layer",
    "mixes": "mixes tokens",
    "knows_order": "knows the order of tokens under rotary positions",
    "dead": "every parameter learns from the first step",
    "trajectory": "phase_monitor and interpret have no path to show",
    "drift": "phases hold no rotary drift that the readout takes off",
    "draw_perturbation": "has the noise of its `oscillators`, if it has some",
    "off": "no off control to compare with",
    "softmax_parts": "GPT-2's projections are not taken over",
    "leaky": "sees no future",
}


class Finding(NamedTuple):
    """What became of one rule: ok, BROKEN, or left out, and why."""

    rule: str
    status: str
    meaning: str
    found: str = ""


def main() -> int:
    """Command line; the status is 1 if a rule is broken."""
    from phasegpt.cli import guarded

    parser = argparse.ArgumentParser(
        prog="python -m phasegpt.check",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        description="Hold an attention layer to its contract, rule by rule, in small models.",
        epilog="python -m phasegpt.check my_package.my_module\n"
        "python -m phasegpt.check kuramoto readout=gate\n\n"
        "The status is 0 if every rule holds, 1 if one is broken, 2 if there is no such layer.",
    )
    parser.add_argument("name", help="a module that holds one Attention, or a mechanism's name")
    parser.add_argument(
        "options", nargs="*", metavar="KEY=VALUE", help="options other than its defaults"
    )
    parser.add_argument(
        "--no-compile", action="store_true", help="leave out torch.compile, the slowest rule"
    )
    parser.add_argument(
        "--only", action="append", default=[], metavar="RULE", help="this rule alone, such as alive"
    )
    given = parser.parse_intermixed_args()  # KEY=VALUE behind an option too

    def command() -> int:
        options, compile = _values(given.options), not given.no_compile
        found = check(given.name, options, compile=compile, only=given.only, show=_show)
        broken = sum(f.status == "BROKEN" for f in found)
        print(f"{broken} of {len(found)} rules broken" if broken else "every rule holds")
        return int(broken > 0)

    return guarded(command)


def check(
    name: str,
    options: Mapping[str, Any] | None = None,
    *,
    compile: bool = True,
    only: Collection[str] = (),
    show: Callable[[str], None] = lambda text: None,
) -> list[Finding]:
    """Every rule of the contract, or those of `only`, on mechanism `name`; a module is imported.

    `show` gets the report line by line as it comes. Raises ConfigError where there is no such
    layer or rule, or the options are wrong.
    """
    import torch

    from phasegpt.attention import layer_class
    from phasegpt.core import modules
    from phasegpt.core.errors import ConfigError
    from phasegpt.core.sections import unknown
    from phasegpt.model.contract import Subject

    if modules.dotted(name):
        modules.imported(name, "the mechanism")
    cls = layer_class(name)
    rules = _rules(cls.leaky, compile)
    for rule in only:
        if rule not in rules:
            raise ConfigError(unknown(rule, list(rules)))
    subjects, refused = [], []
    for positions in ("learned", "rope"):
        subject = Subject(name, options or {}, positions)
        try:
            with _quiet():
                subject.gpt()
            subjects.append(subject)
        except ConfigError as error:
            refused.append(error)
            said = f"model.positions={positions} is refused by name: {error}"
    if not subjects:
        raise refused[0]
    show(f"{name}: {cls.__module__}.{cls.__qualname__}, {subjects[0].keys}")
    if refused:
        show(said)
    findings = []
    for rule, function in rules.items():
        if only and rule not in only:
            continue
        once = function.__name__ in _ONCE
        with _quiet(), torch.random.fork_rng(devices=[]):
            finding = _run(rule, function, subjects[:1] if once else subjects)
        findings.append(finding)
        show(f"{finding.status:<8}{rule:<26}{finding.meaning}")
        if finding.found:
            show(textwrap.indent(textwrap.fill(finding.found, 92), " " * 8))
    show("\n".join(["optional:", *_optional(cls)]))
    return findings


#: Rules that positions cannot change.
_ONCE = {"options_round_trip", "options_act", "starts", "per_position", "copies", "no_noise",
         "activation_checkpointing", "noise_of_a_sample", "noise_of_its_key", "noise_size",
         "noise_of_its_own_stream", "noise_acts", "flops"}  # fmt: skip


def _rules(leaky: bool, compile: bool) -> dict[str, Callable[[Subject], None]]:
    """The rules for a layer by name, in the order of the report."""
    import torch

    from phasegpt.model import contract, contract_state, contract_training

    def decoding_float64(s: Subject) -> None:
        contract_state.decoding(s, torch.float64)

    decoding_float64.__doc__ = contract_state.decoding.__doc__

    def alive(s: Subject) -> None:
        contract_training.alive(s, _text())

    alive.__doc__ = contract_training.alive.__doc__
    causal: list[Callable[[Subject], None]] = [
        *(contract.causality, contract.not_leaky, contract.mixing, contract.order),
        *(contract_training.heard, contract_state.decoding, decoding_float64),
        *(contract_state.rows_of_the_cache, contract_state.phases_while_decoding),
    ]
    rules: list[Callable[[Subject], None]] = [
        *(contract.shapes, contract.float32_phases, contract.same_logits_with_phases),
        *([contract.leak] if leaky else causal),
        *(contract.off_control, contract_state.order_parameter, contract_state.trajectory),
        contract.flops,
        *(contract_training.gradients, alive),
        *(contract_training.autocast, contract_training.precise_phases),
        *([contract_training.compiled] if compile else []),
        contract_training.activation_checkpointing,
        *(contract_state.copies, contract_state.options_round_trip, contract_state.options_act),
        *(contract_state.starts, contract_state.per_position),
        *(contract_training.no_noise, contract_training.noise_of_a_sample),
        *(contract_training.noise_of_its_key, contract_training.noise_of_its_own_stream),
        *(contract_training.noise_size, contract_training.noise_acts),
    ]
    return {rule.__name__.replace("_", " "): rule for rule in rules}


def _run(rule: str, function: Callable[[Subject], None], subjects: Sequence[Subject]) -> Finding:
    """One rule on every subject; what the layer raises breaks it too."""
    import torch

    from phasegpt.model.contract import Broken, NotApplicable

    meaning = " ".join((function.__doc__ or "").split())
    left_out, held = "", False
    for subject in subjects:
        where = f"model.positions={subject.positions}: " if len(subjects) > 1 else ""
        torch.manual_seed(0)
        try:
            function(subject)
            held = True
        except NotApplicable as reason:
            left_out = str(reason)
        except Broken as error:
            return Finding(rule, "BROKEN", meaning, f"{where}{error}")
        except Exception as error:  # of the layer itself
            said = " ".join(str(error).split())
            found = f"{where}{type(error).__name__}: {said:.400}{_place(error, subject)}"
            return Finding(rule, "BROKEN", meaning, found)
    return Finding(rule, "ok", meaning) if held else Finding(rule, "-", meaning, left_out)


def _place(error: BaseException, subject: Subject) -> str:
    """The last line of the mechanism's own module that an error went through."""
    file = getattr(sys.modules.get(subject.layer_class.__module__), "__file__", None)
    at, lines = error.__traceback__, []
    while at is not None:
        if at.tb_frame.f_code.co_filename == file:
            lines.append(at.tb_lineno)
        at = at.tb_next
    return f" ({file}, line {lines[-1]})" if lines else ""


def _optional(cls: type[Attention]) -> list[str]:
    """What a layer may leave out: whether it has it, or what it does without."""
    from phasegpt.attention import Attention

    def own(part: str) -> bool:
        return getattr(cls, part) is not getattr(Attention, part)

    return [
        f"{'yes' if own(part) else 'no':<8}{part:<26}{'' if own(part) else without}".rstrip()
        for part, without in OPTIONAL.items()
    ]


def _text() -> Any:
    """English of the embedded corpus in characters, [4,129]."""
    import torch

    from phasegpt.data import synthetic
    from phasegpt.model.contract import VOCAB

    text = synthetic.generate(1, 4 * 129)
    alphabet = sorted(set(text))
    return torch.tensor([alphabet.index(c) % VOCAB for c in text[: 4 * 129]]).view(4, 129)


def _values(words: Sequence[str]) -> dict[str, Any]:
    """KEY=VALUE words as Hydra reads them; ConfigError."""
    import yaml

    from phasegpt.core.errors import ConfigError

    found = {}
    for word in words:
        key, sign, value = word.partition("=")
        try:
            found[key] = yaml.safe_load(value)
        except yaml.YAMLError:
            sign = ""
        if not sign or not key.isidentifier():
            raise ConfigError(f"{word!r:.80} is no option; write KEY=VALUE, such as coupling=0.5")
    return found


def _quiet() -> Any:
    import warnings

    return warnings.catch_warnings(action="ignore")


def _show(text: str) -> None:
    print(text, flush=True)


if __name__ == "__main__":
    sys.exit(main())
