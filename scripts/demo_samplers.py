"""Greedy decoding falls into a loop; a shock of the memory breaks it. Side by side in the terminal.

    python scripts/demo_samplers.py CHECKPOINT ["PROMPT"] [--tokens 240] [--scale 1.0] [--seed 1]

CHECKPOINT is a run folder, a .ckpt file or an exported folder of ours (`python -m phasegpt.train
+experiment=quickstart` makes one in about 90 s), or a Hugging Face folder or name. Both columns
take the likeliest token; the right one has its newest keys and Values shocked when 16 tokens are
repeated.
"""

import argparse
import shutil
import textwrap

from phasegpt.cli import guarded
from phasegpt.model import huggingface
from phasegpt.model.loading import is_ours, load_run
from phasegpt.samplers import KVShock, LoopDetector, decode


def columns(left: str, right: str) -> str:
    width = (shutil.get_terminal_size((100, 24)).columns - 3) // 2
    wrap = textwrap.TextWrapper(width, replace_whitespace=False, drop_whitespace=False)
    sides = [[piece for line in text.splitlines() for piece in wrap.wrap(line) or [""]]
             for text in (left, right)]  # fmt: skip
    rows = max(map(len, sides))
    padded = [side + [""] * (rows - len(side)) for side in sides]
    return "\n".join(f"{a:<{width}} | {b}" for a, b in zip(*padded, strict=True))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("checkpoint")
    parser.add_argument("prompt", nargs="?", default="The")
    parser.add_argument("--tokens", type=int, default=240)
    parser.add_argument("--scale", type=float, default=1.0)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    import torch

    if is_ours(options.checkpoint):
        loaded = load_run(options.checkpoint)
        model, tokenizer = loaded.model, loaded.tokenizer
    else:
        model, tokenizer = huggingface.load(options.checkpoint)
    ids = torch.as_tensor([[int(i) for i in tokenizer.encode(options.prompt)]])
    shock = KVShock(options.scale, detector=LoopDetector())
    arguments = {"max_new_tokens": options.tokens, "seeds": [options.seed], "greedy": True}
    greedy = decode(model, ids, **arguments)[0]
    shocked = decode(model, ids, intervention=shock, **arguments)[0]
    texts = [tokenizer.decode(row.tolist()) for row in (greedy, shocked)]
    loop = LoopDetector().first(greedy)
    titles = ["GREEDY: " + (f"loops from token {loop} on" if loop else "does not loop"),
              f"WITH SHOCKS: {len(shock.events)}, at tokens "
              + ", ".join(str(event.token) for event in shock.events)]  # fmt: skip
    print(columns("\n\n".join([titles[0], texts[0]]), "\n\n".join([titles[1], texts[1]])))


if __name__ == "__main__":
    guarded(main)
