"""PhaseGPT: GPT-2 with Kuramoto phase-coupled attention.

`import phasegpt` is light and compiles nothing; what it offers is imported on first use:

    cfg = phasegpt.compose(["+experiment=quickstart", "attention.coupling=0.5"])
    model = phasegpt.build(cfg)                   # fresh weights, in training mode; no data is read
    out = model(idx_BT, return_phase=True)        # out.logits, out.phase[2].theta, .R
    record = phasegpt.fit(cfg, "runs/mine")       # train; what run.json holds
    model = phasegpt.load("runs/mine", which="best")     # in eval mode
    model = phasegpt.GPT.from_hf("gpt2")          # published weights, in eval mode
    lit, data = phasegpt.lightning(cfg)           # for a Lightning Trainer of your own
    rows = phasegpt.ops.kuramoto_rows(theta0_BTHN, omega_HN, coupling_H, steps=10, dt=0.1)
"""

from __future__ import annotations

import importlib
import os
import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from phasegpt import ops
    from phasegpt.core.composition import compose
    from phasegpt.model.gpt import GPT
    from phasegpt.model.loading import load
    from phasegpt.training.assemble import lightning
    from phasegpt.training.config import build
    from phasegpt.training.run import fit

# OpenMP's threads spin at barriers, which on a shared machine costs most of the speed; asleep at
# once they cost a fifth of a quiet one with small models. So they spin for a moment, then sleep.
# It is read when torch is loaded, and changes no number.
if "torch" not in sys.modules and not any(
    name.startswith(("OMP_", "GOMP_", "KMP_", "MKL_")) for name in os.environ
):
    os.environ |= {"OMP_WAIT_POLICY": "passive", "GOMP_SPINCOUNT": "2000"}

__version__ = "0.2.0"
__all__ = ["GPT", "__version__", "build", "compose", "fit", "lightning", "load", "ops"]

_HOMES = {
    "GPT": "phasegpt.model.gpt",
    "build": "phasegpt.training.config",
    "compose": "phasegpt.core.composition",
    "fit": "phasegpt.training.run",
    "load": "phasegpt.model.loading",
    "lightning": "phasegpt.training.assemble",
}


def __getattr__(name: str) -> Any:
    if name == "ops":
        return importlib.import_module("phasegpt.ops")
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'phasegpt' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
