"""CollapseGuard: what it calls a collapse, and stop, rollback and report."""

import copy
import functools
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import NOISY, assert_identical, crash_at

import phasegpt
from phasegpt.core.composition import CONF_DIR
from phasegpt.model import checkpoint
from phasegpt.training.callback_config import CollapseGuardConfig
from phasegpt.training.collapse_guard import CollapseGuard
from phasegpt.training.lit import LitGPT
from phasegpt.training.run import fit
from phasegpt.training.run_folder import read_metrics, read_record

GUARD = "callbacks.collapse_guard"
CLUSTERED = ["attention.theta_init=gpt2", "regularizer=none"]  # R above 0.99 throughout
pytestmark = pytest.mark.filterwarnings("ignore:collapse guard")


@pytest.fixture
def run(text: list[str], tmp_path: Path) -> functools.partial:
    """run("seed=1", ..., folder=path): run.json after training the tiny run."""
    return functools.partial(_run, text, tmp_path)


def _run(text: list[str], default: Path, *extra: str, folder: Path | None = None) -> dict[str, Any]:
    return fit(phasegpt.compose([*NOISY, *text, *extra]), folder or default)


def guard(**values: Any) -> list[str]:
    return [f"{GUARD}.{name}={value}" for name, value in values.items()]


def coupling(folder: Path, which: str = "last.ckpt") -> float:
    """Mean K of the tiny run's phase layer in a checkpoint."""
    state = checkpoint.read(folder / "checkpoints" / which)["state_dict"]
    return state["model.transformer.h.1.attn.oscillators.coupling"].mean().item()


def logged(folder: Path, name: str) -> list[float]:
    return [row[name] for row in read_metrics(folder / "metrics.csv") if name in row]


# --- what is a collapse ----------------------------------------------------------------------


class FakeSaver:
    best = {"val/loss": 2.0}  # noqa: RUF012


def judge(*validations: tuple[float, dict[int, float]], **limits: Any) -> list[bool]:
    config = CollapseGuardConfig(action="report", R_low=0.2, R_high=0.8, **limits)
    watch = CollapseGuard(config, None, FakeSaver())  # type: ignore[arg-type]
    return [watch._collapse(loss, R) is not None for loss, R in validations]


def test_a_loss_above_its_factor_times_the_best_is_a_collapse_at_once() -> None:
    fine = {0: 0.5}
    assert judge((2.9, fine), (3.1, fine), (2.0, fine)) == [False, True, False]
    assert judge((3.1, fine), loss_factor=2.0) == [False]


def test_R_beyond_a_limit_for_patience_validations_is_a_collapse() -> None:
    high, low, fine = (2.0, {0: 0.5, 3: 0.9}), (2.0, {0: 0.1}), (2.0, {0: 0.2, 1: 0.8})
    assert judge(high, high, high, patience=2) == [False, True, True]
    assert judge(high, low, patience=2) == [False, True]
    assert judge(high, fine, high, high, patience=2) == [False, False, False, True]
    assert judge((2.0, {}), (2.0, {}), patience=1) == [False, False]  # no phase layer


@pytest.mark.parametrize(("R", "factor"), [(0.9, 0.25), (0.1, 4.0)])
def test_K_falls_when_R_is_too_high_and_rises_when_it_is_too_low(R: float, factor: float) -> None:
    config = CollapseGuardConfig(R_low=0.2, R_high=0.8, patience=1, coupling_factor=0.25)
    watch = CollapseGuard(config, None, FakeSaver())  # type: ignore[arg-type]
    text, found = watch._collapse(2.0, {4: R})
    assert found == factor
    assert f"R of layer 4 is {R:.3f}" in text


# --- actions ---------------------------------------------------------------------------------


def test_report_warns_logs_and_changes_nothing_else(run, tmp_path) -> None:
    off, on = tmp_path / "off", tmp_path / "on"
    assert "guard" not in run(*CLUSTERED, folder=off)
    with pytest.warns(UserWarning, match=r"step 8: R of layer 1 is 0.99\d, above 0.95") as caught:
        record = run(*CLUSTERED, *guard(action="report", patience=2), folder=on)
    assert len([w for w in caught if "collapse guard" in str(w.message)]) == 2
    assert record["stopped"] == "max_steps" and len(record["guard"]) == 2
    assert logged(on, "guard/collapsed") == [0, 1, 1]
    assert logged(on, "guard/in_a_row") == [1, 2, 3]
    assert all(R > 0.95 for R in logged(on, "phase/val/R/layer1"))
    assert logged(on, "train/loss") == logged(off, "train/loss")
    assert logged(on, "val/loss") == logged(off, "val/loss")


