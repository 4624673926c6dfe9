"""Modules of other packages that a configuration names: found, imported, known again by a hash.

What a command of the user names is imported. A name that stands in a file is looked up among what
is imported already (sys.modules), so that reading a file never runs code that it names.
"""

from __future__ import annotations

import functools
import hashlib
import importlib
import importlib.metadata
import inspect
import sys
from importlib.metadata import EntryPoint
from pathlib import Path
from types import ModuleType
from typing import Any

from phasegpt.core.errors import ConfigError
from phasegpt.core.sections import printable


def dotted(name: str) -> bool:
    """Whether a name is that of a module in a package: my_package.my_module."""
    return "." in name and all(part.isidentifier() for part in name.split("."))


def imported(name: str, key: str) -> ModuleType:
    """Module `name`, imported; ConfigError if it cannot be. `key` is what the user set it as.

    Only for what the user's own command names: it runs the module.
    """
    if not all(part.isidentifier() for part in name.split(".")):
        raise ConfigError(
            f"{key}={printable(name)} is no module; write it as Python does: my_package.my_module"
        )
    try:
        return importlib.import_module(name)
    except Exception as error:  # whatever the module does
        said = " ".join(str(error).split())
        raise ConfigError(
            f"{key}={printable(name)} cannot be imported ({type(error).__name__}: {said:.300}); "
            f"install it, or give the command in the folder that holds {name.partition('.')[0]}"
        ) from error


def entry_points(group: str) -> dict[str, list[EntryPoint]]:
    """The entry points of a group by name; those of one name are of several packages."""
    return _entry_points(group, tuple(sys.path))


@functools.cache
def _entry_points(group: str, path: tuple[str, ...]) -> dict[str, list[EntryPoint]]:
    found: dict[str, list[EntryPoint]] = {}
    for point in importlib.metadata.entry_points(group=group):
        found.setdefault(point.name, []).append(point)
    return found


def _public(kind: type) -> str:
    """A class as a user imports it: from the package that offers what its private modules hold."""
    return f"{kind.__module__.partition('._')[0]}.{kind.__qualname__}"


def subclass_in(module: ModuleType, base: type, key: str) -> Any:
    """The one concrete subclass of `base` that a module, or a module in it, defines; ConfigError.

    `key` is what the user set to choose it.
    """
    inside = f"{module.__name__}."
    found = {
        value.__qualname__: value
        for value in vars(module).values()
        if isinstance(value, type) and issubclass(value, base) and not inspect.isabstract(value)
        if f"{value.__module__}.".startswith(inside)
    }
    if len(found) != 1:
        raise ConfigError(
            f"{key}: {module.__name__} must define one subclass of {_public(base)} with all "
            f"of its abstract methods, and it has {', '.join(found) or 'none'}; leave one there"
        )
    return next(iter(found.values()))


def origin(module: ModuleType) -> dict[str, Any]:
    """Which code a module is: its name, distribution and version, and the sha256 of its file.

    Without a distribution (it was not installed), or without a file, these are None.
    """
    file = getattr(module, "__file__", None)
    content = Path(file).read_bytes() if file and Path(file).is_file() else None
    top = module.__name__.partition(".")[0]
    distribution = next(iter(importlib.metadata.packages_distributions().get(top, ())), None)
    return {
        "module": module.__name__,
        "distribution": distribution,
        "version": importlib.metadata.version(distribution) if distribution else None,
        "sha256": None if content is None else hashlib.sha256(content).hexdigest(),
    }
