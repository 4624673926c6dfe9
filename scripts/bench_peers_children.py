"""The peers of scripts/bench_peers.py that need a process of their own; each prints one JSON line.

python scripts/bench_peers_children.py hf_trainer IDS FROM LAYERS HEADS WIDTH CONTEXT BATCH STEPS
python scripts/bench_peers_children.py decode BATCH TOKENS
python scripts/bench_peers_children.py evaluate
"""

import json
import sys
import tempfile
import time


def hf_trainer(
    ids: str, begin: str, layers: str, heads: str, width: str, context: str, batch: str, steps: str
) -> dict[str, float]:
    """Seconds of a step of Hugging Face's Trainer, with its bar and a row of its log every 10."""
    import numpy as np
    import torch
    from transformers import (
        GPT2Config,
        GPT2LMHeadModel,
        Trainer,
        TrainerCallback,
        TrainingArguments,
    )

    tokens = torch.from_numpy(np.fromfile(ids, dtype=np.uint16).astype(np.int64))
    T = int(context)

    class Windows(torch.utils.data.Dataset):
        """Windows of T ids, one for each start."""

        def __len__(self) -> int:
            return len(tokens) - T

        def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
            window = tokens[index : index + T]
            return {"input_ids": window, "labels": window}

    class Watch(TrainerCallback):
        """The time of every step's end."""

        def __init__(self) -> None:
            self.ends: list[float] = []

        def on_step_end(self, *args: object, **kwargs: object) -> None:
            self.ends.append(time.perf_counter())

    config = GPT2Config(
        n_layer=int(layers), n_head=int(heads), n_embd=int(width), n_positions=T,
        vocab_size=int(tokens.max()) + 1, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0,
        bos_token_id=None, eos_token_id=None,
    )  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            output_dir=folder, max_steps=int(steps), per_device_train_batch_size=int(batch),
            learning_rate=6e-4, weight_decay=0.1, max_grad_norm=1.0, logging_steps=10,
            save_strategy="no", report_to="none", use_cpu=True,
        )  # fmt: skip
        watch = Watch()
        trainer = Trainer(GPT2LMHeadModel(config), arguments, train_dataset=Windows())
        trainer.add_callback(watch)
        trainer.train()
    first = int(begin)
    return {"seconds": (watch.ends[-1] - watch.ends[first]) / (len(watch.ends) - 1 - first)}


def decode(batch: str, tokens: str) -> dict[str, float]:
    """Seconds of a new token of every row: transformers' generate, then ours, on equal weights.

    `least_s`: of the products of all weights alone, without which no decoder is.
    """
    import torch
    from transformers import GPT2Config, GPT2LMHeadModel

    from phasegpt import GPT
    from phasegpt.samplers.loop import decode as ours

    torch.manual_seed(0)
    theirs = GPT2LMHeadModel(GPT2Config(bos_token_id=None, eos_token_id=None)).eval()
    with tempfile.TemporaryDirectory() as folder:
        theirs.save_pretrained(folder)
        model = GPT.from_hf(folder)
    prompt, new = torch.randint(50257, (int(batch), 10)), int(tokens)
    calls = {
        "peer_s": lambda n: theirs.generate(
            prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=n, do_sample=False
        ),
        "ours_s": lambda n: ours(model, prompt, max_new_tokens=n, seeds=None, greedy=True),
    }
    found, texts = {}, {}
    for name, call in calls.items():
        call(3)  # warm
        begin = time.perf_counter()
        texts[name] = call(new)
        found[name] = (time.perf_counter() - begin) / new
    if not torch.equal(texts["peer_s"], texts["ours_s"]):
        print("the two continuations differ", file=sys.stderr)
    tables = [w for name, w in model.named_parameters() if w.dim() == 2 and "wpe" not in name]
    inputs = [torch.randn(int(batch), w.shape[1]) for w in tables]
    with torch.inference_mode():
        for _ in range(2):  # the first is a warm-up
            begin = time.perf_counter()
            for _ in range(new):
                for w, x in zip(tables, inputs, strict=True):
                    torch.nn.functional.linear(x, w)
            found["least_s"] = (time.perf_counter() - begin) / new
    return found | {"bytes": sum(w.nbytes for w in tables)}


def evaluate() -> dict[str, float]:
    """Seconds of scoring a validation split, and of its forward passes alone."""
    import torch

    import phasegpt
    from phasegpt.core.eval_mode import inference
    from phasegpt.data.corpus import prepare
    from phasegpt.data.windows import EvalWindows
    from phasegpt.model.scoring import score
    from phasegpt.training.config import run_config

    words = ["data=synthetic", "attention=softmax", "model=small", "model.block_size=64"]
    config = phasegpt.compose([*words, "trainer=cpu", "compile=false"])
    corpus = prepare(run_config(config).data)
    model = phasegpt.build(config).eval()
    windows = EvalWindows(corpus.split("val"), context=64, stride=64)

    def bare() -> None:
        with inference(model):
            for begin in range(0, len(windows), 12):
                rows = [windows[i]["idx"] for i in range(begin, min(begin + 12, len(windows)))]
                model(torch.stack(rows))

    def ours() -> None:
        score(model, corpus, "val", context=64, stride=64, batch_size=12)

    found: dict[str, list[float]] = {"bare_s": [], "ours_s": []}
    for _ in range(3):  # the first is a warm-up
        for name, call in (("bare_s", bare), ("ours_s", ours)):
            begin = time.perf_counter()
            call()
            found[name].append(time.perf_counter() - begin)
    return {name: min(seconds[1:]) for name, seconds in found.items()}


if __name__ == "__main__":
    parts = {"hf_trainer": hf_trainer, "decode": decode, "evaluate": evaluate}
    print(json.dumps(parts[sys.argv[1]](*sys.argv[2:])))
