"""Train one small model with AdamW and with Muon, with the same steps.

optimizer=NAME takes any file of conf/optimizer. To compare them, sweep optimizer.lr and seed.
"""

import phasegpt

small = ["model=nano", "model.n_layer=2", "data.batch_size=8", "attention.layers=[1]"]
short = ["trainer=cpu", "trainer.max_steps=40", "trainer.val_check_interval=40"]
quiet = ["callbacks.sample_text.max_new_tokens=0", "callbacks.progress_bar=false"]

losses = {}
for name, rate in {"adamw": 3e-3, "muon": 1e-2}.items():
    rates = [f"optimizer={name}", f"optimizer.lr={rate}", "optimizer.warmup_steps=10"]
    cfg = phasegpt.compose(["+experiment=quickstart", *small, *short, *quiet, *rates])
    record = phasegpt.fit(cfg, f"runs/{name}")
    losses[name] = record["final"]["val/loss"]

for name, loss in losses.items():
    print(f"{name}: {loss:.3f} nats per character after 40 steps")