def test_the_R_that_is_judged_is_the_mean_over_scored_tokens(run, tmp_path) -> None:
    from phasegpt.data.corpus import prepare
    from phasegpt.data.windows import EvalWindows
    from phasegpt.training.config import RunConfig

    record = run(*guard(action="report"))
    model = phasegpt.load(tmp_path, which="last")
    corpus = prepare(RunConfig.parse(record["config"]).data)
    R = []
    for window in EvalWindows(corpus.split("val"), context=16, stride=16):
        with torch.no_grad():
            phase = model(window["idx"].unsqueeze(0), return_phase=True).phase[1]
        R.append(phase.R[0, window["targets"] >= 0])
    assert logged(tmp_path, "phase/val/R/layer1")[-1] == pytest.approx(
        torch.cat(R).mean().item(), abs=1e-6
    )


def test_stop_ends_the_run_and_says_why(run, tmp_path) -> None:
    record = run(*CLUSTERED, *guard(action="stop", patience=2))
    assert (record["status"], record["stopped"], record["step"]) == ("ok", "collapse_guard", 8)
    (event,) = record["guard"]
    assert event.startswith("step 8: R of layer 1 is 0.99") and event.endswith("; stopped")
    assert checkpoint.read(tmp_path / "checkpoints" / "last.ckpt")["global_step"] == 8


def test_a_run_that_the_guard_stopped_stays_stopped_when_resumed(run, tmp_path, monkeypatch):
    import phasegpt.training.run

    def dies(path: Path) -> None:
        raise RuntimeError("crash")

    stop = [*CLUSTERED, *guard(action="stop", patience=2)]
    with monkeypatch.context() as patch:
        patch.setattr(phasegpt.training.run, "_final", dies)
        with pytest.raises(RuntimeError, match="crash"):
            run(*stop)
    assert read_record(tmp_path)["status"] == "failed"
    record = run(*stop, "resume=true")
    assert (record["status"], record["stopped"], record["step"]) == ("ok", "collapse_guard", 8)
    assert len(record["guard"]) == 1


FIXED = ["attention.learn_coupling=false", "attention.coupling=2"]


def test_rollbacks_lower_K_each_time_and_a_collapse_after_the_last_stops(run, tmp_path) -> None:
    limits = guard(action="rollback", patience=1, max_rollbacks=1, coupling_factor=0.25)
    record = run(*CLUSTERED, *FIXED, *limits)
    assert (record["stopped"], record["step"]) == ("collapse_guard", 8)
    first, second = record["guard"]
    assert first.startswith("step 4") and first.endswith("the best checkpoint, K times 0.25")
    assert second.startswith("step 8") and second.endswith("stopped after 1 rollbacks")
    assert logged(tmp_path, "guard/rollbacks") == [0, 1]
    assert set(logged(tmp_path, "guard/in_a_row")) == {1}  # that which the guard acted upon
    assert coupling(tmp_path) == 0.5


def test_a_second_rollback_to_the_same_checkpoint_lowers_K_further(run, tmp_path) -> None:
    # With beta = 0 the phases reach no logit: no validation improves on the first one.
    still = ["attention.beta=0", "optimizer.lr=1e-12", *CLUSTERED, *FIXED]
    run(*still, *guard(action="rollback", patience=1))
    payload = checkpoint.read(tmp_path / "checkpoints" / "last.ckpt")
    assert payload["callbacks"]["CollapseGuard"]["rollbacks"] == [[4, 0.5], [4, 0.5]]
    assert coupling(tmp_path) == 2 * 0.5**2  # the third validation is the run's last


def test_schedule_free_keeps_the_change_of_K(run, tmp_path) -> None:
    still = ["attention.beta=0", "optimizer.lr=1e-9", "optimizer.weight_decay=0", *CLUSTERED]
    limits = guard(action="rollback", patience=1, coupling_factor=0.25, max_rollbacks=1)
    run(*still, "optimizer=schedule_free", *limits, "attention.coupling=2")
    assert coupling(tmp_path) == pytest.approx(2 * 0.25, rel=1e-3)


OPTIMIZERS = sorted(path.stem for path in (CONF_DIR / "optimizer").glob("*.yaml"))


