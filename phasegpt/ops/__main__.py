"""`python -m phasegpt.ops`: which backends exist here, why others do not, and a self-check."""

from __future__ import annotations

import sys

import torch
from torch import Tensor

from phasegpt.ops import fused, kuramoto_rows, kuramoto_scan

TOLERANCE = 2e-5  # relative to the largest true value, gradients included


def self_check(backend: str) -> float:
    """Largest relative error of values and gradients against the float64 reference."""
    generator = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator)

    problems = (
        (kuramoto_rows, (draw(2, 40, 3, 32), draw(3, 32), draw(3))),
        (kuramoto_scan, (draw(2, 40, 96), draw(96), draw(96))),
    )
    worst = 0.0
    for integrate, problem in problems:
        results = []
        for name, device, dtype in (
            (backend, backend, torch.float32),
            ("reference", "cpu", torch.float64),
        ):
            leaves = [x.detach().to(device, dtype).requires_grad_() for x in problem]
            out = integrate(*leaves, steps=10, dt=0.1, return_order=True, backend=name)
            assert out.R is not None
            (out.theta.sin().sum() + out.R.sum()).backward()
            results.append([out.theta, out.R, *(x.grad for x in leaves)])
        for found, truth in zip(*results, strict=True):
            error = (found.double().cpu() - truth).abs().max() / truth.abs().max()
            worst = max(worst, error.item() if error.isfinite() else float("inf"))
    return worst


def main() -> int:
    """Print one line per backend; the exit status is 1 if a backend is here and computes wrong."""
    failed = False
    print(f"reference  here   plain PyTorch {torch.__version__}: any device, dtype and size")
    for name, kernels in fused.KERNELS.items():
        why = kernels.unavailable()
        if why is not None:
            print(f"{name:9}  no     {why}")
            continue
        worst = self_check(name)
        failed |= worst > TOLERANCE
        verdict = "agrees with" if worst <= TOLERANCE else "DIFFERS FROM"
        print(f"{name:9}  here   {kernels.describe()}")
        print(f"{'':9}         {verdict} the float64 reference: relative error {worst:.1e}")
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
