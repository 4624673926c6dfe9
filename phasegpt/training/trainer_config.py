"""The `trainer` group: steps, intervals, device, processes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from phasegpt.core.errors import ConfigError
from phasegpt.core.sections import REQUIRED, Section, option


@dataclass(frozen=True, kw_only=True)
class TrainerConfig(Section):
    """The `trainer` group. Intervals count optimizer steps, whatever the accumulation."""

    section: ClassVar[str] = "trainer"
    max_steps: int = option(REQUIRED, "optimizer steps of the run", ge=1, le=10**12)
    accumulate_grad_batches: int = option(1, "batches in an optimizer step", ge=1, le=1_000_000)
    gradient_clip_val: float | None = option(
        1.0, "norm to which gradients are clipped; null: not at all", gt=0
    )
    skip_nonfinite: int = option(
        0, "steps in a row that are left out where a gradient is not finite; one more: collapsed",
        ge=0, le=10**6,
    )  # fmt: skip
    val_check_interval: int = option(
        REQUIRED, "optimizer steps between validations; the last step is always validated", ge=1
    )
    log_every_n_steps: int = option(10, "optimizer steps between rows of metrics.csv", ge=1)
    accelerator: Literal["auto", "cpu", "cuda"] = option("auto", "auto: a GPU where there is one")
    precision: Literal["auto", "32-true", "bf16-mixed", "64-true"] = option(
        "auto", "auto: bf16-mixed on a GPU, else 32-true"
    )
    tf32: bool = option(
        False, "true: float32 products on a GPU in TF32; in bf16-mixed: of first phases"
    )
    deterministic: bool = option(False, "true: bit-identical on a GPU too, and slower")
    devices: int = option(1, "processes on a machine, data.batch_size each", ge=1, le=1024)
    num_nodes: int = option(1, "machines, on each of which torchrun or srun starts", ge=1, le=1024)
    strategy: Literal["auto", "ddp", "fsdp"] = option(
        "auto", "several processes: ddp has the model whole in each, fsdp split; auto: ddp"
    )
    timeout_s: int = option(
        1800, "several processes: seconds that one waits for another before it fails", ge=1,
        le=10**6,
    )  # fmt: skip
    profiler: Literal["simple", "advanced", "pytorch"] | None = option(
        None, "Lightning's profiler, into fit-profile.txt of the run folder; null: none"
    )
    fast_dev_run: int | bool = option(
        0, "smoke run: optimizer steps, and batches of each validation; true: 1; 0: off",
        form="true, false, or a whole number >= 0",
    )  # fmt: skip
    limit_val_batches: int | None = option(
        None, "smoke run: batches of each validation; null: the whole split", ge=1
    )
    overfit_batches: int | None = option(
        None, "smoke run: train on the first so many batches, validate on as many; null: off", ge=1
    )

    def __post_init__(self) -> None:
        """Also take fast_dev_run's true as 1 step."""
        super().__post_init__()
        if self.fast_dev_run < 0:
            raise ConfigError(
                f"trainer.fast_dev_run={self.fast_dev_run} must be true, false, or a whole number "
                f">= 0"
            )
        object.__setattr__(self, "fast_dev_run", int(self.fast_dev_run))

    @property
    def processes(self) -> int:
        """All of them, on all machines."""
        return self.devices * self.num_nodes

    @property
    def steps(self) -> int:
        """Optimizer steps that are made."""
        return min(self.max_steps, self.fast_dev_run or self.max_steps)

    @property
    def val_batches(self) -> int | None:
        """Batches of each validation; None: all."""
        return self.fast_dev_run or self.overfit_batches or self.limit_val_batches

    @property
    def smoke(self) -> bool:
        """Whether this only tries that a run works: its results count in no table."""
        return self.val_batches is not None

    def check_idle(self) -> None:
        """See Section.check_idle."""
        self.refuse_idle(self.accelerator != "cpu", "with trainer.accelerator=cpu", "tf32")
        limits = ("overfit_batches", "limit_val_batches")
        self.refuse_idle(not self.fast_dev_run, "fast_dev_run", *limits)
        self.refuse_idle(self.overfit_batches is None, "overfit_batches", "limit_val_batches")
