"""What the commands share: errors as short messages, exit codes, literal values, devices, files.

A command is a thin hydra.main over a plain function; only this layer and config know Hydra.
"""

from __future__ import annotations

import os
import re
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from phasegpt.core import modules
from phasegpt.core.composition import (
    RUN_DIR,
    check_config_dir,
    check_groups,
    check_run_dir,
    expanded,
    help_page,
    misspelt,
    offer_mechanisms,
)
from phasegpt.core.errors import (
    CheckpointError,
    ConfigError,
    DataError,
    Interrupted,
    ProcessFailed,
    UserError,
)
from phasegpt.training import ranks

if TYPE_CHECKING:
    import torch

    from phasegpt.data.corpus import Corpus
    from phasegpt.model.loaded import Loaded

_MAX_LINES = 18


def guarded(function: Callable[[], Any], *, debug: bool = False) -> Any:
    """Call `function`; a UserError is printed as its message and ends the process.

    With `debug` the traceback is shown too. In a multirun any error goes on to Hydra, in the form
    that it shows in short; Hydra runs the other jobs and then fails. Ctrl-C, SIGTERM, and a reader
    of our output that has gone, end the process quietly.
    """
    try:
        return function()
    except UserError as error:
        if debug:
            traceback.print_exc()
        if isinstance(error, ProcessFailed):  # the launcher ends us now, which is no news
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
        if ranks.said_by_others(error):
            sys.exit(error.exit_code if isinstance(error, ProcessFailed) else 0)
        lines = f"{type(error).__name__}: {error}".splitlines()
        sys.stderr.write("\n".join(lines[:_MAX_LINES]) + "\n")
        if not _multirun() or isinstance(error, Interrupted):
            sys.exit(error.exit_code)
        failure = str(error)
    except KeyboardInterrupt:
        if debug:
            traceback.print_exc()
        sys.stderr.write("\nstopped\n")
        sys.exit(128 + signal.SIGINT)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(128 + signal.SIGPIPE)
    except Exception as error:
        # What the machine refuses, such as a folder that we may not look into, has a name.
        refused = isinstance(error, OSError) and error.filename is not None
        if not refused and not _multirun():
            raise
        if debug or not refused:
            traceback.print_exc()
        if isinstance(error, OSError) and refused:
            sys.stderr.write(f"{type(error).__name__}: {_refused(error)}\n")
            if not _multirun():
                sys.exit(UserError.exit_code)
        failure = f"{type(error).__name__}: {error}"
    from hydra.errors import CompactHydraException

    # Raised out here: Hydra keeps it until the end, and with its context the failed job's tensors.
    raise CompactHydraException(f"a job failed: {failure}")


def _refused(error: OSError) -> str:
    """What the operating system refused, of which path, in one line."""
    return f"{error.strerror}: {error.filename!s:.300}; mend its rights, or choose another place"


def launch(
    main: Callable[[], Any],
    *keys: str,
    paths: Sequence[str] = (),
    config_name: str,
    after: Callable[[], int] = lambda: 0,
) -> None:
    """Run a hydra.main with the values of `keys` taken literally, and `paths` (see literal).

    Where Hydra refuses the command line for a misspelt key, the nearest key is named too. `after`
    is called once main has ended, by an error too, and returns a status of its own.
    """
    if sys.argv[1:] in (["--help"], ["-h"]):
        sys.stdout.write(help_page(config_name) + "\n")
        return
    if threading.current_thread() is threading.main_thread() and not ranks.follows():
        # So that what is half done is cleaned up; a training puts its own in place.
        signal.signal(signal.SIGTERM, lambda signum, frame: sys.exit(128 + signum))
    sys.argv[1:] = literal(sys.argv[1:], *keys, paths=paths)
    config_dir = guarded(lambda: _prepared(sys.argv[1:]))
    if RUN_DIR in paths:
        guarded(lambda: check_run_dir(sys.argv[1:]))
    sys.argv[1:] = expanded(sys.argv[1:])
    code: Any = 0
    try:
        main()
    except SystemExit as error:
        code = error.code
        if code == 1:
            near = misspelt(sys.argv[1:], config_name, config_dir)
            sys.stderr.writelines(f"{line}\n" for line in near)
    except KeyboardInterrupt:
        sys.stderr.write("\nstopped\n")
        code = 128 + signal.SIGINT
    undone = after()
    code = code or undone
    if code:
        sys.exit(code)


def _prepared(words: Sequence[str]) -> Path | None:
    """Check a command line before Hydra reads it, and offer what it names; its --config-dir."""
    from hydra._internal.utils import get_args_parser

    check_groups(words)
    offer_mechanisms(words)
    folder = get_args_parser().parse_known_args(words)[0].config_dir
    # One that is not there is Hydra's to refuse.
    return check_config_dir(Path(folder)) if folder and os.path.isdir(folder) else None


