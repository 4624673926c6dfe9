"""How conf/ is composed: the only user of Hydra and OmegaConf below the commands."""

from __future__ import annotations

import importlib.util
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from string import Template
from typing import Any

from phasegpt.core import arguments, modules
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
    "attention.as_coded": "the original PhaseGPT's layer is a mechanism: attention=as_coded (with "
    "attention=phase_sync leave the key out)"
}


def compose(
    overrides: Sequence[str] = (),
    *,
    config_name: str = "config",
    config_dir: str | Path | None = None,
) -> Any:
    """Compose conf/ as the command line does and return Hydra's DictConfig.

    `compose(["+experiment=quickstart", "attention.coupling=0.5"])`. config_dir: a folder like
    conf/ with options of your own, as --config-dir is. Raises ConfigError.
    """
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
    overrides = expanded(overrides)
    folder = None
    if config_dir is not None:
        folder = check_config_dir(arguments.path("config_dir", config_dir))
    offer_mechanisms(overrides)
    try:
        return _composed(overrides, config_name, folder)
    except (HydraException, OmegaConfBaseException) as error:
        said = [f"{line:.300}" for line in str(error).splitlines()[:16]]
        near = misspelt(overrides, config_name, folder)
        raise ConfigError("\n".join([*near, *said])) from error
    except Exception as error:  # whatever Hydra's grammar and defaults make of a word
        raise ConfigError(
            f"Hydra cannot read {shown(list(overrides))} ({type(error).__name__}: {error!s:.300}); "
            f"give words of the form KEY=VALUE, and put a value of special characters in quotes"
        ) from error


def _composed(overrides: Sequence[str], config_name: str, config_dir: Path | None) -> Any:
    """Hydra's DictConfig for arguments that were checked; raises what Hydra and OmegaConf raise."""
    from hydra import compose as hydra_compose
    from hydra import initialize_config_dir
    from hydra.core.override_parser.types import Quote, QuotedString

    searched = []
    if config_dir is not None:
        place = QuotedString(f"file://{config_dir.resolve()}", Quote.single)
        searched = [f"hydra.searchpath=[{place.with_quotes()}]"]
    with initialize_config_dir(str(CONF_DIR), version_base="1.3"):
        return hydra_compose(config_name, overrides=[*searched, *overrides])


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


def expanded(overrides: Sequence[str]) -> list[str]:
    """A command line with the words that Hydra needs for what its groups cannot say by themselves.

    logger=[csv,tensorboard] is several at once, where Hydra would merge their files and keep the
    last name. optimizer._target_=my.module.MyOpt begins from the group optimizer=own, unless
    another is chosen: the keys of the default one are not its keys. attention=hybrid with a partner
    that is not its YAML's begins from the group of that partner, for the same reason. share= and
    records= are of a multirun and in no configuration.
    """
    overrides = _beside_partner(overrides)
    chosen = any(word.startswith("optimizer=") for word in overrides)
    words = []
    for word in overrides:
        if not chosen and re.match(r"\+{0,2}optimizer\._target_=", word):
            words.append("optimizer=own")
            chosen = True
        if word.startswith(("share=", "records=")):
            words.append(f"++{word}")
            continue
        read = _parsed(word) if word.startswith("logger=") else None
        names = None if read is None or read.is_sweep_override() else read.value()
        if isinstance(names, list) and names:
            words += [f"logger={names[0]}", f"logger.name=[{','.join(names)}]"]
        else:
            words.append(word)
    return words


def _beside_partner(words: Sequence[str]) -> list[str]:
    """The words with a mechanism's own keys beside those of the partner that is asked for."""
    import yaml

    given = dict(word.partition("=")[::2] for word in words)
    name, partner = given.get("attention", ""), given.get("attention.partner", "")
    files = [CONF_DIR / "attention" / f"{x}.yaml" for x in (name, partner) if x.isidentifier()]
    if len(files) < 2 or not all(file.is_file() for file in files):
        return [*words]
    own = yaml.safe_load(files[0].read_text(encoding="utf-8"))
    if own.get("partner") in (None, partner):
        return [*words]
    own.pop("defaults", None)
    text = {k: v if isinstance(v, str) else shown(v) for k, v in own.items()}
    beside = [f"++attention.{key}={value}" for key, value in text.items()]
    return [*beside, *(f"attention={partner}" if w == f"attention={name}" else w for w in words)]