@pytest.mark.parametrize("chosen", OPTIMIZERS)
def test_a_rollback_restores_the_best_weights_and_moments_alone(
    run, tmp_path, monkeypatch, chosen
) -> None:
    real, found = LitGPT.training_step, {}

    def training_step(self: LitGPT, batch: Any, batch_idx: int) -> Any:
        if batch_idx == 7:  # weights turn bad after the good validation at step 4
            with torch.no_grad():
                self.model.lm_head.weight.mul_(100)
        if batch_idx == 8:
            found["best"] = checkpoint.read(tmp_path / "checkpoints" / "best.ckpt")
            found["optimizer"] = copy.deepcopy(self.trainer.optimizers[0].state_dict())
            found["step"] = self.global_step
        return real(self, batch, batch_idx)

    def look(self: CollapseGuard, trainer: Any, module: Any, batch: Any, batch_idx: int) -> None:
        real_start(self, trainer, module, batch, batch_idx)
        if batch_idx == 8:
            found["weights"] = {k: v.clone() for k, v in module.state_dict().items()}

    real_start = CollapseGuard.on_train_batch_start
    monkeypatch.setattr(CollapseGuard, "on_train_batch_start", look)
    monkeypatch.setattr(LitGPT, "training_step", training_step)
    words = [f"optimizer={chosen}"]
    if chosen == "own":
        words = ["optimizer._target_=torch.optim.RAdam"]
    record = run("regularizer=none", *FIXED, *guard(action="rollback"), *words)
    (event,) = record["guard"]
    assert event.startswith("step 8: val/loss is") and "times the best" in event
    best, optimizer = found["best"], found["optimizer"]
    assert (best["global_step"], found["step"]) == (4, 8)
    for name, value in best["state_dict"].items():
        scale = 0.5 if name.endswith("coupling") else 1.0
        assert torch.equal(found["weights"][name], scale * value), name
    for index, moments in best["optimizer_states"][0]["state"].items():
        for name, value in moments.items():
            assert torch.equal(optimizer["state"][index][name], value), name
    if chosen == "schedule_free":  # its rate is constant
        return
    at_best = best["optimizer_states"][0]["param_groups"][0]["lr"]
    assert optimizer["param_groups"][0]["lr"] < at_best  # the schedule did not go back
    rates = logged(tmp_path, "train/lr")
    assert rates == sorted(rates[:3]) + sorted(rates[3:], reverse=True)


# --- resume ----------------------------------------------------------------------------------

STEERED = [
    *("attention.theta_init=gpt2", "attention.omega_spread=0.3", "regularizer=center"),
    *("regularizer.schedule=adaptive", "regularizer.through=coupling"),
    *guard(action="rollback", patience=1, max_rollbacks=2),
]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, text: list[str]) -> Any:
    """whole(accumulation): the folder of an uninterrupted steered run, made once each."""

    @functools.cache
    def get(accumulation: int) -> Path:
        folder = tmp_path_factory.mktemp("whole")
        _run(text, folder, *STEERED, f"trainer.accumulate_grad_batches={accumulation}")
        return folder

    return get


@pytest.mark.parametrize("accumulation", [1, 3])
@pytest.mark.parametrize(("crash", "every"), [(5, 3), (5, 100), (6, 5), (10, 3)])
def test_a_steered_run_cut_around_a_rollback_and_resumed_is_bit_identical(
    run, tmp_path, whole, accumulation: int, crash: int, every: int
) -> None:
    """Rollbacks take place before steps 5 and 9; 5 is crashed after one, but before a save."""
    extra = [*STEERED, f"trainer.accumulate_grad_batches={accumulation}"]
    extra += [f"callbacks.checkpoint.every_n_train_steps={every}"]
    with crash_at((crash - 1) * accumulation + accumulation // 2):
        run(*extra)
    record = run(*extra, "resume=true")
    expected = whole(accumulation)
    assert_identical(expected, tmp_path)
    a, b = (checkpoint.read(f / "checkpoints" / "last.ckpt") for f in (expected, tmp_path))
    assert a["regularizer"] == b["regularizer"]
    assert a["callbacks"]["CollapseGuard"] == b["callbacks"]["CollapseGuard"]
    assert record["guard"] == read_record(expected)["guard"]
    assert len(record["guard"]) == 3 and len(set(logged(tmp_path, "reg/lambda"))) == 12
