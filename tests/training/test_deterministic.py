"""trainer.deterministic=true on a GPU: no mechanism calls what CUDA refuses there.

A fake raises where CUDA would: for the operators that torch documents as without a deterministic
implementation on CUDA (torch.use_deterministic_algorithms), forward and backward.
"""

from pathlib import Path

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import phasegpt
from phasegpt import ops
from phasegpt.core.composition import CONF_DIR
from phasegpt.phase import order, steering
from phasegpt.training.config import run_config
from phasegpt.training.phase_measures import measure
from phasegpt.training.phase_monitor import trajectories

# Not bincount without weights, scatter_add and index_add: CUDA has deterministic ones.
REFUSED = {
    *("cumsum", "put_", "put", "histc", "kthvalue", "median", "nll_loss2d_forward"),
    *("grid_sampler_2d_backward", "grid_sampler_3d_backward", "max_unpool2d", "max_unpool3d"),
    *("upsample_linear1d_backward", "upsample_bilinear2d_backward", "upsample_nearest1d_backward"),
    *("reflection_pad1d_backward", "reflection_pad2d_backward", "replication_pad1d_backward"),
    *("replication_pad2d_backward", "adaptive_max_pool2d_backward", "_ctc_loss_backward"),
    *("_adaptive_avg_pool2d_backward", "avg_pool3d_backward", "max_pool3d_with_indices_backward"),
    "_embedding_bag_backward",
}
ATTENTIONS = sorted(path.stem for path in (CONF_DIR / "attention").glob("*.yaml"))


class AsCuda(TorchDispatchMode):
    """Raises what CUDA raises in deterministic mode."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        floating = any(isinstance(a, torch.Tensor) and a.is_floating_point() for a in args)
        weighted = name == "bincount" and len(args) > 1 and args[1] is not None
        if (name in REFUSED and floating) or weighted:
            raise RuntimeError(f"{name}_cuda does not have a deterministic implementation")
        return func(*args, **(kwargs or {}))


@pytest.fixture
def as_cuda(monkeypatch):
    monkeypatch.setattr(order, "_cumsum_is_refused", lambda x: True)
    monkeypatch.setattr(ops, "_use_kernels", lambda *_: False)  # the CPU's are none of CUDA's
    return AsCuda()


def small(attention: str) -> phasegpt.GPT:
    words = [f"attention={attention}", "model=nano", "model.n_layer=2", "model.n_head=2"]
    return phasegpt.build(
        run_config(phasegpt.compose([*words, "model.n_embd=16", "model.block_size=32"]))
    )


def test_the_fake_refuses_a_cumsum(as_cuda):
    with as_cuda, pytest.raises(RuntimeError, match="cumsum_cuda does not have"):
        torch.ones(3).cumsum(0)


@pytest.mark.parametrize("attention", ATTENTIONS)
def test_no_mechanism_calls_what_cuda_refuses(as_cuda, attention):
    model = small(attention).train()
    idx = torch.randint(model.config.vocab_size, (2, 24))
    with as_cuda:
        out = model(idx, return_phase="coupling")
        loss = torch.nn.functional.cross_entropy(out.logits.flatten(0, 1), idx.flatten())
        for phase in out.phase.values():
            for axis in ("oscillators", "heads", "prefix"):
                R = steering.coherence(phase.theta, axis)
                loss = loss + steering.coherence_regularizer(R, target=0.1, weight=1.0)
            loss = loss + steering.coherence_regularizer(phase.R, target=0.1, weight=1.0)
        loss.backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize("attention", ATTENTIONS)
def test_the_phase_monitor_calls_nothing_that_cuda_refuses(as_cuda, attention):
    model = small(attention)
    idx = torch.randint(model.config.vocab_size, (2, 24))
    with as_cuda:
        for path in trajectories(model, idx).values():
            measure(path, (0.35, 0.55))


def test_the_cumulative_sum_without_cumsum_is_the_same_sum(monkeypatch):
    x = torch.randn(2, 37, 3, dtype=torch.float64, requires_grad=True)
    weight = torch.randn_like(x)
    (expected,) = torch.autograd.grad((x.cumsum(1) * weight).sum(), x)
    monkeypatch.setattr(order, "_cumsum_is_refused", lambda x: True)
    total = order.cumulative_sum(x, 1)
    torch.testing.assert_close(total, x.cumsum(1))
    torch.testing.assert_close(torch.autograd.grad((total * weight).sum(), x)[0], expected)


def test_on_a_cpu_the_cumulative_sum_stays_cumsum_in_deterministic_mode():
    x = torch.randn(100)
    torch.use_deterministic_algorithms(True)
    try:
        assert torch.equal(order.cumulative_sum(x, 0), x.cumsum(0))
    finally:
        torch.use_deterministic_algorithms(False)


def test_every_cumulative_sum_of_phases_has_one_home():
    package = Path(order.__file__).parents[1]
    users = {
        path.relative_to(package).as_posix()
        for folder in ("phase", "attention", "ops", "model", "training")
        for path in (package / folder).glob("*.py")
        if "cumsum(" in path.read_text()
    }
    # cumulative_sum; and what counts tokens in whole numbers, which CUDA does not refuse
    assert users == {"phase/order.py", "model/padding.py"}
