"""Every kernel at sizes inside and across its blocks: what compute-sanitizer watches on a GPU.

Run as a program it uses the CUDA kernels.
"""

from types import ModuleType

import kernel_checks as checks


def exercise(kernels: ModuleType, device: str) -> int:
    """Run forwards and gradients; the number of results."""
    found = []
    for N, steps, order in ((5, 5, True), (32, 10, True), (32, 10, False), (33, 3, True),
                            (33, 3, False), (256, 12, True)):  # fmt: skip
        for own in ("", "omega coupling"):
            problem = checks.rows_problem(1, 9, 3, N, steps, order, own)
            found += checks.run_rows(kernels, problem.to(device))
    for steps, order in ((0, True), (10, True), (10, False), (17, True)):  # training has no order
        for forget in (False, True):
            problem = checks.scan_problem(2, 35, 97, steps, order, forget)
            found += checks.run_scan(kernels, problem.to(device))
    return len(found)


if __name__ == "__main__":
    from phasegpt.ops import cuda

    exercise(cuda, "cuda")
