"""Write docs/configuration.md, and the comment beside every key of conf/, from the sections.

A section of the code (phasegpt.core.sections.Section) is the one place where an option's default,
bounds and meaning are written. Run `python scripts/write_reference.py` after changing one; a test
compares the files with it.
"""

import re
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any, get_args, get_origin

import yaml

from phasegpt.attention import layer_class, names
from phasegpt.core.sections import Section, allowed, hints_of, shown
from phasegpt.data.config import TASKS, DataConfig, DataSection, task_class
from phasegpt.evaluate import EvaluateConfig
from phasegpt.export import ExportConfig
from phasegpt.generate import GenerateConfig
from phasegpt.interpret import InterpretConfig
from phasegpt.model.config import AttentionSection, ModelSection
from phasegpt.samplers.options import SAMPLERS
from phasegpt.training.callback_config import CallbacksConfig
from phasegpt.training.config import LoggerConfig, RegularizerConfig, RunConfig
from phasegpt.training.optimizer_config import OPTIMIZERS, OptimizerConfig
from phasegpt.training.trainer_config import TrainerConfig

ROOT = Path(__file__).resolve().parents[1]
CONF, PAGE = ROOT / "conf", ROOT / "docs" / "configuration.md"

#: Groups that have one section, and the file of conf/ that holds its defaults.
GROUPS: dict[str, tuple[type[Section], str]] = {
    "model": (ModelSection, "model/gpt2.yaml"),
    "data": (DataConfig, "data/synthetic.yaml"),
    "regularizer": (RegularizerConfig, "regularizer/none.yaml"),
    "trainer": (TrainerConfig, "trainer/auto.yaml"),
    "logger": (LoggerConfig, "logger/csv.yaml"),
    "callbacks": (CallbacksConfig, "callbacks/default.yaml"),
}
#: The commands beside train.
COMMANDS: dict[str, type[Section]] = {
    "evaluate": EvaluateConfig,
    "generate": GenerateConfig,
    "interpret": InterpretConfig,
    "export": ExportConfig,
}


def defaults() -> dict[str, list[type[Section]]]:
    """The files of conf/ that hold the defaults, with the sections whose keys they have."""
    found: dict[str, list[type[Section]]] = {"config.yaml": [RunConfig]}
    found |= {file: [section] for section, file in GROUPS.values()}
    found |= {f"attention/{name}.yaml": attention(name) for name in names()}
    found |= {f"data/{name}.yaml": [data(name)] for name in TASKS}
    found |= {f"optimizer/{name}.yaml": [section] for name, section in OPTIMIZERS.items()}
    found |= {f"sampler/{name}.yaml": [section] for name, section in SAMPLERS.items()}
    return found | {f"{name}.yaml": [section] for name, section in COMMANDS.items()}


def data(name: str) -> type[DataSection]:
    """The section of data=NAME; a task's smaller version is called NAME_small."""
    task = name.removesuffix("_small")
    return task_class(task).Config if task in TASKS else DataConfig


def attention(name: str) -> list[type[Section]]:
    """The sections of attention=NAME; a hybrid has its partner's keys too."""
    own = layer_class(name).Config
    partner = getattr(own(), "partner", None)
    return [AttentionSection, own, *([layer_class(partner).Config] if partner else [])]


def options(section: type[Section]) -> list[str]:
    """Names of a section's options; sections inside it are left out."""
    return [f.name for f in fields(section) if "meaning" in f.metadata and not _inner(section, f)]


def key_of(section: type[Section], name: str) -> str:
    """The key of an option in its group."""
    return section.full_name(name).rpartition(".")[2]


def _inner(section: type[Section], field: Any) -> bool:
    hint = hints_of(section)[field.name]
    return isinstance(hint, type) and issubclass(hint, Section)


def meaning(section: type[Section], name: str) -> str:
    """An option's meaning, with its unit."""
    return section.__dataclass_fields__[name].metadata["meaning"]


def comment(section: type[Section], name: str) -> str:
    """What stands beside the key in conf/: its meaning and, of words, which are allowed."""
    words = []
    for hint in (hints_of(section)[name], *get_args(hints_of(section)[name])):
        if str(get_origin(hint)) == "typing.Literal" and len(get_args(hint)) > 1:
            words = [shown(a) if isinstance(a, bool) else str(a) for a in get_args(hint)]
    form = section.__dataclass_fields__[name].metadata["form"]
    choice = form or " | ".join(words)
    return meaning(section, name) + (f" ({choice})" if choice else "")


def commented(text: str, sections: list[type[Section]]) -> str:
    """A file of conf/ with a comment beside every key of `sections`."""
    lines, parent = [], None
    for line in text.splitlines():
        found = re.match(r"( *)(\w+):( |$)", line)
        if found is None or line.startswith("hydra:"):
            lines.append(line)
            if line.startswith("hydra:"):
                break
            continue
        indent, key, _ = found.groups()
        here = sections
        if indent:
            here = [hints_of(s)[parent] for s in sections if parent in hints_of(s)]
        else:
            parent = key
        owned = ((s, name) for s in here for name in options(s) if key_of(s, name) == key)
        if (owner := next(owned, None)) is not None:
            code = re.sub(r"\s+# .*$", "", line)
            line = f"{code:<26} # {comment(*owner)}"
        lines.append(line)
    rest = text.splitlines()[len(lines) :]
    return "\n".join([*lines, *rest]) + "\n"


