"""`python -m phasegpt.interpret`: look into the oscillators of a trained model, or its tokens."""

from __future__ import annotations

import os
import sys
import urllib.parse
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import hydra

from phasegpt.core.composition import CONF_DIR, plain
from phasegpt.core.console import show
from phasegpt.core.errors import CheckpointError, ConfigError, UserError
from phasegpt.core.files import expand, writing
from phasegpt.core.sections import Section, option

if TYPE_CHECKING:
    from torch import Tensor

    from phasegpt.model.loaded import Loaded


@dataclass(frozen=True, kw_only=True)
class InterpretConfig(Section):
    """conf/interpret.yaml."""

    checkpoint: str | None = option(
        None, "a run folder, a .ckpt file, an exported folder, or a folder of runs"
    )
    which: Literal["best", "last"] = option("best", "of a run folder")
    imports: str | tuple[str, ...] = option(
        (),
        "modules of your own to import first: what the checkpoint's attention is in",
        form="my_package.my_module, or a list",
    )
    text: str | None = option(None, "a text of your own, to the letter; null: a split")
    split: str | None = option(
        None, "train, validation or test; null: validation, unless there is a text"
    )
    tokens: int = option(
        2048, "tokens of the split, in sequences spread evenly over it", ge=1, le=10**9
    )
    context: int | None = option(
        None, "tokens in a sequence; null: at most an eighth of tokens", ge=1
    )
    layers: tuple[int, ...] | None = option(
        None, "phase layers to look at; null: all", form="a list such as [7], or null"
    )
    interventions: bool = option(True, "false: leave out K scaled, phases scrambled, S changed")
    figures: bool = option(True, "false: no PNG and SVG")
    vocabulary: bool = option(False, "true: a table of the least likely tokens instead")
    rows: int = option(100, "rows of the table of vocabulary", ge=1)
    repeat: str = option(
        "Repeat the word {token}. I repeat the word {token}. I repeat the word ",
        "vocabulary: a text at whose end {token} should follow",
    )
    seed: int = option(0, "of what is scrambled", ge=0)
    device: Literal["auto", "cpu", "cuda"] = option("auto", "auto: a GPU where there is one")
    data_path: str | None = option(
        None, "another text, or another place of that of data=text; val is its last part"
    )
    cache_dir: str | None = option(
        None, "the token cache; null: ~/.cache/phasegpt, and the run's is read"
    )
    output: str | None = option(
        None, "a folder; null: interpretation in the run's folder, else here"
    )
    debug: bool = option(False, "true: show tracebacks")

    def __post_init__(self) -> None:
        """Also refuse what would do nothing."""
        super().__post_init__()
        if self.text is not None and self.split is not None:
            raise ConfigError("text and split are both set; give the one that is to be looked at")
        self.refuse_idle(self.text is None, "text", "tokens")
        if not self.vocabulary:
            self.refuse_idle(self.text is None, "text", "data_path", "cache_dir")
        self.refuse_idle(self.vocabulary, "vocabulary", "rows", "repeat")
        measured = ("layers", "interventions", "figures", "seed")
        self.refuse_idle(not self.vocabulary, "vocabulary", *measured)


@hydra.main(version_base="1.3", config_path=str(CONF_DIR), config_name="interpret")
def main(cfg: Any) -> None:
    """Command line."""
    from phasegpt.cli import guarded

    def command() -> None:
        show(table(interpret(InterpretConfig.parse(plain(cfg)))))

    guarded(command, debug=cfg.get("debug") is True)


def interpret(settings: InterpretConfig) -> dict[str, Any]:
    """Measure settings.checkpoint and write statistics.json, report.html and figures/.

    That they can be written is checked first; should it fail all the same, the numbers are printed.

    The result is what statistics.json holds, with the `output` folder: the statistics of a run
    (see phasegpt.interpretation.synchronization), or for a folder of runs {"runs": {name: those}}.
    With settings.vocabulary it is what tokens.json holds, beside tokens.csv, and nothing else is
    measured (see phasegpt.interpretation.anomalous). The same settings give the same bytes on the
    same machine. Raises ConfigError, DataError, CheckpointError.
    """
    from phasegpt.cli import chosen_checkpoint

    target = Path(chosen_checkpoint(settings.checkpoint, settings.imports))
    runs = runs_of(target)
    if settings.vocabulary:
        if runs:
            raise ConfigError(f"vocabulary=true is for one run, and {target} holds {len(runs)}")
        return _vocabulary(settings, target)
    return _sweep(settings, target, runs) if runs else _run(settings, target)


