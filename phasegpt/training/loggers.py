"""Where metrics go beside metrics.csv: Weights & Biases, TensorBoard.

Both show the same scalars under the optimizer step, histograms, pictures and the closing
sample. Nothing here needs an account or a network unless `logger=wandb` is online.
"""

from __future__ import annotations

import importlib.util
import secrets
import shutil
from collections.abc import Callable, Mapping
from functools import wraps
from pathlib import Path
from typing import Any

import numpy as np
from pytorch_lightning.loggers import TensorBoardLogger, WandbLogger

from phasegpt.core import figures
from phasegpt.core.console import tell
from phasegpt.core.errors import ConfigError, Interrupted
from phasegpt.core.secrets import masked_arguments
from phasegpt.training.config import LoggerConfig, RunConfig
from phasegpt.training.metrics_csv import AtSteps
from phasegpt.training.run_folder import RunFolder
from phasegpt.training.wandb_dashboard import STEP, SUMMARY


def _optional(method: Callable[..., None]) -> Callable[..., None]:
    """A method of a logger whose failure is said once and stops no training.

    What it would have shown is in metrics.csv.
    """

    @wraps(method)
    def attempt(self: Any, *args: Any, **kwargs: Any) -> None:
        if getattr(self, "_failed", False):
            return
        try:
            method(self, *args, **kwargs)
        except (Interrupted, ConfigError):
            raise
        except Exception as error:
            self._failed = True
            reason = (str(error).splitlines() or [""])[0]
            tell(
                f"warning: {type(self).__name__} failed and is off for the rest of this run "
                f"({type(error).__name__}: {reason}); metrics.csv goes on"
            )

    return attempt


class Wandb(AtSteps, WandbLogger):
    """One W&B run per run folder: `wandb_id` in run.json, so that a resumed run goes on in it.

    W&B's own step is the optimizer step. Rows that a resumed run repeats are dropped online, and
    offline they lie in the second of two folders of the same run. W&B writes late: what a kill -9
    leaves unwritten there is in metrics.csv.
    """

    def __init__(self, run: RunConfig, folder: RunFolder) -> None:
        """Open nothing yet; draw an id unless the run has one."""
        settings = run.logger
        if "wandb_id" not in folder.record:
            folder.update(wandb_id=secrets.token_hex(4), wandb_group=settings.group)
        group = folder.record.get("wandb_group", settings.group)
        super().__init__(
            project=settings.project,
            entity=settings.entity,
            group=group,
            name=f"{run.name}-{folder.path.name}" if group else run.name,
            id=folder.record["wandb_id"],
            resume="allow",
            mode="offline" if settings.offline else None,
            save_dir=folder.path,
            config=run.to_dict(),
        )
        self._wandb_init.pop("anonymous", None)  # Lightning passes it, W&B warns of it
        self._defined = False

    @property
    def experiment(self) -> Any:
        """The wandb run, opened at first use."""
        try:
            with masked_arguments():  # W&B keeps the command line
                run = super().experiment
        except Interrupted:
            raise
        except Exception as error:
            reason = (str(error).splitlines() or [""])[0]
            raise ConfigError(
                f"logger=wandb cannot start ({type(error).__name__}: {reason}); log in, or add "
                f"logger.offline=true, which needs no account and no network"
            ) from error
        if not self._defined and hasattr(run, "define_metric"):
            self._defined = True
            for name, summary in SUMMARY.items():
                run.define_metric(name, step_metric=STEP, summary=summary)
        return run

    def log_hyperparams(self, params: Any) -> None:
        """Nothing: the run was opened with its configuration."""

    @_optional
    def log_metrics(self, metrics: Mapping[str, Any], step: int | None = None) -> None:
        """Add metrics to the row of `step`."""
        step = self.step_of(step)
        self.experiment.log({**metrics, STEP: step}, step=step)

    @_optional
    def histogram(self, name: str, counts: np.ndarray, edges: np.ndarray, step: int) -> None:
        """A histogram of counts between edges."""
        import wandb

        self.log_metrics({name: wandb.Histogram(np_histogram=(counts, edges))}, step)

    @_optional
    def picture(self, name: str, pixels: np.ndarray, step: int) -> None:
        """An image, [height, width, 3] bytes."""
        import wandb

        self.log_metrics({name: wandb.Image(pixels)}, step)

    @_optional
    def finalize(self, status: str) -> None:
        """See WandbLogger."""
        super().finalize(status)

    @_optional
    def sample(self, prompt: str, text: str, step: int) -> None:
        """A table with one generated text, beside the metrics of the last step."""
        import wandb

        table = wandb.Table(columns=["step", "prompt", "text"], data=[[step, prompt, text]])
        self.log_metrics({"samples": table}, step)


