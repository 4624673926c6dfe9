"""The kernels behave as PyTorch operators do, and a backend is chosen as the door says."""

import contextlib
import itertools
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from kernel_checks import same
from problems import integrate, on, rows_problem, scan_problem
from torch import Tensor

from phasegpt import ops
from phasegpt.core.errors import ConfigError
from phasegpt.ops import fused


def rows_call(backend: str, **options: Any) -> Callable[..., Tensor]:
    def call(theta: Tensor, omega: Tensor, coupling: Tensor, lag: Tensor) -> Tensor:
        result = ops.kuramoto_rows(
            theta, omega, coupling, lag=lag, steps=5, dt=0.1, return_order=True, backend=backend
        )
        return result.theta.sin().sum() + (result.R * result.psi.cos()).sum()

    return call


def scan_call(backend: str) -> Callable[..., Tensor]:
    def call(*problem: Tensor) -> Tensor:
        result = integrate(problem, steps=5, dt=0.1, return_order=True, backend=backend)
        return result.theta.sin().sum() + result.R.sum()

    return call


CALLS = {
    "rows": (rows_call, lambda: rows_problem(2, 9, 3, 16)),
    "scan": (scan_call, lambda: scan_problem(2, 9, 10)),
    "forgetting scan": (scan_call, lambda: scan_problem(2, 9, 10, forgets=True)),
}


@pytest.fixture(params=CALLS)
def case(
    request: pytest.FixtureRequest, backend: str
) -> tuple[Callable[..., Tensor], list[Tensor]]:
    call, problem = CALLS[request.param]
    return call(backend), on(backend, *problem())


@pytest.mark.parametrize("order", [False, True])
def test_opcheck_accepts_every_operator(backend: str, order: bool) -> None:
    theta, omega, coupling, _ = on(backend, *rows_problem(2, 3, 2, 8))
    pair = torch.stack((coupling, 0.5 * coupling), -1).detach().requires_grad_()
    torch.library.opcheck(fused.rows, (theta, omega, pair, 3, 0.1, order))
    with torch.no_grad():
        fields = fused.rows(theta, omega, pair, 3, 0.1, order)[1:]
    plain = [x.detach() for x in (theta, omega, pair, theta, *fields)]
    torch.library.opcheck(fused.rows_adjoint, (*plain, 3, 0.1))

    sums = torch.zeros(3 + order, 2, 5, device=backend)
    for forgets in (False, True):
        theta, omega, coupling, *forget = on(backend, *scan_problem(2, 3, 5, forgets=forgets))
        absent = torch.empty(0, device=backend)
        state = sums, sums.clone(), torch.zeros(5, device=backend)
        inputs = (theta, omega, coupling, forget[0] if forgets else absent, *state)
        torch.library.opcheck(fused.scan, (*inputs, 3, 0.1, order))
        with torch.no_grad():
            outputs = fused.scan(*inputs, 3, 0.1, order)
        unsums = fused.KERNELS[backend].UNSUMS and not forgets
        state = outputs[1:4] if unsums else state
        saved = [x.detach() for x in (*inputs[:4], *state)]
        torch.library.opcheck(fused.scan_adjoint, (*saved, *outputs, 3, 0.1))


def gradients(call: Callable[..., Tensor], leaves: list[Tensor]) -> list[Tensor]:
    return list(torch.autograd.grad(call(*leaves), leaves))