def runs_of(folder: Path) -> list[Path]:
    """The run folders directly under `folder`, by number or name; none if it is a run itself."""
    from phasegpt.model.loading import is_ours

    if is_ours(folder) or not os.path.isdir(folder):
        return []
    found = [path.parent for path in folder.glob("*/checkpoints") if path.is_dir()]
    return sorted(
        found, key=lambda p: (not p.name.isdigit(), int(p.name) if p.name.isdigit() else 0, p.name)
    )


def table(result: dict[str, Any]) -> str:
    """The result of `interpret` for a person to read."""
    if "runs" in result:
        lines = [
            f"{name}: {run.get('status') or run['reason']}" for name, run in result["runs"].items()
        ]
        return "\n".join([*lines, f"written to {result['output']}: report.html, statistics.json"])
    unit = result["unit"]
    head = f"{result['checkpoint']}  (sha256 {result['sha256'][:16]})"
    if "summary" in result:
        from phasegpt.interpretation.anomalous import as_text

        tail = f"written to {result['output']}: tokens.json, tokens.csv"
        return "\n".join([head, result["source"], "", as_text(result), "", tail])
    lines = [
        head,
        f"{result['sequences']} x {result['context']} tokens of {result['source']}: "
        f"{result['loss']['mean']:.4f} nats per {unit}",
    ]
    for layer in result["layers"]:
        R, null = layer["R"], layer["null"]
        lines += [
            "",
            f"layer {layer['layer']} ({layer['mechanism']}): {layer['status']}. {layer['reason']}",
            f"  R over the {layer['R_is_over']}: {R['mean']:.3f}, sd {R['sd']:.3f} "
            f"(K = 0: {layer['R_uncoupled']:.3f}, random phases: {null['R']:.3f})",
            f"  dR by coupling: {_interval(layer['dR'], 3)}",
        ]
    if "interventions" in result:
        lines += ["", f"change of the loss, nats per {unit}, with its 95% interval"]
        for effect in result["interventions"]:
            lines.append(f"  {effect['name']:<34}{_interval(effect['change'], 4)}")
    figures = ", figures/" if result.get("figures") else ""
    return "\n".join(
        [*lines, "", f"written to {result['output']}: report.html, statistics.json{figures}"]
    )


def _interval(estimate: dict[str, Any], digits: int) -> str:
    text = f"{estimate['mean']:+.{digits}g}"
    if estimate["low"] is not None:
        text += f" [{estimate['low']:+.{digits}g}, {estimate['high']:+.{digits}g}]"
    plural = "" if estimate["n"] == 1 else "s"
    return f"{text} over {estimate['n']} {estimate['per']}{plural}"


def _run(settings: InterpretConfig, target: Path, output: Path | None = None) -> dict[str, Any]:
    """Measure one run and write its files into `output`, or where settings say.

    With `output`, in a sweep, a run without oscillators is a baseline: it has a loss and no files.
    """
    from phasegpt.analysis.report import run_page
    from phasegpt.core.files import check_output, write_json, write_output
    from phasegpt.interpretation import run_figures
    from phasegpt.interpretation.synchronization import estimate, measure
    from phasegpt.interpretation.tracing import token_losses
    from phasegpt.interpretation.views import view
    from phasegpt.model.checkpoint import run_folder

    loaded, ids_BT, about = _looked_at(settings, target)
    model, folder = loaded.model, run_folder(loaded.path)
    if output is not None and not model.oscillators:
        return {**about, "loss": estimate(token_losses(model, ids_BT)), "reason": "no oscillators"}
    output = output or _output(settings, loaded)
    for name in ("statistics.json", "report.html", *["figures/x.png"] * settings.figures):
        check_output(output / name)
    measured = measure(
        model,
        ids_BT,
        layers=settings.layers,
        effects=settings.interventions,
        seed=settings.seed,
    )
    statistics = {**about, **measured.statistics}
    page = run_page(statistics, view(measured, loaded.tokenizer), folder, loaded.config)
    with _printed_if_lost({**statistics, "output": output}):
        write_json(output / "statistics.json", statistics)
        write_output(output / "report.html", page.encode())
        drawn = run_figures.draw(measured, output / "figures") if settings.figures else []
    return {**statistics, "output": str(output), "figures": [p.name for p in drawn]}


