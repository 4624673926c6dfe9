"""`_target_` in a configuration: the user's own callbacks, loggers, optimizers and schedules."""

import importlib
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from helpers import NOISY, SIX_STEPS, TWO_STEPS, assert_identical, command, crash_at
from pytorch_lightning.callbacks import Callback
from pytorch_lightning.loggers import Logger
from torch.optim.lr_scheduler import LRScheduler, StepLR

import phasegpt
from phasegpt.core.composition import expanded
from phasegpt.core.errors import ConfigError
from phasegpt.training.config import run_config
from phasegpt.training.lit import LitGPT
from phasegpt.training.optim import build_optimizer, build_schedule
from phasegpt.training.optimizer_config import OPTIMIZERS
from phasegpt.training.run_folder import read_metrics, read_record

HERE = __name__


class Stops(Callback):
    """Ends a run at a step."""

    def __init__(self, at: int, words: list[str] | None = None) -> None:
        self.at, self.words = at, words

    def on_train_batch_end(self, trainer: Any, *rest: Any) -> None:
        trainer.should_stop = trainer.global_step >= self.at


class Rows(Logger):
    """Writes the steps that it is given."""

    name, version = "rows", 0

    def __init__(self, path: str) -> None:
        super().__init__()
        self.path = Path(path)

    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None: ...

    def log_metrics(self, metrics: Any, step: int | None = None) -> None:
        with self.path.open("a") as file:
            file.write(f"{step}\n")


class Moded(torch.optim.SGD):
    """With modes, as the optimizers of the package schedulefree."""

    def train(self) -> None: ...

    def eval(self) -> None: ...


class NotToBeRestored(StepLR):
    def state_dict(self) -> dict[str, Any]:
        return {"self": Path("x")}


def halved(optimizer: torch.optim.Optimizer, after: int) -> LRScheduler:
    """The learning rate falls by half at a step."""
    return StepLR(optimizer, after, gamma=0.5)


def three(optimizer: torch.optim.Optimizer) -> int:
    return 3


def node(name: str, **arguments: Any) -> str:
    """A mapping as Hydra reads it on a command line."""
    words = [f"{key}: {value}" for key, value in arguments.items()]
    return "{" + ", ".join([f"_target_: {name}", *words]) + "}"


# --- callbacks and loggers -------------------------------------------------------------------


def test_callbacks_and_loggers_of_a_command_act_and_are_recorded(tmp_path, text, monkeypatch):
    words = [
        *(*SIX_STEPS, *text, f"hydra.run.dir={tmp_path / 'run'}"),
        f"+callbacks.extra=[{node(f'{HERE}.Stops', at=2, words='[a,b]')}]",
        f"+logger.extra=[{node(f'{HERE}.Rows', path=tmp_path / 'rows')}]",
    ]
    command(monkeypatch, "train", *words, "callbacks.sample_text.max_new_tokens=0")
    record = read_record(tmp_path / "run")
    assert (record["step"], record["stopped"]) == (2, "callback")
    assert record["callbacks"] == [f"{HERE}.Stops"] and record["loggers"] == [f"{HERE}.Rows"]
    extra = [{"_target_": f"{HERE}.Stops", "at": 2, "words": ["a", "b"]}]
    assert record["config"]["callbacks"]["extra"] == extra
    written = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())
    assert written["callbacks"]["extra"] == extra
    assert run_config(written).hash == record["config_hash"]
    steps = [int(row["step"]) for row in read_metrics(tmp_path / "run" / "metrics.csv")]
    assert sorted(set(map(int, (tmp_path / "rows").read_text().split()))) == steps