def test_compilation_keeps_one_graph_and_the_result(
    case: tuple[Callable[..., Tensor], list[Tensor]],
) -> None:
    call, leaves = case
    compiled = torch.compile(call, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(gradients(compiled, leaves), gradients(call, leaves))


def test_autocast_leaves_the_phases_alone(case: tuple[Callable[..., Tensor], list[Tensor]]) -> None:
    call, leaves = case
    with torch.autocast(leaves[0].device.type, dtype=torch.bfloat16):
        inside = gradients(call, leaves)
    assert same(inside, gradients(call, leaves))


def test_activation_checkpointing_changes_nothing(
    case: tuple[Callable[..., Tensor], list[Tensor]],
) -> None:
    call, leaves = case

    def checkpointed(*inputs: Tensor) -> Tensor:
        return torch.utils.checkpoint.checkpoint(call, *inputs, use_reentrant=False)

    assert same(gradients(checkpointed, leaves), gradients(call, leaves))


def test_results_are_bit_equal_from_run_to_run(
    case: tuple[Callable[..., Tensor], list[Tensor]], poisoned: None
) -> None:
    call, leaves = case
    assert same(gradients(call, leaves), gradients(call, leaves))


def test_a_second_derivative_is_refused(case: tuple[Callable[..., Tensor], list[Tensor]]) -> None:
    call, leaves = case
    (first,) = torch.autograd.grad(call(*leaves), leaves[:1], create_graph=True)
    with pytest.raises(RuntimeError, match=r"no second derivative.*backend='reference'"):
        first.sum().backward()


def test_strides_offsets_and_dtypes_of_the_inputs_do_not_matter(backend: str) -> None:
    theta, omega, coupling, lag = (x.detach() for x in on(backend, *rows_problem(2, 5, 3, 8)))
    options = {"steps": 4, "dt": 0.1, "backend": backend}
    plain = ops.kuramoto_rows(theta, omega, coupling, lag=lag, **options).theta
    strided = theta.transpose(1, 2).contiguous().transpose(1, 2)
    offset = torch.empty(theta.numel() + 1, device=backend)[1:].view_as(theta).copy_(theta)
    for other in (strided, offset):
        assert torch.equal(
            ops.kuramoto_rows(other, omega, coupling, lag=lag, **options).theta, plain
        )
    wide = omega.expand_as(theta)
    again = ops.kuramoto_rows(theta, wide, coupling, lag=lag, **options).theta
    torch.testing.assert_close(again, plain, rtol=0, atol=1e-6)

    half = theta.bfloat16()
    result = ops.kuramoto_rows(half, omega, coupling, lag=lag, **options).theta
    assert result.dtype == torch.float32
    exact = ops.kuramoto_rows(half.float(), omega, coupling, lag=lag, **options).theta
    assert torch.equal(result, exact)


@pytest.mark.parametrize("shape", [(0, 4, 2, 8), (3, 0, 2, 8)])
def test_an_empty_batch_gives_empty_phases_and_zero_gradients(
    backend: str, shape: tuple[int, ...]
) -> None:
    leaves = on(backend, torch.randn(shape), torch.randn(2, 8), torch.randn(2))
    result = ops.kuramoto_rows(*leaves, steps=3, dt=0.1, return_order=True, backend=backend)
    assert result.theta.shape == shape and result.R.shape == (*shape[:-1], 4)
    (result.theta.sum() + result.R.sum()).backward()
    assert all(x.grad is not None and not x.grad.any() for x in leaves)

    leaves = on(backend, torch.randn(*shape[:2], 5), torch.randn(5), torch.randn(5))
    scan = ops.kuramoto_scan(*leaves, steps=3, dt=0.1, return_order=True, backend=backend)
    assert scan.theta.shape == leaves[0].shape and scan.R.shape == (*shape[:2], 5, 4)
    scan.theta.sum().backward()
    assert not leaves[1].grad.any()

    held = ops.ScanState(*on(backend, torch.randn(4, shape[0], 5), torch.randn(4, shape[0], 5)),
                         *on(backend, torch.rand(5)))  # fmt: skip
    for forget, state in ((None, None), (None, held), (torch.rand(5), held)):
        options = {"steps": 3, "dt": 0.1, "return_order": True, "forget": forget, "state": state}
        each = [ops.kuramoto_scan(*leaves, **options, backend=b) for b in (backend, "reference")]
        assert shape[1] or all(map(torch.equal, each[0].state, each[1].state))  # no token


# --- the choice of a backend -----------------------------------------------------------------

BEYOND = {
    "float32, and float64 is kept": ({}, torch.float64, 4),
    "integrator=rk4 has no kernel": ({"integrator": "rk4"}, torch.float32, 4),
    "N=257 is above the kernels' 256": ({}, torch.float32, 257),
}


@pytest.mark.parametrize("why", BEYOND)
def test_beyond_the_kernels_auto_warns_once_and_a_named_backend_refuses(
    why: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ops, "_SAID", set())
    options, dtype, N = BEYOND[why]
    options = {"steps": 2, "dt": 0.1} | options
    problem = [x.detach().to(dtype) for x in rows_problem(1, 2, 2, N)[:3]]
    with pytest.warns(UserWarning, match=why):
        found = ops.kuramoto_rows(*problem, **options).theta
    assert torch.equal(found, ops.kuramoto_rows(*problem, **options, backend="reference").theta)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ops.kuramoto_rows(*problem, **options)
    with pytest.raises(ConfigError, match=f"backend='cpu': .*{why}.*backend='reference'"):
        ops.kuramoto_rows(*problem, **options, backend="cpu")


def test_auto_is_the_kernel_where_it_can_do_the_work(backend: str) -> None:
    problem = [x.detach() for x in on(backend, *rows_problem(2, 5, 2, 32)[:3])]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        auto = ops.kuramoto_rows(*problem, steps=5, dt=0.1).theta
    kernel = ops.kuramoto_rows(*problem, steps=5, dt=0.1, backend=backend).theta
    reference = ops.kuramoto_rows(*problem, steps=5, dt=0.1, backend="reference").theta
    assert torch.equal(auto, kernel) and not torch.equal(auto, reference)


def test_a_backend_of_another_device_is_refused() -> None:
    problem = [x.detach() for x in rows_problem(1, 2, 1, 4)[:3]]
    with pytest.raises(ConfigError, match=r"'cuda' needs tensors on the device cuda.*on cpu"):
        ops.kuramoto_rows(*problem, steps=1, dt=0.1, backend="cuda")


def test_without_a_compiler_auto_uses_the_reference_and_says_so(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(ops, "_SAID", set())
    monkeypatch.setattr(fused.cpu, "unavailable", lambda: "no C++ compiler was found")
    problem = [x.detach().float() for x in rows_problem(1, 2, 1, 4)[:3]]
    with pytest.warns(UserWarning, match="plain PyTorch: no C\\+\\+ compiler"):
        ops.kuramoto_rows(*problem, steps=1, dt=0.1)
    with pytest.raises(ConfigError, match="no C\\+\\+ compiler"):
        ops.kuramoto_rows(*problem, steps=1, dt=0.1, backend="cpu")


# --- whole models ----------------------------------------------------------------------------


@contextlib.contextmanager
def plain_pytorch() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ops, "_use_kernels", lambda *_: False)
        yield


@pytest.mark.parametrize("attention", ["kuramoto", "phase_sync"])
def test_training_follows_the_reference_to_float32_rounding(
    backend: str,
    make_model: Callable,
    text_ids: Callable,
    attention: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def losses() -> list[float]:
        model = make_model(attention).to(backend)
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
        ids = text_ids(8, 33).to(backend)
        found = []
        for _ in range(20):
            logits = model(ids[:, :-1]).logits
            loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten())
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            found.append(loss.item())
        return found

    calls = []
    function = "rows" if attention == "kuramoto" else "scan"
    real = getattr(ops.fused, function)
    monkeypatch.setattr(ops.fused, function, lambda *given: (calls.append(1), real(*given))[1])
    kernels = losses()
    ran = len(calls)
    with plain_pytorch():
        reference = losses()
    assert ran >= 20 and len(calls) == ran  # the kernels in one training, and not in the other
    assert kernels[-1] < kernels[0] - 0.1
    assert kernels == pytest.approx(reference, rel=2e-5)


def _ddp_worker(rank: int, path: str, world: int) -> None:
    import torch.distributed as dist

    from phasegpt.ops import kuramoto_rows

    dist.init_process_group("gloo", init_method=f"file://{path}/store", rank=rank, world_size=world)

    class Layer(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            generator = torch.Generator().manual_seed(1)
            self.omega = torch.nn.Parameter(torch.randn(2, 8, generator=generator))
            self.coupling = torch.nn.Parameter(torch.ones(2))

        def forward(self, theta: Tensor) -> Tensor:
            return kuramoto_rows(
                theta, self.omega, self.coupling, steps=4, dt=0.1, backend="cpu"
            ).theta

    layer = Layer()
    theta = torch.randn(4, 3, 2, 8, generator=torch.Generator().manual_seed(2))
    parallel = torch.nn.parallel.DistributedDataParallel(layer)
    parallel(theta[rank::world]).sin().mean().backward()
    if rank == 0:
        alone = Layer()
        alone(theta).sin().mean().backward()
        torch.save(
            [
                (a.grad, b.grad)
                for a, b in itertools.zip_longest(layer.parameters(), alone.parameters())
            ],
            f"{path}/gradients.pt",
        )
    del parallel  # before its process group: its destructor waits for gloo's threads
    dist.destroy_process_group()


def test_two_processes_average_the_gradients_of_the_kernels(tmp_path: Any) -> None:
    import processes  # noqa: F401 - forks from one that has torch imported
    import torch.multiprocessing as mp

    mp.start_processes(_ddp_worker, (str(tmp_path), 2), nprocs=2, start_method="forkserver")
    for parallel, alone in torch.load(tmp_path / "gradients.pt"):
        torch.testing.assert_close(parallel, alone, rtol=1e-5, atol=1e-7)