def literal(arguments: Sequence[str], *keys: str, paths: Sequence[str] = ()) -> list[str]:
    """Command-line arguments with the values of `keys` quoted, so that Hydra reads them as text.

    Hydra gives commas, quotes, brackets, '=', '$' and line breaks a meaning; in a prompt or a
    path they have none. `null` stays null, and a multirun keeps Hydra's grammar for its sweeps.
    Those of `paths` are quoted too, but for true, false, what has quotes already, and ${...}.
    """
    from hydra.core.override_parser.types import Quote, QuotedString

    if {"-m", "--multirun"} & set(arguments):
        return list(arguments)

    def quoted(argument: str) -> str:
        key, sign, value = argument.partition("=")
        if not sign or key not in (*keys, *paths) or value == "null":
            return argument
        if key in paths and (value in ("", "true", "false") or value[0] in "'\"" or "${" in value):
            return argument
        value = re.sub(r"(\\*)\$\{", r"\1\1\\${", value)  # no interpolation
        return f"{key}={QuotedString(value, Quote.single).with_quotes()}"

    return [quoted(argument) for argument in arguments]


def chosen_checkpoint(value: str | None, imports: str | Sequence[str] = ()) -> str:
    """`value`, or ConfigError where the user named no checkpoint.

    `imports`: modules that the user has named to be imported, one of them that of its attention.
    ConfigError where one cannot be.
    """
    if not value:
        raise ConfigError(
            "checkpoint is not set; give checkpoint=RUN, a run folder, a .ckpt file or an "
            "exported folder"
        )
    for name in (imports,) if isinstance(imports, str) else imports:
        modules.imported(name, "imports")
    return value


def device(name: str) -> torch.device:
    """The device `name`: cpu, cuda, or auto (cuda where there is one). Raises ConfigError."""
    import torch

    there = torch.cuda.is_available()
    if name == "cuda" and not there:
        raise ConfigError("device=cuda, but torch sees no GPU here; use device=cpu or device=auto")
    return torch.device("cuda" if there and name != "cpu" else "cpu")


def training_corpus(
    loaded: Loaded, data_path: str | None, cache_dir: str | None, *, as_documents: bool = False
) -> Corpus:
    """The corpus that the checkpoint was trained on, in the checkpoint's own tokens.

    For what reads a split as one text, a model of single documents is a ConfigError; callers that
    heed `Corpus.documents`, or no order at all, say `as_documents`.

    `data_path` is another place of the text, or another text on purpose (see is_training_text),
    read as data=text reads it; without it a text that changed since the training is a DataError.
    `cache_dir` is another token cache. Raises CheckpointError where the checkpoint does not know
    its text, ConfigError, DataError.
    """
    from phasegpt.data.config import WITH_PATH, DataConfig, DataSection
    from phasegpt.data.corpus import prepare

    if loaded.config is None:
        raise CheckpointError(
            f"{loaded.path} has no run.json, so the text it was trained on is not known; "
            f"evaluate the run that it was exported from"
        )
    try:
        data = DataSection.parse(loaded.config["data"])
    except (LookupError, TypeError, ConfigError) as error:
        raise CheckpointError(f"{loaded.path} does not say what text it had: {error}") from error
    if not isinstance(data, DataConfig):
        raise ConfigError(
            f"{loaded.path} was trained on the generated task data={data.corpus}, which is no "
            f"text; this is for models of text"
        )
    if data.documents and not as_documents:
        raise ConfigError(
            f"{loaded.path} was trained on single documents (data.documents=true), and this reads "
            f"a split as one text; give a text of your own where that is an option, or use a model "
            f"trained without data.documents"
        )
    if data_path is not None:
        kind = data.corpus if data.corpus in WITH_PATH else "text"
        data = replace(data, corpus=kind, path=data_path, variant=None, name=None, subset=None)
    # What a checkpoint names is read, if it is there, and never written to.
    stored = data.cache_dir if cache_dir is None else None
    data = replace(data, cache_dir=cache_dir)
    corpus = prepare(data, other_cache=stored, tokenizer=loaded.tokenizer)
    if data_path is None and is_training_text(loaded, corpus) is False:
        place = f"data.path={data.path}" if data.path else data.name or data.corpus
        raise DataError(
            f"the text of {place} is not the one that the model was trained with (fingerprint "
            f"{corpus.fingerprint}, then {loaded.data_fingerprint}); put the old text back, or "
            f"give data_path=FILE to use another text on purpose"
        )
    return corpus


def is_training_text(loaded: Loaded, corpus: Corpus) -> bool | None:
    """Whether `corpus` is what the model was trained and validated with; None: not recorded."""
    known = loaded.data_fingerprint
    return None if known is None else corpus.fingerprint == known


def _multirun() -> bool:
    from hydra.core.hydra_config import HydraConfig
    from hydra.types import RunMode

    return HydraConfig.initialized() and HydraConfig.get().mode == RunMode.MULTIRUN
