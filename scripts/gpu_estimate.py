"""What one configuration of Phase A should take on an H200: the table of docs/gpu.md.

    python scripts/gpu_estimate.py            write it into the page
    python scripts/gpu_estimate.py --check    exit 1 if the page has another one

FLOPs are those that the model states (GPT.flops). Bytes and launches are counted: one training step
runs on tensors without numbers, and every operator is one launch that reads its inputs and writes
its outputs once. Rates are the vendor's, and the shares of them that are reached are assumptions.
Nothing here was measured.
"""

import math
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import phasegpt
from phasegpt.model.gpt import GPT
from phasegpt.model.scoring import nats
from phasegpt.training.config import RunConfig, run_config
from phasegpt.training.optim import build_optimizer

PAGE = Path(__file__).resolve().parents[1] / "docs" / "gpu.md"
BEGIN, END = "<!-- scripts/gpu_estimate.py writes from here -->\n", "<!-- to here -->\n"
ARMS = {"winner": "phase_a/l7_n32_k1", "baseline": "phase_a/baseline"}
VOCABULARY, VALIDATION = 65, 111_540  # characters of Shakespeare: different ones, of the last tenth


class Device(NamedTuple):
    """An H200 by its data sheet, and the shares of it that are assumed to be reached."""

    flops: float = 989e12  # dense bf16
    bandwidth: float = 4.8e12  # bytes per second
    products: float = 0.65  # of flops, in matrix products of width 768 to 3072
    attention: float = 0.35  # of flops, in attention of 12 heads of 64 over 512 tokens
    elementwise: float = 0.85  # of bandwidth
    launch_s: float = 6e-6  # of the host, for an operator of eager PyTorch and its gradient's node
    host_s: float = 1.5e-3  # of the host, in a step outside of operators: Lightning, batches
    copy_out: float = 3e9  # bytes per second of a checkpoint into the host's memory
    fused_bytes: float = 0.45  # what torch.compile leaves of the elementwise bytes
    fused_launches: float = 0.35  # and of the launches
    compile_s: float = 60.0  # its start


PRODUCTS = ("aten.mm", "aten.addmm", "aten.bmm")
ATTENTION = ("aten._scaled_dot_product",)
#: No kernel of its own on a GPU: memory without content, and the parts of a CPU's dropout, which
#: is one kernel there and is counted as the multiplication.
NOTHING = ("prim.device", "aten.empty", "aten.detach", "aten.bernoulli_", "aten.div_.Scalar")
#: One tensor each on a CPU, and 64 or so in one launch on a GPU.
GROUPED = ("aten.linalg_vector_norm", "aten.mul_.Tensor")


class Counted(NamedTuple):
    """A training step: launches, and bytes of what is no matrix product."""

    launches: int
    bytes: float
    parameters: int
    products: float  # FLOPs of linear maps, forward and backward
    attention: float  # FLOPs of causal attention, forward and backward with what is done twice
    tokens: int


class Count(TorchDispatchMode):
    """Counts the operators that make no view, and the bytes of their tensors."""

    def __init__(self) -> None:
        super().__init__()
        self.launches: Counter[str] = Counter()
        self.bytes: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        name = str(func)
        if not func.is_view and not name.startswith(NOTHING):
            tensors = [x for x in tree_leaves((args, kwargs, out)) if isinstance(x, torch.Tensor)]
            self.launches[name] += 1
            self.bytes[name] += sum(x.numel() * x.element_size() for x in tensors)
        return out


@contextmanager
def _fused_attention() -> Iterator[None]:
    """Attention is one operator, as on a GPU, where the dropout of its weights is inside."""
    own = F.scaled_dot_product_attention
    F.scaled_dot_product_attention = lambda *a, dropout_p=0.0, **k: own(*a, **k)  # type: ignore
    try:
        yield
    finally:
        F.scaled_dot_product_attention = own  # type: ignore[assignment]


