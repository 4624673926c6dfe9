"""Read R(t), the order parameter of a run: over training, and over the steps of integration.

The same lines work in a notebook.
"""

import torch

import phasegpt
from phasegpt.training.run_folder import read_phases

small = ["model=nano", "model.n_layer=2", "attention.layers=all", "trainer=cpu"]
short = ["trainer.max_steps=40", "trainer.val_check_interval=20"]
cfg = phasegpt.compose(["+experiment=quickstart", *small, *short])
record = phasegpt.fit(cfg, "runs/read_r")
print(f"perplexity {record['final']['val/ppl']:.2f}")

phases = read_phases("runs/read_r")  # arrays by name, stacked over the validations
for step, R_HS in zip(phases["step"], phases["layer0/R_HS"], strict=True):
    path = " ".join(f"{R:.3f}" for R in R_HS.mean(axis=0))
    print(f"step {step}: R over the steps of integration, mean of the heads: {path}")

# Of one text: the phases of every token, and R of every token and head.
model = phasegpt.load("runs/read_r")
ids_T = torch.tensor(model.tokenizer.encode("the order parameter of a text"), dtype=torch.long)
out = model(ids_T[None], return_phase=True)
theta_BTHN, R_BTH = out.phase[0]
print(f"layer 0: theta {tuple(theta_BTHN.shape)}, R {R_BTH.min():.3f} to {R_BTH.max():.3f}")
