"""Lightning callbacks: one of one's own and EarlyStopping as arguments of fit, and by name.

`callbacks.extra` does from a command line what the argument does here:
python -m phasegpt.train '+callbacks.extra=[{_target_: my.module.MyCallback, key: 1}]'
"""

from pytorch_lightning.callbacks import Callback, EarlyStopping

import phasegpt


class Perplexities(Callback):
    """Collects what every validation found; a checkpoint keeps it, so that a resumed run has it."""

    def __init__(self) -> None:
        self.found: list[float] = []

    def on_validation_end(self, trainer, pl_module) -> None:
        self.found.append(round(trainer.callback_metrics["val/ppl"].item(), 1))

    def state_dict(self) -> dict:
        return {"found": self.found}

    def load_state_dict(self, state_dict: dict) -> None:
        self.found = state_dict["found"]


small = ["model=nano", "model.n_layer=2", "data.batch_size=4", "attention.layers=[1]"]
short = ["trainer=cpu", "trainer.max_steps=60", "trainer.val_check_interval=10"]
# limit_val_batches marks a run as a smoke run, which no table takes in: not for results.
words = ["+experiment=quickstart", *small, *short, "trainer.limit_val_batches=4"]

stop = EarlyStopping("val/loss", min_delta=0.21, patience=1)  # so strict that it stops here
seen = Perplexities()
record = phasegpt.fit(phasegpt.compose(words), "runs/callbacks", callbacks=[seen, stop])
print(f"stopped at step {record['step']} ({record['stopped']}); perplexities {seen.found}")

monitor = "{_target_: pytorch_lightning.callbacks.LearningRateMonitor, logging_interval: step}"
by_name = phasegpt.compose([*words, f"+callbacks.extra=[{monitor}]", "trainer.max_steps=20"])
record = phasegpt.fit(by_name, "runs/by_name")
print(f"{record['callbacks']} logged {[k for k in record['final'] if k.startswith('lr-')]}")
