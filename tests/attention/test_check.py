"""`python -m phasegpt.check`: a layer that breaks a rule is told which, with the value found."""

import itertools
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from helpers import ROOT, command

from phasegpt.check import OPTIONAL, check
from phasegpt.core.errors import ConfigError

LAYER = (ROOT / "examples" / "my_mechanism" / "my_mechanism" / "layer.py").read_text()
COUNT = itertools.count()


@pytest.fixture
def written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], str]]:
    """written(source): the name of a module that holds it."""
    package = f"faulty{next(COUNT)}"
    (tmp_path / package).mkdir()
    monkeypatch.syspath_prepend(tmp_path)

    def write(source: str) -> str:
        (tmp_path / package / "layer.py").write_text(source)
        return f"{package}.layer"

    yield write
    for name in [n for n in sys.modules if n.startswith(package)]:
        del sys.modules[name]


def changed(*pairs: tuple[str, str]) -> str:
    source = LAYER
    for old, new in pairs:
        assert source.count(old) == 1, old
        source = source.replace(old, new)
    return source


ATTEND = "causal_attention(q, k, v, scale=self.options.focus / N, dropout=dropout)"
UPDATE = "k, v = cache.update(k, v)"
RETURN = "return AttentionOutput(self.resid_dropout(self.c_proj(read.to(x_BTD.dtype))))"
INDENT = " " * 8
INIT = "self.c_proj = nn.Linear"
FOCUS = 'focus: float = option(4.0, "how much attention prefers agreeing phases", ge=0, le=1000)'
#: By rule: a mistake in the template's layer, and what the message says.
FAULTS = {
    "shapes: phases": ("has_phases", ("    off = Off", "    has_phases = True\n    off = Off")),
    "shapes: axes": (
        "it must be as x is",
        (RETURN, "return AttentionOutput(self.c_proj(read).transpose(0, 1))"),
    ),
    "shapes: a plain tensor": ("AttentionOutput(y, phase)", (RETURN, "return self.c_proj(read)")),
    "causality": (
        "phasegpt.attention.causal_attention",
        (ATTEND, "torch.softmax(q @ k.mT * self.options.focus / N, -1) @ v"),
    ),
    "causality: normalised over the sequence": (
        "phasegpt.attention.causal_attention",
        ("pull = field_sin * cos", "pull = (field_sin - field_sin.mean(2, True)) * cos"),
    ),
    "leak": ("leave leaky out", ("    off = Off", "    leaky = True\n    off = Off")),
    "mixing": ("an attention layer mixes tokens", (ATTEND, "v")),
    "order": ("rotary_angles", ("if self.rope:", "if False:")),
    "order: base": ("rope_theta", (", self.rope_theta)", ")")),
    "heard": ("attention may be on the token itself", (ATTEND, ATTEND.replace("/ N", "* N"))),
    "decoding: nothing kept": ("cache.update(k, v)", (UPDATE, "pass")),
    "decoding: positions": (
        "begin positions at cache.length",
        ("start = cache.length if cache is not None else 0", "start = 0"),
    ),
    "rows of the cache": (
        "hold the rows on the second",
        (
            UPDATE,
            "cache.mine = k, v = [torch.cat(p, 2) for p in zip(cache.mine, (k, v))] "
            f"if hasattr(cache, 'mine') else (k, v)\n{INDENT}    cache.length = k.shape[2]",
        ),
    ),
    "off control": ("earlier tokens move y", ('Off({"coupling": 0.0}', 'Off({"focus": 0.0}')),
    "gradients": (
        "finite differences",
        ("cos, sin = theta.cos(), theta.sin()", "cos, sin = theta.cos().detach(), theta.sin()"),
    ),
    "alive": (
        "lost has gradient none",
        (INIT, f"self.lost = nn.Parameter(torch.ones(3))\n{INDENT}{INIT}"),
    ),
    "alive: hidden by a zero": (
        "has gradient none at initialisation",
        (
            "nn.init.constant_(self.coupling, self.options.coupling)",
            "nn.init.zeros_(self.coupling)\n        nn.init.zeros_(self.c_proj.weight)",
        ),
    ),
    "copies": (
        "a registered buffer",
        (INIT, f"self.drawn = torch.randn(1).item()\n        {INIT}"),
        ("pull = field_sin", "pull = self.drawn * field_sin"),
    ),
    "compiled": (
        "never on the values of tensors",
        (
            "pull = field_sin",
            f"theta = theta + 1 if theta.sum() > 0 else theta\n{INDENT}pull = field_sin",
        ),
    ),
    "options act": (
        "option idle changes nothing",
        (FOCUS, f'{FOCUS}\n    idle: float = option(1.0, "x")'),
    ),
    "options round trip": (
        "option bare has no meaning",
        (FOCUS, f"{FOCUS}\n    bare: float = 1.0"),
    ),
    "activation checkpointing": (
        "one function of its arguments",
        (INIT, f"self.calls = 0\n        {INIT}"),
        ("pull = field_sin", "self.calls += 1\n        pull = self.calls * field_sin"),
    ),
    "no noise": (
        "returns None where it is off",
        (
            "    def forward",
            "    def draw_perturbation(self, key, time, device):\n"
            "        return (torch.ones(1), None)\n\n    def forward",
        ),
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_mistake_breaks_its_rule_with_what_was_found(fault: str, written: Callable) -> None:
    says, *pairs = FAULTS[fault]
    rule = fault.partition(":")[0]
    (found,) = check(written(changed(*pairs)), only=[rule])
    assert (found.rule, found.status) == (rule, "BROKEN")
    assert says in found.found


#: By rule: a wrong method of a layer that is kuramoto otherwise, and what the message says.
PHASED = {
    "order parameter": (
        "order_parameter(theta) is not R of forward",
        "def order_parameter(self, theta):\n        return super().order_parameter(theta) ** 2",
    ),
    "order parameter: axis": ("set coupled_axis = 'oscillators'", 'coupled_axis = "prefix"'),
    "trajectory": (
        "does not end in the phases of forward",
        "def trajectory(self, x, **words):\n"
        "        found = super().trajectory(x, **words)\n"
        "        return found._replace(theta=found.theta0)",
    ),
    "phases while decoding": (
        "theta while decoding is not the full forward's",
        "def forward(self, x, *, cache=None, **words):\n"
        "        y, phase, _ = super().forward(x, cache=cache, **words)\n"
        "        moved = phase._replace(theta=phase.theta + 1) if cache and phase else phase\n"
        "        return AttentionOutput(y, moved)",
    ),
    "same logits with phases": (
        "return_phase=True moves logits",
        "def forward(self, x, *, return_phase=False, **words):\n"
        "        y, phase, _ = super().forward(x, return_phase=return_phase, **words)\n"
        "        return AttentionOutput(2 * y if return_phase else y, phase)",
    ),
    "float32 phases": (
        "torch.float64",
        "def integrate(self, x, *args, **words):\n"
        "        return super().integrate(x, *args, **words).double()",
    ),
    "precise phases": (
        "bf16 autocast moves phases",
        "def integrate(self, x, *args, **words):\n"
        "        rough = x.bfloat16().float() if torch.is_autocast_enabled('cpu') else x\n"
        "        return super().integrate(rough, *args, **words)",
    ),
    "noise of its own stream": (
        "noise moves torch's generator",
        "def draw_perturbation(self, *given):\n"
        "        noise, jitter = super().draw_perturbation(*given)\n"
        "        return Perturbation(torch.randn_like(noise), jitter)",
    ),
    "noise acts": (
        "noise_sigma moves no logit",
        "def forward(self, x, *, perturbation=None, **words):\n"
        "        return super().forward(x, **words)",
    ),
}
HEAD = """import torch
from phasegpt.attention import AttentionOutput
from phasegpt.attention.kuramoto import Kuramoto
from phasegpt.phase.steering import Perturbation
"""


@pytest.mark.parametrize("fault", PHASED)
def test_a_mistake_of_phases_or_noise_breaks_its_rule(fault: str, written: Callable) -> None:
    says, method = PHASED[fault]
    rule = fault.partition(":")[0]
    (found,) = check(written(f"{HEAD}class Mine(Kuramoto):\n    {method}"), only=[rule])
    assert (found.rule, found.status) == (rule, "BROKEN")
    assert says in found.found


def test_an_error_of_the_layer_itself_breaks_the_rule_at_its_line(written: Callable) -> None:
    name = written(changed(("N = self.options.num_oscillators", "N = 1 // 0")))
    (found,) = check(name, only=["mixing"])
    assert found.status == "BROKEN"
    assert "ZeroDivisionError" in found.found and "layer.py, line" in found.found


def test_the_command_reports_rules_and_what_is_optional(
    written: Callable, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.syspath_prepend(ROOT / "examples" / "my_mechanism")
    with pytest.raises(SystemExit) as end:
        rules = ("--only", "shapes", "--only", "causality")
        command(monkeypatch, "check", "my_mechanism.layer", *rules, "num_oscillators=4")
    out = capsys.readouterr().out
    assert end.value.code == 0, out
    assert [line.split()[:2] for line in out.splitlines()[1:3]] == [
        ["ok", "shapes"],
        ["ok", "causality"],
    ]
    assert "'num_oscillators': 4" in out and out.endswith("every rule holds\n")
    for part in OPTIONAL:
        assert f" {part}" in out
    with pytest.raises(SystemExit) as end:
        command(monkeypatch, "check", written(changed((ATTEND, "v"))), "--only", "mixing")
    assert end.value.code == 1
    assert "1 of 1 rules broken" in capsys.readouterr().out
    for name in [n for n in sys.modules if n.startswith("my_mechanism")]:
        del sys.modules[name]


@pytest.mark.parametrize(
    ("given", "says"),
    [
        (("kuramotto",), "did you mean attention=kuramoto?"),
        (("no.such_module",), "cannot be imported"),
        (("softmax", "heads=3"), "heads"),
        (("softmax", "heads"), "write KEY=VALUE"),
        (("softmax", "--only", "causalty"), "did you mean causality?"),
    ],
)
def test_what_cannot_be_checked_is_one_line(
    given: tuple[str, ...],
    says: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(SystemExit) as end:
        command(monkeypatch, "check", *given)
    assert end.value.code == 2
    err = capsys.readouterr().err
    assert says in err and len(err.splitlines()) == 1


def test_a_known_control_that_leaks_keeps_to_the_rules_of_one() -> None:
    (found,) = check("as_coded", only=["leak"])
    assert found.status == "ok"
    with pytest.raises(ConfigError, match="causality is unknown"):
        check("as_coded", only=["causality"])
