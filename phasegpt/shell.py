"""What the commands share: errors as short messages, exit codes, absolute paths.

A command is a thin hydra.main over a plain function; only this layer and config know Hydra.
"""

from __future__ import annotations

import sys
import traceback
from collections.abc import Callable
from typing import Any

from phasegpt.errors import UserError

_MAX_LINES = 18


def guarded(function: Callable[[], Any], *, debug: bool = False) -> Any:
    """Call `function`; a UserError is printed as its message and ends the process.

    With `debug` the traceback is shown too. In a multirun the error goes on to Hydra, which
    runs the other jobs and then fails.
    """
    try:
        return function()
    except UserError as error:
        if debug:
            traceback.print_exc()
        lines = f"{type(error).__name__}: {error}".splitlines()
        print("\n".join(lines[:_MAX_LINES]), file=sys.stderr)
        if _multirun():
            raise
        sys.exit(error.exit_code)


def _multirun() -> bool:
    from hydra.core.hydra_config import HydraConfig
    from hydra.types import RunMode

    return HydraConfig.initialized() and HydraConfig.get().mode == RunMode.MULTIRUN