WRONG = {
    "callbacks.extra=[{_target_: no.such.Thing}]": r"extra\[0\]: _target_=no.such.Thing cannot be "
    r"used .*No module named 'no'",
    f"callbacks.extra=[{node(f'{HERE}.Nothing')}]": "Nothing cannot be used",
    f"callbacks.extra=[{node(f'{HERE}.Stops')}]": r"cannot be used .*missing .* argument: 'at'",
    f"callbacks.extra=[{node(f'{HERE}.Rows', path='x')}]": r"gives a .*Rows; it must give a pyt",
    f"callbacks.extra=[{node(f'{HERE}.Stops', at=1, _partial_='true')}]": "it must give a",
    "callbacks.extra=[{at: 1}]": "must be a mapping with _target_",
    "callbacks.extra=[{_target_: 'a b'}]": "must be a mapping with _target_",
    f"logger.extra=[{node(f'{HERE}.Stops', at=1)}]": r"logger.extra\[0\]: .* gives a .*Stops",
    f"optimizer._target_={HERE}.Stops": r"optimizer: _target_=.*Stops cannot be used",
    "optimizer._target_=torch.optim.RAdam | +optimizer.beta=1": "unexpected keyword .*'beta'",
    "optimizer._target_=torch.optim.LBFGS": "per-parameter options",
    "optimizer._target_=torch.optim.SparseAdam": "SparseAdam fails at its first step .*dense grad",
    "optimizer._target_=torch.optim.SGD | +optimizer._args_=[1]": "_args_ would do nothing",
    "optimizer._target_=torch.optim.Rprop | optimizer.weight_decay=0.1": "has no weight_decay",
    f"optimizer._target_={HERE}.Moded": "between which nothing here switches it",
    "optimizer=own": "optimizer._target_ is missing",
    "optimizer=sgd | +optimizer._target_=torch.optim.RAdam": "beside optimizer='sgd', whose keys",
    f"optimizer.schedule={node(f'{HERE}.halved')}": "missing .* argument: 'after'",
    f"optimizer.schedule={node(f'{HERE}.three')}": "gives a builtins.int; .*LRScheduler",
    "optimizer.schedule={_target_: torch.optim.lr_scheduler.ReduceLROnPlateau}": "a metric; a sch",
    f"optimizer.schedule={node(f'{HERE}.NotToBeRestored', step_size=1)}": "cannot be restored",
    f"optimizer.schedule={node(f'{HERE}.halved', after=1)} | optimizer.warmup_steps=7": "=7 does "
    "nothing beside a schedule of your own",
}


@pytest.mark.parametrize("words", WRONG)
def test_what_cannot_be_used_is_one_error_before_a_folder_is_made(tmp_path, text, words):
    given = [*TWO_STEPS, "optimizer.warmup_steps=0", *text, *words.split(" | ")]
    with pytest.raises(ConfigError, match=WRONG[words]) as caught:
        phasegpt.fit(phasegpt.compose(given), tmp_path / "run")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run").exists()


def test_several_processes_refuse_callbacks_of_a_configuration(tmp_path, text):
    words = [f"callbacks.extra=[{node(f'{HERE}.Stops', at=1)}]", "trainer.devices=2"]
    with pytest.raises(ConfigError, match=r"Stops\] with trainer.devices=2: the other"):
        phasegpt.fit(phasegpt.compose([*TWO_STEPS, *text, *words]), tmp_path / "run")
    assert not (tmp_path / "run").exists()


# --- optimizers and schedules ----------------------------------------------------------------


def test_a_schedule_of_ones_own_steps_and_resumes_bit_for_bit(tmp_path, text):
    words = [w for w in NOISY if "warmup" not in w] + text
    words.append(f"optimizer.schedule={node(f'{HERE}.halved', after=5)}")
    phasegpt.fit(phasegpt.compose(words), tmp_path / "whole")
    with crash_at(7):
        phasegpt.fit(phasegpt.compose(words), tmp_path / "cut")
    phasegpt.fit(phasegpt.compose([*words, "resume=true"]), tmp_path / "cut")
    assert_identical(tmp_path / "whole", tmp_path / "cut")
    rates = [row["train/lr"] for row in read_metrics(tmp_path / "cut" / "metrics.csv")]
    assert rates[:11] == pytest.approx([3e-4] * 5 + [1.5e-4] * 5 + [0.75e-4])