def files() -> dict[Path, str]:
    """Every file that this script writes, with its text."""
    found = {PAGE: page()}
    for group, (section, _) in GROUPS.items():
        for path in sorted((CONF / group).glob("*.yaml")):
            own = data(path.stem) if group == "data" else section
            found[path] = commented(path.read_text(), [own])
    for path in sorted((CONF / "attention").glob("*.yaml")):
        name = yaml.safe_load(path.read_text())["name"]
        found[path] = commented(path.read_text(), attention(name))
    for group, choices in {"sampler": SAMPLERS, "optimizer": OPTIMIZERS}.items():
        for name, section in choices.items():
            path = CONF / group / f"{name}.yaml"
            found[path] = commented(path.read_text(), [section])
    for name, section in {"config": RunConfig, **COMMANDS}.items():
        path = CONF / f"{name}.yaml"
        found[path] = commented(path.read_text(), [section])
    return found


def table(section: type[Section], given: dict[str, Any], prefix: str | None = None) -> list[str]:
    """One row an option; `given` are the values of conf/, for options without a default."""
    rows = ["| option | default | allowed | meaning |", "| --- | --- | --- | --- |"]
    for name in options(section):
        default = section.__dataclass_fields__[name].default
        value = given.get(name) if default is MISSING else default
        full = section.full_name(name) if prefix is None else prefix + name
        cells = [f"`{full}`", f"`{shown(value)}`", allowed(section, name), meaning(section, name)]
        rows.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return [*rows, ""]


def page() -> str:
    """The text of docs/configuration.md."""
    lines = [
        "# Configuration",
        "",
        "<!-- Written by scripts/write_reference.py; change the sections of the code instead. -->",
        "",
        "Every option of every command: name, default, allowed values, meaning. Set one as",
        "`name=value`, and a whole group as `group=option`, where an option of a group is a file",
        "`conf/GROUP/OPTION.yaml`, or of a folder of your own like it: `--config-dir FOLDER`. A",
        "mechanism of another package is an option of `attention` too: [a mechanism of your",
        "own](mechanism_of_your_own.md). Where a file gives another default than this page, as",
        "`model=nano` does for the sizes, the file counts. Without words `train` takes",
        "`attention=kuramoto` in all layers, `model=nano`, `data=synthetic`, `optimizer=adamw` and",
        "`trainer=auto`. Numbers must be 0 or from 1.2e-38 to 3.4e38 in size (float32), whole",
        "numbers must fit in 64 bits, beside what the page says. An option that was set and can do",
        "nothing beside the others is an error.",
        "",
        "## python -m phasegpt.train",
        "",
        *table(RunConfig, _read("config.yaml")),
        "### attention",
        "",
        "Of every mechanism:",
        "",
        *table(AttentionSection, _read("attention/kuramoto.yaml")),
    ]
    for name in names():
        own = layer_class(name).Config
        said = own.__doc__.split("\n\nOptions:")[0] if own.__doc__ else ""
        lines += [f"#### attention={name}", "", " ".join(said.split()), ""]
        lines += table(own, {}) if options(own) else []
    lines += ["### optimizer", "", *_about(OptimizerConfig)]
    for name, section in OPTIMIZERS.items():
        given = _read(f"optimizer/{name}.yaml")
        lines += [f"#### optimizer={name}", "", *_about(section), *table(section, given)]
    for group, (section, file) in GROUPS.items():
        lines += [f"### {group}", "", *_about(section)]
        given = _read(file)
        if options(section):
            lines += table(section, given)
        for f in fields(section):
            if _inner(section, f):
                inner = hints_of(section)[f.name]
                lines += [*_about(inner), *table(inner, given[f.name])]
        for name in TASKS if group == "data" else ():
            lines += [f"#### data={name}", "", *_about(data(name))]
            lines += table(data(name), _read(f"data/{name}.yaml"))
    for name, section in COMMANDS.items():
        lines += [f"## python -m phasegpt.{name}", "", *table(section, {})]
        if name == "generate":
            for sampler, own in SAMPLERS.items():
                lines += [f"### sampler={sampler}", "", *table(own, {})]
    return "\n".join(lines).rstrip() + "\n"


def _about(section: type[Section]) -> list[str]:
    said = (section.__doc__ or "").split("\n\nOptions:")[0].split("\n\n")[0]
    return [" ".join(said.split()), ""]


def _read(file: str) -> dict[str, Any]:
    return yaml.safe_load((CONF / file).read_text())


if __name__ == "__main__":
    for path, text in files().items():
        path.write_text(text)
        print(path.relative_to(ROOT))
