"""`python -m phasegpt.training.worker FILE`: a process that multiprocess.launch starts."""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import time
from pathlib import Path

import torch

from phasegpt.core.console import tell
from phasegpt.core.errors import UserError
from phasegpt.training.config import run_config
from phasegpt.training.ranks import hand_to_launcher, rank
from phasegpt.training.run import fit


def _main() -> None:
    """Fit what the file on the command line says; what goes wrong is handed to the launcher."""
    task = json.loads(Path(sys.argv[1]).read_text())
    threading.Thread(target=_end_with, args=(os.getppid(),), daemon=True).start()
    mine = rank()
    assert mine is not None
    if "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(max(1, torch.get_num_threads() // mine.per_node))
    try:
        fit(run_config(task["config"]), task["folder"])
    except UserError as error:
        hand_to_launcher(error)
        sys.exit(error.exit_code)


def _end_with(parent: int) -> None:
    """Stop, as a signal would, once the process that started this one is gone."""
    while os.getppid() == parent:
        time.sleep(1)
    tell("the process that started the run is gone")
    os.kill(os.getpid(), signal.SIGTERM)


if __name__ == "__main__":
    _main()
