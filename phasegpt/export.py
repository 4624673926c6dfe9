"""`python -m phasegpt.export`: write a trained model as a folder to share, for transformers too."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import hydra

from phasegpt.core.composition import CONF_DIR, plain
from phasegpt.core.errors import ConfigError
from phasegpt.core.sections import Section, option


@dataclass(frozen=True, kw_only=True)
class ExportConfig(Section):
    """conf/export.yaml."""

    checkpoint: str | None = option(None, "a run folder, a .ckpt file or an exported folder")
    which: Literal["best", "last"] = option("best", "of a run folder")
    imports: str | tuple[str, ...] = option(
        (),
        "modules of your own to import first: what the checkpoint's attention is in",
        form="my_package.my_module, or a list",
    )
    out: str | None = option(None, "the new folder", form="a folder that is empty or not there")
    format: Literal["hf", "phasegpt", "torch"] = option(
        "hf",
        "hf: transformers and phasegpt.load read it; phasegpt: the latter alone; torch: a program "
        "of torch.export, for any batch and length",
    )
    license: str = option("mit", "of the model, in its card, as the hub spells it")
    push_to_hub: str | None = option(
        None, "upload it under this name, to a private repository if new; null: do not",
        form="OWNER/NAME, or null",
    )  # fmt: skip
    debug: bool = option(False, "true: show tracebacks")

    def __post_init__(self) -> None:
        """Also refuse what would do nothing."""
        super().__post_init__()
        self.refuse_idle(self.format == "hf", "format", "license")


@hydra.main(version_base="1.3", config_path=str(CONF_DIR), config_name="export")
def main(cfg: Any) -> None:
    """Command line."""
    from phasegpt.cli import guarded
    from phasegpt.core.console import show

    def command() -> None:
        show("\n".join(export(ExportConfig.parse(plain(cfg)))))

    guarded(command, debug=cfg.get("debug") is True)


def export(settings: ExportConfig) -> list[str]:
    """Write settings.out, and upload it if asked; returns what to tell the user.

    Everything is checked before anything is written. Raises CheckpointError, ConfigError,
    DataError, OutputError.
    """
    import re

    from phasegpt.cli import chosen_checkpoint
    from phasegpt.core.files import expand

    target = chosen_checkpoint(settings.checkpoint, settings.imports)
    if not settings.out:
        raise ConfigError("out is not set; give out=FOLDER, a folder that is empty or not there")
    if not re.fullmatch(r"[a-z0-9][a-z0-9.-]*", settings.license):
        raise ConfigError(
            f"license={settings.license!r:.100} must be a licence as the hub spells it, such as "
            f"mit, apache-2.0 or other"
        )
    from phasegpt.model import exported, hf_folder, loading

    folder = expand(settings.out)
    exported.check_folder(folder)
    if settings.push_to_hub is not None:
        hf_folder.check_name(settings.push_to_hub)
    loaded = loading.load_run(target, settings.which)
    if settings.format == "hf":
        files = hf_folder.hf_contents(loaded, licence=settings.license)
    elif settings.format == "torch":
        from phasegpt.model.program import program_contents

        files = program_contents(loaded)
    else:
        files = exported.contents(loaded)
    exported.write_folder(folder, files)
    told = [f"written to {folder}: {', '.join(sorted(files))}"]
    if settings.push_to_hub is not None:
        told.append(f"uploaded to {hf_folder.push(folder, settings.push_to_hub)}")
    return told


if __name__ == "__main__":
    from phasegpt.cli import launch

    launch(main, "checkpoint", "out", "license", "push_to_hub", config_name="export")
