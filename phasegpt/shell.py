"""What the commands share: errors as short messages, exit codes, literal values, devices.

A command is a thin hydra.main over a plain function; only this layer and config know Hydra.
"""

from __future__ import annotations

import os
import re
import signal
import sys
import traceback
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from phasegpt.config import misspelt
from phasegpt.errors import ConfigError, UserError

if TYPE_CHECKING:
    import torch

_MAX_LINES = 18


def guarded(function: Callable[[], Any], *, debug: bool = False) -> Any:
    """Call `function`; a UserError is printed as its message and ends the process.

    With `debug` the traceback is shown too. In a multirun the error goes on to Hydra, in the form
    that it shows in short; Hydra runs the other jobs and then fails. Ctrl-C, and a reader of our
    output that has gone, end the process quietly.
    """
    try:
        return function()
    except UserError as error:
        if debug:
            traceback.print_exc()
        lines = f"{type(error).__name__}: {error}".splitlines()
        sys.stderr.write("\n".join(lines[:_MAX_LINES]) + "\n")
        if _multirun():
            from hydra.errors import CompactHydraException

            raise CompactHydraException(f"a job failed: {error}") from None
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        if debug:
            traceback.print_exc()
        sys.stderr.write("\nstopped\n")
        sys.exit(128 + signal.SIGINT)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(128 + signal.SIGPIPE)


def launch(main: Callable[[], Any], *keys: str, config_name: str) -> None:
    """Run a hydra.main with the values of `keys` taken literally (see literal).

    Where Hydra refuses the command line for a misspelt key, the nearest key is named too.
    """
    sys.argv[1:] = literal(sys.argv[1:], *keys)
    try:
        main()
    except SystemExit as error:
        if error.code == 1:
            sys.stderr.writelines(f"{line}\n" for line in misspelt(sys.argv[1:], config_name))
        raise


def literal(arguments: Sequence[str], *keys: str) -> list[str]:
    """Command-line arguments with the values of `keys` quoted, so that Hydra reads them as text.

    Hydra gives commas, quotes, brackets, '=', '$' and line breaks a meaning; in a prompt or a
    path they have none. `null` stays null, and a multirun keeps Hydra's grammar for its sweeps.
    """
    from hydra.core.override_parser.types import Quote, QuotedString

    if {"-m", "--multirun"} & set(arguments):
        return list(arguments)

    def quoted(argument: str) -> str:
        key, sign, value = argument.partition("=")
        if not sign or key not in keys or value == "null":
            return argument
        value = re.sub(r"(\\*)\$\{", r"\1\1\\${", value)  # no interpolation
        return f"{key}={QuotedString(value, Quote.single).with_quotes()}"

    return [quoted(argument) for argument in arguments]


def chosen_checkpoint(value: str | None) -> str:
    """`value`, or ConfigError where the user named no checkpoint."""
    if not value:
        raise ConfigError(
            "checkpoint is not set; give checkpoint=RUN, a run folder, a .ckpt file or an "
            "exported folder"
        )
    return value


def device(name: str) -> torch.device:
    """The device `name`: cpu, cuda, or auto (cuda where there is one). Raises ConfigError."""
    import torch

    there = torch.cuda.is_available()
    if name == "cuda" and not there:
        raise ConfigError("device=cuda, but torch sees no GPU here; use device=cpu or device=auto")
    return torch.device("cuda" if there and name != "cpu" else "cpu")


def _multirun() -> bool:
    from hydra.core.hydra_config import HydraConfig
    from hydra.types import RunMode

    return HydraConfig.initialized() and HydraConfig.get().mode == RunMode.MULTIRUN
