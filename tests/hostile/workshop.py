"""A tiny finished run, its export and its text: what hostile cases work on, in copies."""

from __future__ import annotations

import shutil
from pathlib import Path

import phasegpt
from phasegpt.core.composition import compose
from phasegpt.model import loading

TINY = [
    *("model=nano", "model.n_layer=2", "model.n_head=2", "model.n_embd=16", "model.block_size=16"),
    *("attention.layers=[1]", "attention.num_oscillators=4", "attention.steps=2"),
    *("data=text", "data.batch_size=2", "trainer=cpu", "trainer.max_steps=2"),
    *("trainer.val_check_interval=2", "trainer.log_every_n_steps=1", "optimizer.warmup_steps=1"),
    *("callbacks.progress_bar=false", "callbacks.phase_monitor.every_n_steps=1", "compile=false"),
    "callbacks.sample_text.max_new_tokens=2",
]


class Workshop:
    """A finished tiny run, its export, its text, and room for copies of them."""

    def __init__(self, folder: Path) -> None:
        self.folder, self._count = folder, 0
        folder.mkdir(parents=True, exist_ok=True)
        self.text = folder / "text.txt"
        self.text.write_text("To be, or not to be, that is the question.\n" * 60)
        self.words = [*TINY, f"data.path={self.text}", f"data.cache_dir={folder / 'cache'}"]
        self.run = folder / "run"
        if not (self.run / "run.json").is_file():
            phasegpt.fit(compose(self.words), self.run)
        self.export = folder / "export"
        if not self.export.is_dir():
            loading.export(self.run, self.export)
        self.model = loading.load_run(self.run).model

    def room(self) -> Path:
        """A new, empty folder."""
        self._count += 1
        path = self.folder / "rooms" / str(self._count)
        path.mkdir(parents=True)
        return path

    def copy(self, what: Path) -> Path:
        """A copy to spoil."""
        target = self.room() / what.name
        if what.is_dir():
            shutil.copytree(what, target, symlinks=True)
        else:
            shutil.copy(what, target)
        return target
