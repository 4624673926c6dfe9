"""`python -m phasegpt.train`: train a model as conf/ describes it."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import hydra

from phasegpt.core.composition import CONF_DIR
from phasegpt.core.errors import ConfigError
from phasegpt.training import ranks


@hydra.main(version_base="1.3", config_path=str(CONF_DIR), config_name="config")
def main(cfg: Any) -> Any:
    """Command line."""
    from phasegpt.cli import guarded
    from phasegpt.train import train_from_hydra

    return guarded(lambda: train_from_hydra(cfg), debug=cfg.get("debug") is True)


def train_from_hydra(cfg: Any) -> float | None:
    """Train in Hydra's run folder, or go on with an earlier run; returns the best val/ppl."""
    from hydra.core.hydra_config import HydraConfig
    from hydra.types import RunMode

    from phasegpt.training.config import run_config

    settings = HydraConfig.get()
    run_dir = Path(settings.runtime.output_dir)
    given = any(o.startswith("hydra.run.dir=") for o in settings.overrides.hydra)
    try:
        if "logger" in cfg and "logger" not in settings.runtime.choices:
            raise ConfigError(
                "logger is a list in a defaults list, of which Hydra would keep the last alone; "
                "write logger: {name: [wandb, tensorboard]} there, or logger=[wandb,tensorboard] "
                "on the command line"
            )
        sweep = settings.runtime.choices.get("sweep")
        if sweep and settings.mode != RunMode.MULTIRUN:
            raise ConfigError(f"+sweep={sweep} lists the jobs of a multirun; add -m to start them")
        run = ranks.placed(run_config(cfg))
        from phasegpt.training.resume import choose_folder
        from phasegpt.training.run import fit  # torch, once the values are sound

        if settings.mode == RunMode.MULTIRUN:
            from phasegpt.training.sweeps import train_job

            own = settings.launcher._target_.endswith(".SlurmLauncher")
            place, number = Path(settings.sweep.dir), settings.job.num
            record = train_job(run, run_dir, place, number, sees_all=not own)
        elif ranks.follows():  # the first process says where
            record = fit(run, run_dir)
        else:
            record = fit(run, choose_folder(run, run_dir, given=given))
    finally:
        if not ranks.follows() and run_dir.is_dir() and not any(run_dir.iterdir()):
            run_dir.rmdir()  # Hydra made it; another folder was used, or nothing was
            if not given and not any(run_dir.parent.iterdir()):
                run_dir.parent.rmdir()
    return (record.get("best") or {}).get("val/ppl")


if __name__ == "__main__":
    from phasegpt.cli import launch
    from phasegpt.training.sweeps import Plan

    if ranks.follows():
        sys.argv.append("hydra.run.dir=.")  # where Hydra would make a folder
    places = ("resume", "init_from", "hydra.run.dir", "data.cache_dir")
    launch(main, "data.path", paths=places, config_name="config", after=Plan.finish)
