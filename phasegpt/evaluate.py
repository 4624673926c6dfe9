"""`python -m phasegpt.evaluate`: score a trained model on a split, or on tasks of lm-eval."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import hydra

from phasegpt.core.composition import CONF_DIR, plain
from phasegpt.core.errors import ConfigError
from phasegpt.core.sections import Section, option

if TYPE_CHECKING:
    import torch

    from phasegpt.model.loaded import Loaded

_NOT_FINITE = "NOT FINITE: the model gives NaN or infinity; its weights are broken"
_LEAKY = "LEAKY: this model sees the future; its numbers compare with no causal model"


@dataclass(frozen=True, kw_only=True)
class EvaluateConfig(Section):
    """conf/evaluate.yaml."""

    checkpoint: str | None = option(None, "a run folder, a .ckpt file or an exported folder")
    which: Literal["best", "last"] = option("best", "of a run folder")
    imports: str | tuple[str, ...] = option(
        (),
        "modules of your own to import first: what the checkpoint's attention is in",
        form="my_package.my_module, or a list",
    )
    split: str = option("test", "train, val or test, where the corpus has it")
    context: int | None = option(None, "tokens in a window; null: the model's block_size", ge=1)
    stride: int | None = option(None, "tokens that a window advances; null: context", ge=1)
    batch_size: int = option(16, "windows at a time", ge=1, le=1_000_000)
    device: Literal["auto", "cpu", "cuda"] = option("auto", "auto: a GPU where there is one")
    data_path: str | None = option(
        None, "another text, or another place of that of data=text; val is its last part"
    )
    cache_dir: str | None = option(
        None, "the token cache; null: ~/.cache/phasegpt, and the run's is read"
    )
    tasks: tuple[str, ...] | None = option(
        None, "names of lm-eval's tasks and paths of YAML files, in place of a split; extra eval",
        form="a list, or null",
    )  # fmt: skip
    num_fewshot: int | None = option(None, "examples before a question; null: the task's", ge=0)
    limit: int | None = option(None, "documents of a task, to try it; null: all", ge=1)
    output: str | None = option(
        None, "the JSON; null: evaluation-SPLIT.json or -tasks.json in the run's folder, else here"
    )
    debug: bool = option(False, "true: show tracebacks")

    def __post_init__(self) -> None:
        """Also refuse what would do nothing."""
        super().__post_init__()
        if self.tasks is not None and not self.tasks:
            raise ConfigError("tasks=[] names none; give tasks=[NAME], or leave it out")
        of_split = ("split", "context", "stride", "data_path", "cache_dir")
        self.refuse_idle(self.tasks is None, "with tasks", *of_split)
        self.refuse_idle(self.tasks is not None, "without tasks", "num_fewshot", "limit")


@hydra.main(version_base="1.3", config_path=str(CONF_DIR), config_name="evaluate")
def main(cfg: Any) -> None:
    """Command line."""
    from phasegpt.cli import guarded
    from phasegpt.core.console import show
    from phasegpt.core.files import check_name, check_output, write_json

    def command() -> None:
        settings = EvaluateConfig.parse(plain(cfg))
        check_name(settings.split, "split")
        path = _output(settings)
        check_output(path)
        result = evaluate(settings)
        if settings.tasks is not None:
            text = task_table(result)
        else:
            text = (generated_table if "task" in result else table)(result)
        show(text)  # first: it stays, whatever becomes of the file
        if settings.output is None:
            path = not_in_the_way(path, result)
        write_json(path, result)
        show(f"written to {path}")

    guarded(command, debug=cfg.get("debug") is True)


def evaluate(settings: EvaluateConfig) -> dict[str, Any]:
    """Score settings.checkpoint on settings.split, or settings.tasks; the result is JSON-ready.

    The same settings give the same numbers on the same machine. `training_text` says whether the
    text is that of the training (None: not recorded); numbers that are not finite are None, and
    `finite` is then False. Raises ConfigError, DataError, CheckpointError.
    """
    from phasegpt.cli import chosen_checkpoint, device, is_training_text, training_corpus

    target = chosen_checkpoint(settings.checkpoint, settings.imports)
    from phasegpt.model import scoring
    from phasegpt.model.loading import load_run

    if settings.tasks is not None:
        from phasegpt.model.harness import check_tasks

        check_tasks(settings.tasks)
    chosen = device(settings.device)
    loaded = load_run(target, settings.which)
    model = loaded.model
    if settings.tasks is not None:
        if loaded.tokenizer.name == "symbols":
            raise ConfigError(
                f"tasks={','.join(settings.tasks):.200} are of texts, and {loaded.path} is a model "
                f"of a generated task, which has none; leave tasks out: its own task is scored"
            )
        return _on_tasks(settings, settings.tasks, loaded, chosen.type)
    if loaded.tokenizer.name == "symbols":
        return _on_generated(settings, loaded, chosen)
    context = settings.context or model.config.block_size
    stride = settings.stride or context
    scoring.check_windows(model, context=context, stride=stride)
    corpus = training_corpus(loaded, settings.data_path, settings.cache_dir, as_documents=True)
    score = scoring.score(
        model,
        corpus,
        settings.split,
        context=context,
        stride=stride,
        batch_size=settings.batch_size,
        device=chosen,
        progress=True,
    )
    apart = corpus.documents.get(settings.split)
    floor = {"nats": score.floor_nats, "loss": score.floor_loss, "perplexity": score.floor_ppl}
    return {
        "checkpoint": os.path.relpath(loaded.path),
        "sha256": loaded.sha256,
        "leaky": model.leaky,
        "corpus": corpus.meta["corpus"],
        "data_fingerprint": corpus.fingerprint,
        "training_text": is_training_text(loaded, corpus),
        "split": settings.split,
        "unit": scoring.UNITS[corpus.tokenizer.name],
        "context": context,
        "stride": stride,
        "batch_size": settings.batch_size,
        "device": chosen.type,
        "tokens_scored": score.tokens,
        **({} if apart is None else {"documents": len(apart)}),
        "bytes_scored": score.bytes,
        "words": score.words,
        "finite": math.isfinite(score.nats),
        "nats": _finite(score.nats),
        "loss": _finite(score.loss),
        "perplexity": _finite(score.ppl),
        "bits_per_byte": _finite(score.bits_per_byte),
        "bits_per_byte_from_64": _finite(score.late_bits_per_byte),
        "word_perplexity": _finite(score.word_ppl),
        "floor": None if score.floor_nats is None else floor,
    }


def _on_generated(settings: EvaluateConfig, loaded: Loaded, device: torch.device) -> dict[str, Any]:
    """Accuracy of a generated task; loads that the model has no positions for are None."""
    from phasegpt.data.config import DataSection, task_class
    from phasegpt.data.corpus import prepare
    from phasegpt.model import scoring

    why = "of a generated task"
    settings.refuse_idle(False, why, "context", "stride", "data_path", "cache_dir")
    if loaded.config is None:
        raise ConfigError(
            f"{loaded.path} has no run.json, so its task is not known; evaluate the run that it "
            f"was exported from"
        )
    data = DataSection.parse(loaded.config["data"])
    task = task_class(data.corpus)(data)
    found = scoring.score_task(
        loaded.model, task, settings.split, batch_size=settings.batch_size, device=device
    )
    fingerprint, known = prepare(data).fingerprint, loaded.data_fingerprint
    loads = task.config.loads
    several = loads if len(loads) > 1 else ()
    return {
        "checkpoint": os.path.relpath(loaded.path),
        "sha256": loaded.sha256,
        "leaky": loaded.model.leaky,
        "task": data.to_dict(),
        "trained": task.config.trained,
        "data_fingerprint": fingerprint,
        "training_text": None if known is None else fingerprint == known,
        "split": settings.split,
        "batch_size": settings.batch_size,
        "device": device.type,
        "finite": math.isfinite(found["loss"]),
        "loss": _finite(found["loss"]),
        "accuracy": found["accuracy"],
        "accuracy_by_load": {n: found.get(f"accuracy/{n}") for n in several},
        "exact": found["exact"],
        "exact_by_load": {n: found.get(f"exact/{n}") for n in several},
        "chance": task.chance,
        "ceiling": task.ceiling,
    }


def generated_table(result: dict[str, Any]) -> str:
    """The result of `evaluate` on a generated task for a person to read."""
    task, loads = result["task"], result["accuracy_by_load"]
    rows = {"loss": result["loss"], "accuracy": result["accuracy"]}
    rows |= {f"  at {n}": value for n, value in loads.items()}
    rows |= {"exact": result["exact"], "chance": result["chance"], "ceiling": result["ceiling"]}
    said = {f"  at {n}": "beyond the training" for n in loads if n > result["trained"]}
    said |= {"loss": "nats per scored token", "ceiling": "of the best predictor there is"}
    said |= {"exact": "share of rows that are right in all", "chance": "of the accuracy"}
    lines = [
        f"{result['checkpoint']}  (sha256 {result['sha256'][:16]}, {result['device']})",
        f"{task['corpus']}, split {result['split']}: {task['val_examples']:,} examples"
        f"{' of each' if loads else ''}",
        "",
    ]
    for name, value in rows.items():
        shown = "n/a" if value is None else f"{value:.4f}"
        lines.append(f"{name:<16}{shown:>11}  {said.get(name, '')}".rstrip())
    if not result["finite"]:
        lines.append(_NOT_FINITE)
    if result["training_text"] is False:
        lines.append("these are not the examples of the training: the task's generator has changed")
    if result["leaky"]:
        lines.append(_LEAKY)
    return "\n".join(lines)


def _on_tasks(
    settings: EvaluateConfig, tasks: tuple[str, ...], loaded: Loaded, device: str
) -> dict[str, Any]:
    """What lm-eval finds, and what of."""
    from importlib.metadata import version

    from phasegpt.model.harness import run_tasks

    found = run_tasks(
        loaded,
        tasks,
        num_fewshot=settings.num_fewshot,
        limit=settings.limit,
        batch_size=settings.batch_size,
        device=device,
    )
    return {
        "checkpoint": os.path.relpath(loaded.path),
        "sha256": loaded.sha256,
        "lm_eval": version("lm_eval"),
        "tasks": [*tasks],
        "num_fewshot": settings.num_fewshot,
        "limit": settings.limit,
        "batch_size": settings.batch_size,
        "device": device,
        **found,
    }


def task_table(result: dict[str, Any]) -> str:
    """The result of `evaluate` on tasks for a person to read."""
    lines = [
        f"{result['checkpoint']}  (sha256 {result['sha256'][:16]}, {result['device']}, lm-eval "
        f"{result['lm_eval']})",
        *([] if result["limit"] is None else [f"LIMIT: the first {result['limit']} documents"]),
        "",
        f"{'task':<24}{'measure':<24}{'value':>12}{'std. error':>12}",
    ]
    for task, values in result["results"].items():
        for name, value in values.items():
            measure, comma, filtered = name.partition(",")
            if comma and not measure.endswith("_stderr"):
                error = values.get(f"{measure}_stderr,{filtered}")
                cells = [f"{x:.4f}" if isinstance(x, float) else "" for x in (value, error)]
                lines.append(f"{task:<24}{measure:<24}{cells[0]:>12}{cells[1]:>12}")
    return "\n".join(lines)


def table(result: dict[str, Any]) -> str:
    """The result of `evaluate` for a person to read, with the definition of each number."""
    unit, floor = result["unit"], result["floor"]
    scored, apart = result["tokens_scored"], result.get("documents")
    whole = f"{scored + (apart or 1):,}{f', {apart:,} documents' if apart else ''}"

    def row(name: str, value: float | None, text: str) -> str:
        shown = "undefined" if value is None else f"{value:.4f}" if value < 1e5 else f"{value:.4g}"
        return f"{name:<16}{shown:>11}  {text}"

    lines = [
        f"{result['checkpoint']}  (sha256 {result['sha256'][:16]}, {result['device']})",
        f"{result['corpus']}, split {result['split']}: {scored:,} {unit}s scored of "
        f"{whole}, context {result['context']}, stride {result['stride']}",
        "",
        row("loss", result["loss"], f"nats per {unit}"),
        row("perplexity", result["perplexity"], f"exp(loss), per {unit}"),
        row("bits per byte", result["bits_per_byte"], f"{result['bytes_scored']:,} UTF-8 bytes"),
    ]
    if (late := result["bits_per_byte_from_64"]) is not None:
        lines.append(row("  from place 64", late, "of tokens with more than 64 others before them"))
    none = "of one text alone" if apart else "no words"
    words = f"exp(nats / {result['words']:,} words)" if result["words"] else none
    lines.append(row("word perplexity", result["word_perplexity"], words))
    if floor is not None:
        text = f"perplexity of the source itself, per {unit}; only a leak can go below"
        lines.append(row("entropy floor", floor["perplexity"], text))
    if not result["finite"]:
        lines.append(_NOT_FINITE)
    if result["training_text"] is False:
        lines.append("OTHER TEXT: this is not the text that the model was trained with")
    if result["leaky"]:
        lines.append(_LEAKY)
    return "\n".join(lines)


def _output(settings: EvaluateConfig) -> Path:
    """Where the JSON goes: settings.output, else the run's folder, else the working folder."""
    from phasegpt.cli import chosen_checkpoint
    from phasegpt.core.files import expand
    from phasegpt.model import shards
    from phasegpt.model.checkpoint import find, run_folder

    if settings.output is not None:
        return expand(settings.output)
    target = Path(chosen_checkpoint(settings.checkpoint, settings.imports))
    exported = shards.there(target)
    folder = Path() if exported else Path(os.path.relpath(run_folder(find(target, settings.which))))
    return folder / f"evaluation-{settings.split if settings.tasks is None else 'tasks'}.json"


def not_in_the_way(path: Path, result: dict[str, Any]) -> Path:
    """`path`, or the first NAME-2.json, -3, ... where another model, text or window is there."""
    from phasegpt.core.errors import DataError
    from phasegpt.core.files import read_json

    same = (
        "sha256",
        "split",
        "context",
        "stride",
        "data_fingerprint",
        "tasks",
        "num_fewshot",
        "limit",
    )
    for number in range(2, 10_000):
        try:
            there = read_json(path) if path.exists() else result
        except DataError:  # no result of ours: it is left alone too
            there = {}
        if all(there.get(key) == result.get(key) for key in same):
            break
        path = path.with_name(
            f"{path.stem.rpartition('-')[0] if number > 2 else path.stem}-{number}.json"
        )
    return path


def _finite(value: float | None) -> float | None:
    """JSON has no NaN and no infinity."""
    return value if value is not None and math.isfinite(value) else None


if __name__ == "__main__":
    from phasegpt.cli import launch

    launch(main, "checkpoint", "data_path", "cache_dir", "output", config_name="evaluate")