def instantiate(node: Mapping[str, Any], *first: Any, **more: Any) -> Any:
    """Hydra's instantiate of a plain `node`, with plain values all the way down."""
    from hydra.utils import instantiate as made

    return made(dict(node), *first, _convert_="all", **more)


def check_config_dir(folder: Path) -> Path:
    """`folder`; ConfigError where it is none, or a file in it would be passed over for ours."""
    if not os.path.isdir(folder):
        raise ConfigError(f"config_dir={folder!s:.300} is no folder; give one that is like conf/")
    for path in sorted(folder.rglob("*.yaml")):
        if (CONF_DIR / path.relative_to(folder)).is_file():
            raise ConfigError(
                f"{path} has the name of an option of PhaseGPT's own, which would be taken "
                f"instead; give it another name"
            )
    return folder


#: attention=my_package.my_module, also as one value of a sweep.
_MODULE = re.compile(r"[A-Za-z_]\w*(?:\.[A-Za-z_]\w*)+", re.ASCII)


def offer_mechanisms(words: Sequence[str]) -> None:
    """Make options of the group `attention` of mechanisms that are in other packages.

    An installed one is known by its entry point; its package may have conf/attention/NAME.yaml. A
    module is known by the word attention=my_package.my_module. Without a YAML the option is a name
    alone, and its Config has the defaults. Nothing is imported.
    """
    from hydra.core.config_store import ConfigStore

    points = modules.entry_points("phasegpt.attention")
    found = {name: _shipped(name, points[name][0].value) for name in points}
    for word in words:
        group, _, value = word.partition("=")
        if group.lstrip("+") == "attention":
            found |= {name: {} for name in _MODULE.findall(value) if name not in found}
    for name, own in found.items():
        ConfigStore.instance().store(name, {"name": name, "layers": "all", **own}, "attention")


def _shipped(name: str, module: str) -> dict[str, Any]:
    """What conf/attention/NAME.yaml in the top folder of a module's package says, if it is there.

    ConfigError where it is no table of keys.
    """
    import yaml

    spec = importlib.util.find_spec(module.partition(".")[0])
    for folder in (spec and spec.submodule_search_locations) or ():
        path = Path(folder, "conf", "attention", f"{name}.yaml")
        if path.is_file():
            try:
                values = yaml.safe_load(path.read_text(encoding="utf-8"))
            except (ValueError, yaml.YAMLError) as error:
                raise ConfigError(f"{path} is no YAML ({error!s:.300}); mend it") from error
            if not isinstance(values, dict):
                raise ConfigError(f"{path} must hold keys and values; mend it")
            return values
    return {}


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


def misspelt(
    overrides: Sequence[str],
    config_name: str = "config",
    config_dir: Path | None = None,
) -> list[str]:
    """For every override whose key conf/ does not have, the nearest key that it has."""
    folders = [CONF_DIR, *([config_dir] if config_dir is not None else [])]

    def keys(node: Any, prefix: str = "") -> list[str]:
        if not isinstance(node, Mapping):
            return []
        return [k for name in node for k in (prefix + name, *keys(node[name], f"{prefix}{name}."))]

    pairs = [word.partition("=")[::2] for word in overrides]
    try:
        default = plain(_composed((), config_name, None))
        chosen = [  # groups have other keys for every option
            f"{group}={option}"
            for group, option in pairs
            if group in default
            and any(os.path.isfile(f / group / f"{option}.yaml") for f in folders)  # of any length
        ]
        known = [*keys(plain(_composed(chosen, config_name, config_dir))), "experiment"]
    except Exception:  # a file that Hydra cannot read: it says so itself
        return []
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
