"""Attention layers by name. The contract of one is in _contract.py and offered here.

A new attention is one file here with one subclass of Attention, and one file conf/attention/NAME
.yaml with the defaults of its Config: no registry. Or it is a module of another package: see
`layer_class`.
"""

from __future__ import annotations

import importlib
import pkgutil
import sys
from collections.abc import Mapping
from types import ModuleType
from typing import Any

from phasegpt.attention._cache import LayerCache
from phasegpt.attention._contract import (
    Attention,
    AttentionConfig,
    AttentionOutput,
    Flops,
    LayerShape,
    Link,
    Off,
    Phase,
    ReturnPhase,
    Trajectory,
    linear_flops,
)
from phasegpt.attention._functional import (
    causal_attention,
    join_heads,
    rotary_angles,
    rotate,
    split_heads,
)
from phasegpt.attention._oscillators import (
    CoupledPhases,
    NoisyConfig,
    OscillatorConfig,
    Oscillators,
)
from phasegpt.core import modules
from phasegpt.core.errors import ConfigError, NotImported
from phasegpt.core.sections import Section, printable, unknown

__all__ = [
    "Attention",
    "AttentionConfig",
    "AttentionOutput",
    "CoupledPhases",
    "Flops",
    "LayerCache",
    "LayerShape",
    "Link",
    "NoisyConfig",
    "Off",
    "OscillatorConfig",
    "Oscillators",
    "Phase",
    "ReturnPhase",
    "Trajectory",
    "build",
    "causal_attention",
    "coupled_axis",
    "join_heads",
    "layer_class",
    "linear_flops",
    "names",
    "origin",
    "rotary_angles",
    "rotate",
    "split_heads",
]

#: Entry points of other packages: NAME = "my_package.my_module" makes attention=NAME work.
GROUP = "phasegpt.attention"


def names() -> list[str]:
    """Mechanisms by name: the modules of this package, and the entry points of others."""
    return sorted({*_own(), *modules.entry_points(GROUP)})


def _own() -> list[str]:
    return [m.name for m in pkgutil.iter_modules(__path__) if not m.name.startswith("_")]


def layer_class(name: str) -> type[Attention]:
    """The one Attention subclass of a mechanism.

    `name` is one of names(), or a module of another package, my_package.my_module, which this
    process has imported: nothing else is imported here, since a name may come from a file.
    ConfigError for an unknown name and a module without such a class; NotImported.
    """
    cls = modules.subclass_in(_module(name), Attention, f"attention={name}")
    if not (isinstance(cls.Config, type) and issubclass(cls.Config, AttentionConfig)):
        raise ConfigError(
            f"attention={name}: {cls.__name__}.Config must be a subclass of "
            f"phasegpt.attention.AttentionConfig, a frozen dataclass; it is {cls.Config!r:.100}"
        )
    return cls


def _module(name: str) -> ModuleType:
    """The module that holds a mechanism, see layer_class."""
    own, points = name in _own(), modules.entry_points(GROUP).get(name, [])
    if own + len(points) > 1:
        packages = ["phasegpt"] * own + [str(p.dist and p.dist.name) for p in points]
        raise ConfigError(
            f"attention={name} is the name of several mechanisms, of {', '.join(packages)}; "
            f"uninstall one, or name the module: attention={points[0].value}"
        )
    if own:
        return importlib.import_module(f"{__name__}.{name}")
    if points:  # that was installed, so it may run
        return modules.imported(points[0].value, f"attention={name}, entry point {GROUP}")
    if not modules.dotted(name):
        known = [f"attention={n}" for n in names()]
        remedy = "; a package of its own must be installed, a module is my_package.my_module"
        said = unknown(f"attention={name}", known).replace(", attention=", ", ")
        raise ConfigError(said + remedy)
    if name.startswith(f"{__name__}."):
        raise ConfigError(f"attention={name}: write attention={name.rpartition('.')[2]}")
    if name not in sys.modules:
        raise NotImported(
            f"attention={printable(name)} is a module, and reading a file runs no code that it "
            f"names; if you trust it, `import {printable(name)}` first (a command that reads takes "
            f"imports={printable(name)}), or install it with an entry point {GROUP}"
        )
    return sys.modules[name]


def origin(name: str) -> dict[str, Any] | None:
    """Which code a mechanism of another package is, see modules.origin; None for those here.

    With coupled_axis, for readers of a record that do not have the code.
    """
    if name in _own():
        return None
    return {**modules.origin(_module(name)), "coupled_axis": layer_class(name).coupled_axis}


def coupled_axis(options: Mapping[str, Any]) -> str:
    """Attention.coupled_axis of an `attention` group; that of a hybrid is its partner's."""
    return layer_class(options.get("partner", options["name"])).coupled_axis


def build(
    name: str, config: LayerShape, options: Section | Mapping[str, Any] | None, layer: int
) -> Attention:
    """Make layer `layer` with mechanism `name` and its Config, by keys too; None: the defaults.

    Unknown or wrong keys raise ConfigError.
    """
    cls = layer_class(name)
    if not isinstance(options, Section):
        options = cls.Config.parse(options or {})
    assert isinstance(options, cls.Config)
    return cls(config, options, layer)
