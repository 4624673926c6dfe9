"""How conf/ is composed: the only user of Hydra and OmegaConf below the commands."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from string import Template
from typing import Any

from phasegpt.core.errors import ConfigError
from phasegpt.core.files import check_name, check_output
from phasegpt.core.sections import Section, nearest, printable, shown, unknown

_PACKAGE = Path(__file__).resolve().parents[1]
#: conf/ inside an installed wheel, or beside the package in a checkout.
CONF_DIR = next(
    (p for p in (_PACKAGE / "conf", _PACKAGE.parent / "conf") if p.is_dir()),
    _PACKAGE / "conf",
)


#: Keys of command lines that may still be around, and what to write instead.
_RESPELT = {
    "attention.as_coded": "the seed code's layer is a mechanism: attention=as_coded (with "
    "attention=phase_sync leave the key out)"
}


def compose(overrides: Sequence[str] = (), *, config_name: str = "config") -> Any:
    """Compose conf/ as the command line does and return Hydra's DictConfig.

    `compose(["+experiment=quickstart", "attention.coupling=0.5"])`. Raises ConfigError.
    """
    from hydra import compose as hydra_compose
    from hydra import initialize_config_dir
    from hydra.errors import HydraException
    from omegaconf.errors import OmegaConfBaseException

    many = isinstance(overrides, Sequence) and not isinstance(overrides, str)
    if not many or not all(isinstance(word, str) for word in overrides):
        raise ConfigError(
            f"overrides={shown(overrides)} must be a list of texts, such as ['trainer.max_steps=9']"
        )
    if not isinstance(config_name, str):
        raise ConfigError(f"config_name={shown(config_name)} must be text, such as 'config'")
    check_groups(overrides)
    try:
        with initialize_config_dir(str(CONF_DIR), version_base="1.3"):
            return hydra_compose(config_name, overrides=list(overrides))
    except (HydraException, OmegaConfBaseException) as error:
        said = [f"{line:.300}" for line in str(error).splitlines()[:16]]
        raise ConfigError("\n".join([*misspelt(overrides, config_name), *said])) from error
    except Exception as error:  # whatever Hydra's grammar and defaults make of a word
        raise ConfigError(
            f"Hydra cannot read {shown(list(overrides))} ({type(error).__name__}: {error!s:.300}); "
            f"give words of the form KEY=VALUE, and put a value of special characters in quotes"
        ) from error


def check_groups(overrides: Sequence[str]) -> None:
    """ConfigError for words that Hydra answers with a traceback, or takes in an order of its own.

    That is a group set to nothing (logger=null), a +scale before the +experiment whose sizes it
    is to replace: of appended groups the last wins, and a key that is spelt otherwise by now.
    A name that would put the run's folder elsewhere is refused too: Hydra makes it before
    anything else is read.
    """
    scale = None
    for word in overrides:
        if (key := word.partition("=")[0].lstrip("+~")) in _RESPELT:
            raise ConfigError(f"{key} is no key any more; {_RESPELT[key]}")
        if word.startswith("+scale"):
            scale = word
        elif scale and word.startswith("+experiment"):
            raise ConfigError(
                f"{scale} stands before {word}, which would set its own sizes again; give {word} "
                f"first, then {scale}"
            )
        group, _, value = word.partition("=")
        if group.lstrip("+") in ("name", "attention.name", "data.corpus") and "${" not in value:
            check_name(value.strip("'\""), group.lstrip("+"))  # Hydra makes a folder of it
        read = _parsed(word)
        if group.isidentifier() and (CONF_DIR / group).is_dir() and not _names_options(read):
            options = sorted(path.stem for path in (CONF_DIR / group).glob("*.yaml"))
            raise ConfigError(
                f"{printable(word)} is no option of {group}; choose from: {', '.join(options)}"
            )


#: Where Hydra puts a run; it makes the folder before anything of ours is called.
RUN_DIR = "hydra.run.dir"


def check_run_dir(words: Sequence[str]) -> None:
    """ConfigError where the folder of a run could not be made, as far as the words tell it."""
    if {"-m", "--multirun"} & set(words) or any(word.startswith("-") for word in words):
        return
    chosen = "runs/new"  # below which conf/config.yaml puts it
    for word in words:
        if word.partition("=")[0] == RUN_DIR:
            read = _parsed(word)
            chosen = "" if read is None else read.value()
    if not isinstance(chosen, str):
        raise ConfigError(f"{RUN_DIR}={shown(chosen)} must be a folder, such as {RUN_DIR}=runs/a")
    for name in re.findall(r"\$\{([\w.]*)\}", chosen):
        if not name.startswith("hydra.") and not _has(plain(compose()), name):
            raise ConfigError(
                f"{RUN_DIR}={printable(chosen)}: there is no {name}; name a key such as ${{name}}, "
                f"or give a folder"
            )
    if "${" not in chosen:
        check_output(Path(chosen) / "run.json", RUN_DIR)


def _has(node: Any, name: str) -> bool:
    for part in name.split("."):
        if not isinstance(node, Mapping) or part not in node:
            return False
        node = node[part]
    return True


def _parsed(word: str) -> Any:
    """A word as Hydra reads it; None where Hydra will say by itself what is wrong."""
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    try:
        return OverridesParser.create().parse_override(word)
    except HydraException:
        return None
    except Exception as error:  # such as a RecursionError, of brackets in brackets
        raise ConfigError(
            f"{printable(word)} cannot be read ({type(error).__name__}); write KEY=VALUE, with "
            f"fewer brackets, or VALUE in quotes"
        ) from error


def _names_options(override: Any) -> bool:
    """Whether what a group is set to is text, a list of texts, or a sweep over such."""
    if override is None or override.is_sweep_override():
        return True
    value = override.value()
    return all(isinstance(name, str) for name in (value if isinstance(value, list) else [value]))


def misspelt(overrides: Sequence[str], config_name: str = "config") -> list[str]:
    """For every override whose key conf/ does not have, the nearest key that it has."""

    def keys(node: Any, prefix: str = "") -> list[str]:
        if not isinstance(node, Mapping):
            return []
        return [k for name in node for k in (prefix + name, *keys(node[name], f"{prefix}{name}."))]

    default = plain(compose(config_name=config_name))
    pairs = [word.partition("=")[::2] for word in overrides]
    chosen = [  # groups have other keys for every option
        f"{group}={option}"
        for group, option in pairs
        if group in default and os.path.isfile(CONF_DIR / group / f"{option}.yaml")  # of any length
    ]
    known = [*keys(plain(compose(chosen, config_name=config_name))), "experiment"]
    given = [word.partition("=")[0] for word in overrides if "=" in word]
    return [
        unknown(key, known)
        for key in given
        if key not in known
        and not key.startswith(("+", "~", "hydra", "experiment"))
        and nearest(key, known)
    ]


def help_page(config_name: str) -> str:
    """What `--help` prints: hydra.help.template of a primary configuration, with the groups.

    The same text as Hydra's, which composes conf/ once for every group to list them.
    """
    import yaml

    groups: dict[str, list[str]] = {}
    for path in CONF_DIR.rglob("*.yaml"):
        if path.parent != CONF_DIR:
            groups.setdefault(path.parent.relative_to(CONF_DIR).as_posix(), []).append(path.stem)
    lines = [f"{name}: {', '.join(sorted(options))}\n" for name, options in sorted(groups.items())]
    config = yaml.safe_load((CONF_DIR / f"{config_name}.yaml").read_text(encoding="utf-8"))
    template: str = config["hydra"]["help"]["template"]
    return Template(template).substitute(APP_CONFIG_GROUPS="".join(lines))


def plain(config: Any) -> dict[str, Any]:
    """Any configuration (DictConfig, mapping or section) as plain nested dicts and lists."""
    if isinstance(config, Section):
        return config.to_dict()
    if isinstance(config, Mapping) and not hasattr(config, "_metadata"):
        return dict(config)
    from omegaconf import DictConfig, OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    if not isinstance(config, DictConfig) or config._is_none() or config._is_missing():
        raise ConfigError(
            f"a configuration is a mapping of keys, not {shown(config)}; give what "
            f"phasegpt.compose returns, or nested dicts"
        )
    try:
        return OmegaConf.to_container(config, resolve=True, throw_on_missing=True)  # type: ignore[return-value]
    except OmegaConfBaseException as error:
        raise ConfigError(str(error)) from error


def to_yaml(values: Mapping[str, Any]) -> str:
    """Plain nested values as YAML, as --cfg job prints them."""
    from omegaconf import OmegaConf

    return OmegaConf.to_yaml(OmegaConf.create(dict(values)))