def test_an_own_schedule_keeps_the_factors_of_oscillators(make_model):
    values = {"lr": 1e-2, "warmup_steps": 0, "oscillator_lr_factor": 0.5}
    values["schedule"] = {"_target_": f"{HERE}.halved", "after": 1}
    config = OPTIMIZERS["adamw"].parse(values)
    optimizer = build_optimizer(make_model("kuramoto"), config)
    before = {group["lr"] for group in optimizer.param_groups}
    scheduler = build_schedule(optimizer, config, 9)
    optimizer.step()
    scheduler.step()
    assert len(before) > 2
    assert {2 * group["lr"] for group in optimizer.param_groups} == before


def test_a_command_line_that_hydra_cannot_say_is_spelt_out():
    assert expanded(["seed=1", "logger=[csv,tensorboard]"]) == [
        *("seed=1", "logger=csv", "logger.name=[csv,tensorboard]"),
    ]
    own = "optimizer._target_=a.B"
    assert expanded([own]) == expanded(["optimizer=own", own]) == ["optimizer=own", own]
    assert expanded(["logger=wandb", "optimizer=sgd"]) == ["logger=wandb", "optimizer=sgd"]


# --- what a file names is not executed --------------------------------------------------------

TRAP = """
from pathlib import Path
import torch
from pytorch_lightning.callbacks import Callback
with Path(__file__).with_name("imported").open("a") as file:
    file.write("x")
class Opt(torch.optim.SGD): ...
class Own(Callback): ...
def flat(optimizer):
    return torch.optim.lr_scheduler.ConstantLR(optimizer)
"""


@pytest.fixture(scope="module")
def trapped(tmp_path_factory, text):
    """A run of a module that is gone; the file that it would write into when imported."""
    folder = tmp_path_factory.mktemp("trap")
    (folder / "trap.py").write_text(TRAP)
    words = [
        *(
            *TWO_STEPS,
            *text,
            "optimizer._target_=trap.Opt",
            "callbacks.extra=[{_target_: trap.Own}]",
        ),
        *("optimizer.schedule={_target_: trap.flat}", "optimizer.warmup_steps=0"),
    ]
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(folder)
        phasegpt.fit(phasegpt.compose(words), folder / "run")
        del sys.modules["trap"]
        assert (folder / "imported").read_text() == "x"
        (folder / "imported").unlink()
        yield folder
    importlib.invalidate_caches()


def test_reading_a_run_imports_nothing_that_it_names(trapped, tmp_path, monkeypatch, capsys):
    run, out = trapped / "run", tmp_path / "export"
    phasegpt.load(run)
    command(monkeypatch, "evaluate", f"checkpoint={run}", "split=val")
    command(monkeypatch, "generate", f"checkpoint={run}", "max_new_tokens=2")
    command(monkeypatch, "export", f"checkpoint={run}", f"out={out}")
    phasegpt.load(out)
    assert "trap" not in sys.modules and not (trapped / "imported").exists()


def test_a_module_from_a_checkpoint_does_not_train_with_what_it_names(trapped, monkeypatch):
    point = trapped / "run" / "checkpoints" / "last.ckpt"
    lit = LitGPT.load_from_checkpoint(point, weights_only=True)
    with pytest.raises(ConfigError, match=r"made from names code .*trap\.Opt, trap\.flat"):
        lit.configure_optimizers()
    assert "trap" not in sys.modules


def test_resume_of_a_lost_module_is_one_error_and_changes_nothing(trapped, text, tmp_path):
    config = read_record(trapped / "run")["config"]
    config["optimizer"]["_target_"] = "gone.Opt"
    with pytest.raises(ConfigError, match=r"gone\.Opt cannot be used"):
        phasegpt.fit(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()