def _vocabulary(settings: InterpretConfig, target: Path) -> dict[str, Any]:
    """Measure the tokens that one run finds least likely, and write tokens.json and tokens.csv."""
    import numpy as np

    from phasegpt.cli import is_training_text, training_corpus
    from phasegpt.core.files import check_output, write_json, write_output
    from phasegpt.interpretation.anomalous import anomalous_tokens, to_csv

    loaded, ids_BT, about = _looked_at(settings, target)
    output = _output(settings, loaded)
    for name in ("tokens.json", "tokens.csv"):
        check_output(output / name)
    counts_V = None
    if loaded.config is not None:
        corpus = training_corpus(loaded, settings.data_path, settings.cache_dir, as_documents=True)
        known = is_training_text(loaded, corpus)
        if known or (known is None and settings.data_path is None):
            counts_V = np.bincount(corpus.split("train"), minlength=loaded.tokenizer.vocab_size)
    found = anomalous_tokens(
        loaded.model,
        ids_BT[:, :-1],
        loaded.tokenizer,
        repeat=settings.repeat,
        counts_V=counts_V,
        rows=settings.rows,
    )
    with _printed_if_lost({**about, **found, "output": output}):
        write_json(output / "tokens.json", {**about, **found})
        write_output(output / "tokens.csv", to_csv(found).encode())
    return {**about, **found, "output": str(output)}


@contextmanager
def _printed_if_lost(result: dict[str, Any]) -> Iterator[None]:
    """Print a result whose files the block could not write."""
    try:
        with writing(result["output"]):
            yield
    except UserError:
        show(table(result).rpartition("\nwritten to ")[0])
        raise


def _looked_at(settings: InterpretConfig, target: Path) -> tuple[Loaded, Tensor, dict[str, Any]]:
    """A run on its device, the tokens to look at, [B,T+1], and what they are."""
    from phasegpt.cli import device
    from phasegpt.core.eval_mode import inference
    from phasegpt.model.loading import load_run
    from phasegpt.model.scoring import UNITS

    chosen = device(settings.device)
    loaded = load_run(target, settings.which)
    loaded.model.to(chosen)
    ids_BT, source, ours = _windows(settings, loaded)
    with inference(loaded.model):
        logits_BTV = loaded.model(ids_BT[:1, :-1].to(chosen)).logits
    if not logits_BTV.isfinite().all():
        raise CheckpointError(
            f"{loaded.path} is not finite: on {source} the model gives NaN or infinity, so there "
            f"is nothing to measure; give an earlier checkpoint"
        )
    about: dict[str, Any] = {
        "checkpoint": os.path.relpath(loaded.path),
        "sha256": loaded.sha256,
        "source": source,
        "training_text": ours,
        "unit": UNITS[loaded.tokenizer.name],
    }
    return loaded, ids_BT, about


def _output(settings: InterpretConfig, loaded: Loaded) -> Path:
    """Where the files of one run go."""
    from phasegpt.model.checkpoint import run_folder

    if settings.output is not None:
        return expand(settings.output)
    return (Path() if loaded.path.is_dir() else run_folder(loaded.path)) / "interpretation"