class TensorBoard(AtSteps, TensorBoardLogger):
    """Event files in the run's folder `tensorboard`."""

    def __init__(self, folder: RunFolder) -> None:
        """Write into `folder`."""
        super().__init__(folder.path, name="", version="tensorboard")

    @_optional
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """See TensorBoardLogger."""
        super().log_metrics(metrics, self.step_of(step))

    @_optional
    def save(self) -> None:
        """See TensorBoardLogger."""
        super().save()

    @_optional
    def finalize(self, status: str) -> None:
        """See TensorBoardLogger."""
        super().finalize(status)

    @_optional
    def cut(self, step: int) -> None:
        """Hide what lies past `step`: it will be written again."""
        from tensorboard.compat.proto.event_pb2 import Event, SessionLog

        restart = SessionLog(status=SessionLog.START)
        self.experiment._get_file_writer().add_event(Event(step=step + 1, session_log=restart))

    @_optional
    def histogram(self, name: str, counts: np.ndarray, edges: np.ndarray, step: int) -> None:
        """A histogram of counts between edges."""
        middle = (edges[1:] + edges[:-1]) / 2
        self.experiment.add_histogram_raw(
            name,
            min=edges[0],
            max=edges[-1],
            num=counts.sum(),
            sum=(counts * middle).sum(),
            sum_squares=(counts * middle**2).sum(),
            bucket_limits=edges[1:].tolist(),
            bucket_counts=counts.tolist(),
            global_step=step,
        )

    @_optional
    def picture(self, name: str, pixels: np.ndarray, step: int) -> None:
        """An image, [height, width, 3] bytes."""
        self.experiment.add_image(name, pixels, step, dataformats="HWC")

    @_optional
    def sample(self, prompt: str, text: str, step: int) -> None:
        """One generated text, its line breaks kept."""
        self.experiment.add_text("samples", f"    {prompt}{text}".replace("\n", "\n    "), step)
        self.experiment.flush()


def check_packages(logger: LoggerConfig) -> None:
    """ConfigError where the package of a logger is not installed."""
    for name in logger.besides:
        if importlib.util.find_spec(name) is None:
            raise ConfigError(
                f"logger={name} needs the package {name}: pip install {name}, or use logger=csv"
            )


def extra_loggers(run: RunConfig, folder: RunFolder) -> list[Wandb | TensorBoard]:
    """The loggers beside metrics.csv; their run goes on when ours does."""
    return [
        Wandb(run, folder) if name == "wandb" else TensorBoard(folder)
        for name in run.logger.besides
    ]


def showing(loggers: list[Any]) -> list[Wandb | TensorBoard]:
    """Those of the loggers that take pictures."""
    return [logger for logger in loggers if isinstance(logger, Wandb | TensorBoard)]


def finish(folder: RunFolder) -> None:
    """Hand run.json to the open W&B run, if there is one, and close it.

    The next job of a sweep then opens its own.
    """
    if "wandb_id" not in folder.record:
        return
    import wandb

    if wandb.run is None:
        return
    if wandb.run.disabled:  # WANDB_MODE=disabled: there is no folder to copy into
        wandb.finish()
        return
    ours = Path(wandb.run.dir) / "phasegpt"
    ours.mkdir(exist_ok=True)
    for name in ("config.yaml", "run.json"):
        if (folder.path / name).is_file():
            shutil.copy(folder.path / name, ours)
    wandb.run.save(str(ours / "*"), base_path=wandb.run.dir, policy="now")
    wandb.finish(exit_code=0 if folder.record.get("status") == "ok" else 1)


@figures.house()
def heat_map(values: np.ndarray, rows: list[str], title: str, xlabel: str) -> np.ndarray:
    """A picture of values in [0, 1] with one named row each, [height, width, 3] bytes."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    height, width = values.shape
    size = (min(max(4.0, 0.35 * width), 12) + 2, min(max(1.6, 0.28 * height), 16) + 1)
    figure = figures.new(size[1], size[0])
    figure.set_dpi(100)
    canvas = FigureCanvasAgg(figure)
    axes = figure.subplots()
    image = axes.imshow(values, vmin=0, vmax=1, aspect="auto", cmap="viridis")
    named = range(0, height, -(-height // 60))  # as many names as there is room for
    axes.set(title=title, xlabel=xlabel, xticks=range(0, width, -(-width // 30)), yticks=named)
    axes.set_yticklabels([rows[y] for y in named])
    if values.size <= 200:
        for (y, x), value in np.ndenumerate(values):
            color = "black" if value > 0.6 else "white"
            axes.text(x, y, f"{value:.2f}", ha="center", va="center", color=color, fontsize=7)
    figure.colorbar(image)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()
