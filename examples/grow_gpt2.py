"""Grow oscillators into a GPT-2: first its own logits, then a short finetuning. Needs the extra hf.

The GPT-2 here is a small random one, so that nothing is downloaded; "gpt2" in place of the folder
is the published one (then layers=[7], and ids of its own tokenizer). A whole run with the published
weights in FOLDER:

    python -m phasegpt.train +experiment=finetune_gpt2 init_from=FOLDER
"""

import torch
from transformers import GPT2Config, GPT2LMHeadModel

import phasegpt

torch.manual_seed(0)
shape = {"n_layer": 4, "n_head": 2, "n_embd": 128, "n_positions": 64, "vocab_size": 256}
theirs = GPT2LMHeadModel(GPT2Config(**shape, bos_token_id=0, eos_token_id=0)).eval()
theirs.save_pretrained("small_gpt2")

# At beta=0 the phases are there and bias no logit, so the model is the GPT-2 it was grown from.
model = phasegpt.GPT.from_hf("small_gpt2", "kuramoto", layers=[2], beta=0.0, num_oscillators=8)
text = b"the order parameter of a population of coupled oscillators grows with their coupling " * 20
ids_BT = torch.tensor(list(text[:1024])).view(16, 64)
with torch.no_grad():
    out = model(ids_BT, return_phase=True)
    far = (out.logits - theirs(ids_BT).logits).abs().max()
print(f"largest difference of a logit: {far:.1e}; R = {out.phase[2].R.mean():.3f}")

# What is new learns faster than what GPT-2 brings.
attention = model.blocks[2].attn
new = [*attention.oscillators.parameters(), attention.beta]
old = [p for p in model.parameters() if all(p is not other for other in new)]
optimizer = torch.optim.AdamW([{"params": old, "lr": 3e-4}, {"params": new, "lr": 3e-3}])
for step in range(31):
    logits = model(ids_BT[:, :-1]).logits
    loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), ids_BT[:, 1:].flatten())
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    if step % 10 == 0:
        print(f"step {step:2}: loss {loss:.3f}, beta {attention.beta.mean():+.4f}")