def _sweep(settings: InterpretConfig, target: Path, runs: list[Path]) -> dict[str, Any]:
    """Measure every run under `target`; those that cannot be are named with the reason."""
    from phasegpt.analysis.report import sweep_page, sweep_row
    from phasegpt.core.files import check_output, write_json, write_output

    output = expand(settings.output) if settings.output else target / "interpretation"
    for name in ("statistics.json", "report.html"):
        check_output(output / name)
    results: dict[str, Any] = {}
    rows = []
    for run in runs:
        own = output / run.name if settings.output else run / "interpretation"
        sys.stderr.write(f"{run.name}\n")
        try:
            result = _run(settings, run, own)
        except UserError as error:
            failed = error
            result = {"reason": str(error)}
        written = result.pop("output", None)
        results[run.name] = result
        link = None
        if written is not None:
            link = urllib.parse.quote(os.path.relpath(own / "report.html", output))
        rows.append(sweep_row(run.name, result, run, link=link))
    if not any("loss" in result for result in results.values()):
        raise failed
    with _printed_if_lost({"runs": results, "output": output}):
        write_json(output / "statistics.json", {"runs": results})
        write_output(output / "report.html", sweep_page(target.resolve().name, rows).encode())
    return {"runs": results, "output": str(output)}


def token_windows(settings: InterpretConfig, loaded: Loaded) -> tuple[Tensor, str]:
    """The tokens to look at, [B,T+1], and what they are."""
    return _windows(settings, loaded)[:2]


def _windows(settings: InterpretConfig, loaded: Loaded) -> tuple[Tensor, str, bool | None]:
    """token_windows, and whether they are of the text of the training (None: not known)."""
    import numpy as np
    import torch

    from phasegpt.cli import is_training_text, training_corpus
    from phasegpt.model.scoring import check_windows

    ours, begins = None, None
    block = loaded.model.config.block_size
    if settings.text is not None:
        tokens, source = loaded.tokenizer.encode(settings.text), "the given text"
        context = settings.context or min(block, len(tokens) - 1)
        sequences = max(1, (len(tokens) - 1) // max(1, context))
    else:
        corpus = training_corpus(loaded, settings.data_path, settings.cache_dir, as_documents=True)
        split = "val" if settings.split in (None, "validation") else settings.split
        tokens, source = corpus.split(split), f"split {split} of {corpus.meta['corpus']}"
        ours = is_training_text(loaded, corpus)
        if ours is False:
            source += " (OTHER TEXT: not that of the training)"
        context = settings.context or min(block, max(1, settings.tokens // 8), len(tokens) - 1)
        if (documents := corpus.documents.get(split)) is not None:
            lengths = np.diff(documents, append=len(tokens))
            if settings.context is None:  # of which there are 8 documents, or as many as there are
                context = min(context, int(np.sort(lengths)[-8:][0]) - 1)
            begins, source = documents[lengths > context], f"documents of the {source}"
        most = (len(tokens) - 1) // max(1, context) if begins is None else len(begins)
        sequences = max(1, min(settings.tokens // max(1, context), most))
    if begins is not None and (context < 1 or not len(begins)):
        raise ConfigError(
            f"the longest of the {source} has {lengths.max()} tokens; a sequence of context="
            f"{max(1, context)} needs {max(1, context) + 1}, the last as a target"
        )
    if len(tokens) < context + 1 or context < 1:
        raise ConfigError(
            f"{source} has {len(tokens)} tokens; a sequence of context={max(1, context)} needs "
            f"{max(1, context) + 1}, the last as a target"
        )
    check_windows(loaded.model, context=context, stride=context)
    last = len(tokens) - 1 - context
    starts = np.linspace(0, last, sequences).astype(np.int64)
    if settings.text is not None:
        starts = np.arange(sequences) * context
    if begins is not None:  # each is the beginning of a document
        starts = begins[np.linspace(0, len(begins) - 1, sequences).astype(np.int64)]
    windows = np.asarray(tokens)[starts[:, None] + np.arange(context + 1)]
    return torch.from_numpy(windows.astype(np.int64)), source, ours


if __name__ == "__main__":
    from phasegpt.cli import launch

    literal = ("checkpoint", "text", "repeat", "data_path", "cache_dir", "output")
    launch(main, *literal, config_name="interpret")
