"""Your own files, byte pairs trained on them, and two seeds of two attentions in a table.

Needs the extra hf. A sweep of this kind at the quickstart's size:
python -m phasegpt.train -m +experiment=quickstart data=text
data.path=my_text data.tokenizer=bpe data.vocab_size=300 attention=softmax,kuramoto seed=1,2
"""

import json
import random
from pathlib import Path

import phasegpt

# A folder of text, in any of the forms that data=text reads.
words = "the phases of two tokens meet and part while a third one waits for them"
lines = [" ".join(random.Random(i).choices(words.split(), k=9)) + "." for i in range(800)]
Path("my_text").mkdir()
Path("my_text/a.txt").write_text("\n".join(lines[:400]) + "\n")
documents = [json.dumps({"text": line}) for line in lines[400:]]
Path("my_text/b.jsonl").write_text("\n".join(documents))

text = ["data=text", "data.path=my_text", "data.tokenizer=bpe", "data.vocab_size=300"]
text += ["data.batch_size=8", "data.cache_dir=cache"]
small = ["model=nano", "model.n_layer=2", "model.block_size=64", "attention.layers=[1]"]
short = ["trainer=cpu", "trainer.max_steps=10", "trainer.val_check_interval=10"]
quiet = ["callbacks.progress_bar=false", "callbacks.sample_text.max_new_tokens=0"]
rows = []
for attention in ("softmax", "kuramoto"):
    for seed in (1, 2):
        chosen = [f"attention={attention}", f"seed={seed}"]
        overrides = ["+experiment=quickstart", *chosen, *text, *small, *short, *quiet]
        record = phasegpt.fit(phasegpt.compose(overrides), f"runs/{attention}-{seed}")
        rows.append((attention, seed, record["final"]["val/ppl"], record["final"]["val/bpb"]))

print("attention  seed  perplexity  bits per byte")
for attention, seed, perplexity, bits in rows:
    print(f"{attention:<9}  {seed:>4}  {perplexity:>10.2f}  {bits:>13.3f}")
