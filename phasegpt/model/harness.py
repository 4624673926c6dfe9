"""A trained model on tasks of EleutherAI's lm-evaluation-harness, lm-eval (extra eval).

The model goes through the folder that `python -m phasegpt.export` writes, so that these are the
numbers of `lm_eval --model hf --model_args pretrained=FOLDER,...`. lm-eval puts the prefix token
in front of a text and scores all of it, in windows as long as the model's context; `evaluate`
has nothing to put there and begins with the second token.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from phasegpt.core.errors import ConfigError, DataError
from phasegpt.core.sections import unknown
from phasegpt.data.hf_tokenizers import prefix_token
from phasegpt.model import exported
from phasegpt.model.hf_folder import hf_contents
from phasegpt.model.loaded import Loaded


def check_tasks(tasks: Sequence[str]) -> None:
    """ConfigError without the package, and for a YAML file that is not there."""
    try:
        import lm_eval  # noqa: F401
    except ImportError as error:
        raise ConfigError(
            f"tasks={','.join(tasks):.200} needs lm-eval, which is not here ({error}): pip install "
            f"'phasegpt[eval]'"
        ) from error
    for task in tasks:
        if _is_file(task) and not Path(task).is_file():
            raise ConfigError(f"tasks: {task:.300} does not exist; give a task's YAML, or its name")


def _is_file(task: str) -> bool:
    return task.endswith((".yaml", ".yml"))


def run_tasks(
    loaded: Loaded,
    tasks: Sequence[str],
    *,
    num_fewshot: int | None,
    limit: int | None,
    batch_size: int,
    device: str,
) -> dict[str, Any]:
    """What lm-eval finds, by task: `results`, `n-shot`, `n-samples` and `versions`.

    tasks: lm-eval's names, or paths of YAML files. Raises ConfigError and DataError.
    """
    check_tasks(tasks)
    if loaded.model.leaky:
        raise ConfigError(
            f"this model sees the future (attention={loaded.model.config.attention}), and lm-eval "
            f"puts padding there; leave tasks out, to score a split"
        )
    from lm_eval import simple_evaluate
    from lm_eval.tasks import TaskManager

    import phasegpt.model.huggingface  # noqa: F401 (makes AutoModelForCausalLM know the folder)

    names = [task for task in tasks if not _is_file(task)]
    manager = TaskManager(include_defaults=bool(names))
    for name in names:
        if not manager.match_tasks([name]):
            raise ConfigError(unknown(f"tasks={name}", [f"tasks={n}" for n in manager.all_tasks]))
    arguments = {"backend": "causal", "prefix_token_id": prefix_token(loaded.tokenizer)}
    with tempfile.TemporaryDirectory() as folder:
        exported.write_folder(Path(folder), hf_contents(loaded, licence="other"))
        try:
            found = simple_evaluate(
                "hf",
                {**arguments, "pretrained": folder},
                tasks=[*tasks],
                num_fewshot=num_fewshot,
                limit=limit,
                batch_size=batch_size,
                device=device,
                task_manager=manager,
                log_samples=False,
            )
        except Exception as error:  # of the task's files, its data, the tokens, the network
            kind = loaded.tokenizer.name
            end = (
                ""
                if kind == "gpt2"
                else f" (to generate, a task needs an end token: {kind} has none)"
            )
            raise DataError(
                f"lm-eval cannot run tasks={','.join(tasks):.200}: {type(error).__name__}: "
                f"{error!s:.500}{end}; debug=true shows where"
            ) from error
    kept = ("results", "groups", "n-shot", "n-samples", "versions")
    return json.loads(json.dumps({key: found[key] for key in kept if key in found}, default=str))
