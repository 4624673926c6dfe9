"""Training on a generated task: what is scored, what is logged, how it resumes and stops."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import composed, crash_at, outcome

import phasegpt
from phasegpt.core.errors import CheckpointError, ConfigError
from phasegpt.data.config import TASKS
from phasegpt.data.windows import IGNORED
from phasegpt.evaluate import EvaluateConfig, evaluate, generated_table
from phasegpt.model import loading
from phasegpt.model.scoring import Tally, nats
from phasegpt.training.assemble import lightning
from phasegpt.training.config import run_config
from phasegpt.training.run import fit
from phasegpt.training.run_folder import read_metrics

TINY = [
    *("attention.layers=[1]", "attention.num_oscillators=4", "attention.steps=2"),
    *("model.n_layer=2", "model.n_head=2", "model.n_embd=16", "model.block_size=64"),
    *("data=mqar_small", "data.batch_size=4", "data.val_examples=10", "data.vocab_size=40"),
    *("trainer=cpu", "trainer.max_steps=6", "trainer.val_check_interval=3"),
    *("trainer.log_every_n_steps=1", "optimizer.warmup_steps=1", "compile=false"),
    *("callbacks.checkpoint.every_n_train_steps=2", "callbacks.progress_bar=false"),
    *("model.dropout=0.1", "data.length=16"),
]


def config(*words: str) -> Any:
    return phasegpt.compose([*TINY, *words])


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("task")
    fit(config(), folder)
    return folder


# --- the batch contract ----------------------------------------------------------------------


def test_the_loss_is_of_scored_positions_and_equals_the_whole_heads() -> None:
    lit, data = lightning(config("model.dropout=0"))
    batch = data._train_batches()[0]
    step = lit.training_step(batch, 0)
    total, count = nats(lit.model(batch["idx"]).logits, batch["targets"])
    assert count == (batch["targets"] != IGNORED).sum() == 4 * 4
    torch.testing.assert_close(step["nll"], total / count)
    step["nll"].backward()
    found = [p.grad.clone() for p in lit.parameters()]
    lit.zero_grad()
    (total / count).backward()
    for a, p in zip(found, lit.parameters(), strict=True):
        torch.testing.assert_close(a, p.grad, rtol=1e-4, atol=1e-7)


def test_flops_count_the_head_where_something_is_scored(run: Path) -> None:
    record, model = json.loads((run / "run.json").read_text()), loading.load(run)
    head = 3 * 2 * model.lm_head.weight.numel()
    whole = model.flops(16, backward=True).products
    assert record["flops_per_token"]["full"] == round(whole - head * (1 - 4 / 16))


def test_logits_where_asked_are_those_of_the_whole(make_model: Any, roughen: Any) -> None:
    model, idx = roughen(make_model("kuramoto", layers=(1,))), torch.arange(24).view(2, 12)
    only = torch.rand(2, 12) < 0.4
    torch.testing.assert_close(model(idx, only_BT=only).logits, model(idx).logits[only])


def test_a_tally_adds_up_trained_loads_and_keeps_those_beyond_apart() -> None:
    tally = Tally()
    targets = torch.tensor([[IGNORED, 0, 0, IGNORED], [0, 0, IGNORED, 0], [IGNORED] * 4])
    for load, right in ((4, 3), (4, 1), (8, 2)):  # of 2 scored positions, then 3, then none
        logits = torch.zeros(5, 3)
        logits[:right, 0] = 9.0
        logits[right:, 1] = 9.0
        tally.add(logits, targets, load)
    scores = Tally.scores(tally.sums(), trained=4)
    assert scores["accuracy"] == scores["accuracy/4"] == 0.4
    assert scores["accuracy/8"] == scores["accuracy/beyond"] == 0.4
    assert scores["exact"] == scores["exact/4"] == 1 / 4
    assert scores["exact/8"] == scores["exact/beyond"] == 1 / 2
    wrong, right = 9 + 2e-4, 2e-4
    assert scores["loss"] == pytest.approx((6 * wrong + 4 * right) / 10, rel=1e-3)


@pytest.mark.parametrize("name", TASKS)
@pytest.mark.parametrize("positions", ["learned", "rope"])
def test_every_task_trains_and_is_scored_by_load(name: str, positions: str) -> None:
    words = [*TINY[:2], f"data={name}_small", "data.batch_size=2", "data.val_examples=2"]
    words += [
        "model.n_layer=2",
        "model.n_embd=16",
        "model.n_head=2",
        "model.block_size=300",
        "trainer=cpu",
    ]
    lit, data = lightning(phasegpt.compose([*words, f"model.positions={positions}"]))
    batch = data._train_batches()[0]
    step = lit.training_step(batch, 0)
    step["loss"].backward()
    assert 0 < step["nll"] < 10
    loads = [int(b["load"]) for b in data.val_dataloader()]
    whole = list(lit.run.data.loads)
    ended = [n for n in whole if n <= lit.run.data.trained]
    of_length = len(whole) > 1 and name != "periodic"
    assert loads == (ended if of_length and positions == "learned" else whole)


def test_anchors_of_positions_that_were_never_trained_are_not_scored() -> None:
    words = ["data=parity_small", "model=mini_rope", "model.block_size=512", "trainer=cpu"]
    anchors = [*words, "attention=fixed_query"]
    whole = [10, 20, 40, 60, 80, 100]
    for attention, loads in (
        ([*words, "attention=softmax"], whole),
        (anchors, [n for n in whole if n <= 40]),
        ([*anchors, "attention.layers=[]"], whole),
    ):
        assert [*run_config(phasegpt.compose(attention)).loads] == loads


# --- a run -----------------------------------------------------------------------------------


def test_a_run_of_a_task_logs_accuracy_and_says_what_compares(run: Path, capsys: Any) -> None:
    record = json.loads((run / "run.json").read_text())
    assert (record["status"], record["stopped"]) == ("ok", "max_steps")
    assert record["tokens"] == 6 * 4 * 16
    final = record["final"]
    assert 0 <= final["val/accuracy"] <= 1 and "val/bpb" not in final
    assert record["data"]["corpus"] == "mqar" and record["data"]["chance"] == 1 / 20
    assert [r["step"] for r in read_metrics(run / "metrics.csv") if "val/accuracy" in r] == [3, 6]
    assert "phase/val/R_end/layer1" in final


def assert_same(a: Path, b: Path) -> None:
    (step_a, weights_a, _, rows_a), (step_b, weights_b, _, rows_b) = outcome(a), outcome(b)
    assert step_a == step_b == 6 and rows_a == rows_b
    assert all(torch.equal(x, weights_b[name]) for name, x in weights_a.items())


def test_crash_and_resume_is_bit_identical(run: Path, tmp_path: Path) -> None:
    with crash_at(5):
        fit(config(), tmp_path)
    fit(config("resume=true"), tmp_path)
    assert_same(run, tmp_path)


def test_data_workers_do_not_change_the_result(run: Path, tmp_path: Path) -> None:
    fit(config("data.num_workers=2"), tmp_path)
    assert_same(run, tmp_path)


@pytest.mark.parametrize("steps", [3, 6])
def test_a_solved_task_stops_and_says_so_at_its_last_step_too(tmp_path: Path, steps: int) -> None:
    words = ("callbacks.early_stopping.accuracy=0.2", "data.vocab_size=4", "data.pairs=1")
    words = (*words, "optimizer.lr=1e-2", "data.val_examples=200", f"trainer.max_steps={steps}")
    record = fit(config(*words), tmp_path)
    assert (record["step"], record["stopped"]) == (3, "solved")


def test_stopping_above_the_ceiling_of_a_task_is_refused(tmp_path: Path) -> None:
    words = [
        "data=periodic_small",
        "model.block_size=256",
        "callbacks.early_stopping.accuracy=0.99",
    ]
    with pytest.raises(ConfigError, match=r"0\.99 is never reached: .* data=periodic has 0\.[0-9]"):
        fit(phasegpt.compose(words), tmp_path / "run")
    assert not (tmp_path / "run" / "metrics.csv").exists()


def test_evaluate_gives_the_validations_numbers(run: Path) -> None:
    record = json.loads((run / "run.json").read_text())
    result = evaluate(EvaluateConfig(checkpoint=str(run), split="val"))
    best = record["best"]
    assert result["accuracy"] == best["val/accuracy"]
    assert result["exact"] == best["val/exact"] <= best["val/accuracy"]
    assert result["loss"] == pytest.approx(best["val/loss"], rel=1e-6)
    assert result["data_fingerprint"] == record["data"]["fingerprint"]
    assert "chance" in generated_table(result)
    assert evaluate(EvaluateConfig(checkpoint=str(run)))["loss"] != result["loss"]
    with pytest.raises(ConfigError, match="stride=4 does nothing of a generated task"):
        evaluate(EvaluateConfig(checkpoint=str(run), stride=4))


def test_a_model_of_a_task_is_exported_and_keeps_its_numbers(run: Path, tmp_path: Path) -> None:
    exported = loading.load(loading.export(run, tmp_path / "export"))
    idx = torch.arange(16)[None]
    assert torch.equal(exported(idx).logits, loading.load(run)(idx).logits)


def test_what_needs_a_text_refuses_a_task_by_name(run: Path) -> None:
    from phasegpt.cli import training_corpus

    with pytest.raises(ConfigError, match="generated task data=mqar, which is no text"):
        training_corpus(loading.load_run(run), None, None)


def test_lm_eval_refuses_a_model_of_a_task_in_one_line(run: Path, monkeypatch: Any) -> None:
    from phasegpt.model import harness

    monkeypatch.setattr(harness, "check_tasks", lambda tasks: None)
    with pytest.raises(ConfigError, match=r"tasks=a,b are of texts.*leave tasks out"):
        evaluate(EvaluateConfig(checkpoint=str(run), tasks=("a", "b")))


def test_weights_of_a_text_and_of_a_task_are_told_apart(
    run: Path, text: list[str], tmp_path: Path
) -> None:
    small = [w for w in TINY if not w.startswith("data")]
    of_text = [*small, "callbacks.sample_text.max_new_tokens=0", "data=text"]
    says = "is a model of a generated task, and this run is of a text: .* take a model of a text"
    with pytest.raises(ConfigError, match=says):
        fit(phasegpt.compose([*of_text, *text, f"init_from={run}"]), tmp_path / "a")
    record = fit(phasegpt.compose([*of_text, *text]), tmp_path / "text")
    assert record["status"] == "ok"
    with pytest.raises(ConfigError, match="is a model of a text, and this run is of a generated"):
        fit(config(f"init_from={tmp_path / 'text'}"), tmp_path / "b")
    with pytest.raises(
        ConfigError, match=r"of 40 symbols, and this one has 50: .* give it the sizes"
    ):
        fit(config(f"init_from={run}", "data.vocab_size=50"), tmp_path / "c")
    assert fit(config(f"init_from={run}"), tmp_path / "d")["init_from"]["new"] == []


def test_examples_must_fit_the_model() -> None:
    with pytest.raises(ConfigError, match=r"examples of 128 tokens, and model\.block_size=64"):
        composed(*TINY, "data.length=128")


def test_another_generator_is_another_text(run: Path, tmp_path: Path, monkeypatch: Any) -> None:
    from phasegpt.data import recall_tasks

    with crash_at(5):
        fit(config(), tmp_path)
    old = recall_tasks.MQAR.draw
    swapped = lambda self, draws, load=None: old(self, draws, load)._replace(  # noqa: E731
        idx=old(self, draws, load).idx * 0
    )
    monkeypatch.setattr(recall_tasks.MQAR, "draw", swapped)
    with pytest.raises(CheckpointError, match="the data changed"):
        fit(config("resume=true"), tmp_path)
