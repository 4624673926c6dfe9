"""lm-eval on an exported folder, and from `python -m phasegpt.evaluate tasks=[...]`."""

import json
import math
import sys
from pathlib import Path
from typing import Any

import datasets
import lm_eval.evaluator
import lm_eval.tasks
import numpy as np
import pytest
import torch
import yaml
from helpers import TEXT, command, make_run, text_data
from lm_eval import simple_evaluate
from lm_eval.tasks import TaskManager

import phasegpt
from phasegpt.core.errors import ConfigError, DataError
from phasegpt.data import hf_tokenizers
from phasegpt.data.tokenizers import build
from phasegpt.evaluate import EvaluateConfig, evaluate
from phasegpt.export import ExportConfig, export
from phasegpt.model.harness import run_tasks
from phasegpt.model.loading import load_run
from phasegpt.model.scoring import losses

#: Longer than the context, shorter, and one that begins with the prefix token.
DOCUMENTS = [TEXT[:201].strip(), TEXT[50:70].strip(), "\n" + TEXT[300:390].strip()]


@pytest.fixture(scope="module")
def folder(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("hf") / "model"
    export(ExportConfig(checkpoint=str(run), out=str(out)))
    return out


@pytest.fixture(scope="module")
def tasks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with two tasks and their data."""
    place = tmp_path_factory.mktemp("tasks")
    rows = [{"text": text, "choices": ["day", " fair"], "answer": 0} for text in DOCUMENTS]
    (place / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    common = {
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(place / "data.jsonl")}},
        "test_split": "test",
        "metadata": {"version": 1.0},
    }
    rolling = {
        "task": "lines",
        "output_type": "loglikelihood_rolling",
        "doc_to_text": "",
        "doc_to_target": "{{text}}",
        "metric_list": [{"metric": "bits_per_byte"}],
    }
    choice = {
        "task": "choice",
        "output_type": "multiple_choice",
        "doc_to_text": "{{text}}",
        "doc_to_choice": "{{choices}}",
        "target_delimiter": "",
        "doc_to_target": "{{answer}}",
        "metric_list": [{"metric": "acc"}],
    }
    generating = {
        "task": "generating",
        "output_type": "generate_until",
        "doc_to_text": "{{text}}",
        "doc_to_target": "day",
        "metric_list": [{"metric": "exact_match"}],
    }
    for task in (rolling, choice, generating):
        (place / f"{task['task']}.yaml").write_text(yaml.safe_dump({**common, **task}))
    return place


@pytest.fixture(autouse=True)
def _only_our_tasks(tasks: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """lm-eval reads its own ten thousand tasks in half a minute, asks pip what is installed, and
    has its cache at home."""
    monkeypatch.setattr(lm_eval.evaluator, "add_env_info", lambda _: None)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "datasets")

    def manager(include_defaults: bool) -> TaskManager:
        return TaskManager(include_path=str(tasks), include_defaults=False)

    monkeypatch.setattr(lm_eval.tasks, "TaskManager", manager)


def test_log_likelihoods_are_those_of_evaluate_in_the_same_windows(
    folder: Path, tasks: Path
) -> None:
    generation = json.loads((folder / "generation_config.json").read_text())
    prefix = generation["bos_token_id"]
    model = phasegpt.load(folder)
    assert model.tokenizer.decode([prefix]) == "\n"
    found = simple_evaluate(
        "hf",
        f"pretrained={folder},prefix_token_id={prefix},trust_remote_code=True",
        tasks=["lines", "choice"],
        batch_size=2,
        device="cpu",
        task_manager=TaskManager(include_path=str(tasks), include_defaults=False),
    )
    assert found is not None
    context = model.config.block_size
    ids = [model.tokenizer.encode(text) for text in DOCUMENTS]
    ours = [-losses(model, np.r_[prefix, each], context=context) for each in ids]
    theirs = [sample["resps"][0][0] for sample in found["samples"]["lines"]]
    # With the prefix in front: every token of the text is scored, the first one too.
    assert theirs == pytest.approx([each.sum().item() for each in ours], rel=1e-5)
    assert [len(each) for each in ours] == [len(text) for text in DOCUMENTS]
    # `evaluate` scores the text alone: one token less, and what follows without the prefix.
    alone = losses(model, ids[1], context=context)
    assert len(alone) == len(DOCUMENTS[1]) - 1
    assert -alone.sum().item() != pytest.approx(theirs[1], rel=1e-3)
    # A continuation after a text, which is cut from the left to fit.
    for sample in found["samples"]["choice"]:
        for choice, ((value, _),) in zip(sample["doc"]["choices"], sample["resps"], strict=True):
            both = model.tokenizer.encode(sample["doc"]["text"] + choice)[-context - 1 :]
            with torch.no_grad():
                logits = model(torch.tensor(both[None, :-1].astype(np.int64))).logits[0]
            chosen = logits.log_softmax(-1)[range(len(both) - 1), both[1:].astype(np.int64)]
            assert value == pytest.approx(chosen[-len(choice) :].sum().item(), rel=1e-5)


def test_the_command_gives_the_same_numbers_and_says_of_what(
    run: Path, tasks: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [f"checkpoint={run}", f"tasks=[{tasks}/lines.yaml,choice]", "batch_size=2"]
    command(monkeypatch, "evaluate", *words, "device=cpu")
    result = json.loads((run / "evaluation-tasks.json").read_text())
    model = phasegpt.load(run)
    newline = int(model.tokenizer.encode("\n")[0])
    nats = [
        losses(model, np.r_[newline, model.tokenizer.encode(text)], context=32).sum().item()
        for text in DOCUMENTS
    ]
    bits = sum(nats) / math.log(2) / sum(len(text) for text in DOCUMENTS)
    assert result["results"]["lines"]["bits_per_byte,none"] == pytest.approx(bits, rel=1e-5)
    assert result["n-samples"]["choice"] == {"original": 3, "effective": 3}
    assert result["tasks"] == [f"{tasks}/lines.yaml", "choice"]
    assert result["lm_eval"] and result["sha256"]
    out = capsys.readouterr().out
    assert f"bits_per_byte{bits:>23.4f}" in out
    assert "LIMIT" not in out
    evaluated = EvaluateConfig(checkpoint=str(run), tasks=("choice",), limit=1, device="cpu")
    assert evaluate(evaluated)["n-samples"]["choice"] == {"original": 3, "effective": 1}


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ({"tasks": ()}, r"tasks=\[\] names none"),
        ({"tasks": ("a",), "split": "val"}, "split='val' does nothing with tasks"),
        ({"tasks": ("a",), "context": 4}, "context=4 does nothing with tasks"),
        ({"limit": 4}, "limit=4 does nothing without tasks"),
        ({"tasks": ("nowhere/a.yaml",)}, r"nowhere/a\.yaml does not exist"),
        ({"tasks": ("choise",)}, "tasks=choise is unknown; did you mean tasks=choice"),
    ],
)
def test_what_cannot_be_run_is_refused_by_name(run: Path, words: dict, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        evaluate(EvaluateConfig(checkpoint=str(run), **words))


def test_without_the_extra_the_command_says_what_to_install(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    with pytest.raises(ConfigError, match=r"pip install 'phasegpt\[eval\]'"):
        evaluate(EvaluateConfig(checkpoint=str(run), tasks=("choice",)))


def test_a_task_that_cannot_be_run_is_one_error(run: Path, tasks: Path) -> None:
    def of(name: str) -> None:
        evaluate(EvaluateConfig(checkpoint=str(run), tasks=(name,), device="cpu"))

    with pytest.raises(DataError, match="to generate, a task needs an end token: char has none"):
        of("generating")
    broken = tasks / "broken.yaml"
    files = {"test": str(tasks / "nowhere.jsonl")}
    data = {"task": "broken", "dataset_path": "json", "dataset_kwargs": {"data_files": files}}
    broken.write_text(yaml.safe_dump(data))
    with pytest.raises(DataError, match=r"lm-eval cannot run tasks=.*broken\.yaml"):
        of(str(broken))


@pytest.mark.filterwarnings("ignore:.*sees the future")
def test_a_model_that_sees_the_future_is_refused(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", "attention=as_coded", *text_data(tmp_path, TEXT))
    with pytest.raises(ConfigError, match="sees the future"):
        evaluate(EvaluateConfig(checkpoint=str(run), tasks=("choice",)))
    loaded = load_run(make_run(tmp_path / "other", *text_data(tmp_path, TEXT)))
    loaded.model.blocks[1].attn.leaky = True  # as of a mechanism of another package
    with pytest.raises(ConfigError, match=r"the future \(attention=kuramoto\)"):
        run_tasks(loaded, ["choice"], num_fewshot=None, limit=None, batch_size=1, device="cpu")


@pytest.mark.parametrize(
    ("name", "alphabet", "prefix"), [("byte", None, 10), ("char", "ab\nc", 2), ("char", "abc", 0)]
)
def test_a_tokenizer_has_a_prefix_token(name: str, alphabet: Any, prefix: int) -> None:
    assert hf_tokenizers.prefix_token(build(name, alphabet=alphabet)) == prefix