def counted(run: RunConfig) -> Counted:
    """One training step of a configuration, on tensors without numbers."""
    with FakeTensorMode(), _fused_attention():
        model = GPT(run.gpt(VOCABULARY), seed=0)
        optimizer = build_optimizer(model, run.optimizer)
        idx = torch.zeros(run.data.batch_size, run.model.block_size, dtype=torch.long)
        count = Count()
        with count:
            with torch.autocast("cpu", torch.bfloat16):
                total, number = nats(model(idx, return_phase=True).logits, idx)
            (total / number).backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
    launches = 0.0
    for name, times in count.launches.items():
        each = 3.0 if name.startswith(ATTENTION) and "backward" in name else 1.0  # flash has three
        launches += times * (1 / 64 if name.startswith(GROUPED) else each)
    left_out = (*PRODUCTS, *ATTENTION)
    moved = sum(size for name, size in count.bytes.items() if not name.startswith(left_out))
    flops = model.flops(run.model.block_size)
    return Counted(
        math.ceil(launches), moved, model.num_parameters(non_embedding=False),
        3 * flops.weights * idx.numel(), 3.5 * flops.causal * idx.numel(), idx.numel(),
    )  # fmt: skip


class Estimate(NamedTuple):
    """Seconds of a step by part, and of the whole run."""

    products: float
    attention: float
    elementwise: float
    host: float
    step: float
    steps: float
    validations: float
    saves: float
    start: float

    @property
    def total(self) -> float:
        """The run, from its first step to its last checkpoint."""
        return self.steps + self.validations + self.saves + self.start


def estimate(step: Counted, run: RunConfig, device: Device, *, compiled: bool) -> Estimate:
    """The formulas of docs/gpu.md."""
    products = step.products / (device.flops * device.products)
    attention = step.attention / (device.flops * device.attention)
    kept, launches = (device.fused_bytes, device.fused_launches) if compiled else (1.0, 1.0)
    elementwise = kept * step.bytes / (device.bandwidth * device.elementwise)
    host = device.host_s + launches * step.launches * device.launch_s
    seconds = max(products + attention + elementwise, host)
    t = run.trainer
    validations = math.ceil(t.max_steps / t.val_check_interval)
    batches = math.ceil(VALIDATION / step.tokens)
    return Estimate(
        products, attention, elementwise, host, seconds,
        steps=t.max_steps * seconds,
        validations=validations * batches * seconds / 3,  # forward alone
        saves=validations * 12 * step.parameters / device.copy_out,  # if each improves
        start=device.compile_s if compiled else 0.0,
    )  # fmt: skip


def table() -> str:
    """In Markdown."""
    columns: dict[str, list[str]] = {}
    for name, experiment in ARMS.items():
        run = run_config(phasegpt.compose([f"+experiment={experiment}"]))
        step = counted(run)
        for way, compiled in (("eager", False), ("compiled", True)):
            e = estimate(step, run, Device(), compiled=compiled)
            columns[f"{name}, {way}"] = [
                f"{step.products / 1e12:.2f}", f"{step.attention / 1e12:.2f}",
                f"{step.bytes / 1e9:.0f}", f"{step.launches:,}",
                *(f"{1e3 * x:.1f}" for x in (e.products, e.attention, e.elementwise, e.host)),
                f"**{1e3 * e.step:.1f}**", f"{step.tokens / e.step:,.0f}",
                *(f"{x:.0f}" for x in (e.steps, e.validations, e.saves, e.start)),
                f"**{e.total:.0f}**",
            ]  # fmt: skip
    names = [
        "linear maps, TFLOP a step", "attention, TFLOP a step", "elementwise, GB a step, eager",
        "launches a step, eager", "linear maps, ms", "attention, ms", "elementwise, ms",
        "host, ms", "a step, ms", "tokens/s", "all steps, s", "validations, s",
        "copies of checkpoints, s", "start of torch.compile, s", "the run, s",
    ]  # fmt: skip
    lines = [f"| | {' | '.join(columns)} |", "|---" * (len(columns) + 1) + "|"]
    for i, name in enumerate(names):
        lines.append(f"| {name} | {' | '.join(column[i] for column in columns.values())} |")
    return "\n".join(lines) + "\n"


def written(page: str) -> str:
    """The page with the table of today."""
    head, _, rest = page.partition(BEGIN)
    _, _, tail = rest.partition(END)
    return head + BEGIN + table() + END + tail


if __name__ == "__main__":
    before = PAGE.read_text(encoding="utf-8")
    if "--check" in sys.argv:
        sys.exit(before != written(before))
    PAGE.write_text(written(before), encoding="utf-8")
