"""Peak speeds of GPUs, and whether compiling a model for one earns its start-up."""

from __future__ import annotations

import re

#: Dense bf16 products with fp32 sums, FLOP/s, as their vendor states it, by a pattern of the
#: device's name; the first that fits counts. NVIDIA's data sheets, and for GeForce its whitepapers.
PEAK_FLOPS = {
    r"Laptop|Max-Q|4090 D|5090 D": None,  # slower by far, under a name that looks the same
    r"GB200|GB300": 2500e12,
    r"B200": 2250e12,
    r"H100 PCIe": 756e12,
    r"H100 NVL|H200 NVL": 835e12,
    r"GH200|H200|H100|H800": 989e12,
    r"A100|A800": 312e12,
    r"L40S|RTX 6000 Ada": 362e12,
    r"L40\b": 181e12,
    r"L4\b": 121e12,
    r"A30\b": 165e12,
    r"RTX A6000": 154.8e12,
    r"A40\b": 149.7e12,
    r"A10\b": 125e12,
    r"RTX 5090": 209.5e12,
    r"RTX 4090": 165.2e12,
    r"RTX 4080(?! SUPER)": 97.5e12,
    r"RTX 3090 Ti": 80e12,
    r"RTX 3090": 71e12,
}
#: For a GPU that is not among them, a small one.
OTHER_PEAK = 100e12
#: Shares of the peak that eager and compiled training reach, and seconds that compiling takes:
#: estimates, since nothing here was measured on a GPU.
EAGER, COMPILED, COMPILE_S = 0.25, 0.45, 60.0


def peak_flops(name: str) -> float | None:
    """The peak of the GPU of this name, FLOP/s; None where it is not known."""
    return next((peak for part, peak in PEAK_FLOPS.items() if re.search(part, name)), None)


def compile_gain(name: str, flops: float) -> float:
    """Seconds that compiling saves in a run of so many FLOPs on this GPU, its own time taken off.

    flops (1 / EAGER - 1 / COMPILED) / peak - COMPILE_S: `compile=auto` does it where this is > 0.
    """
    return flops * (1 / EAGER - 1 / COMPILED) / (peak_flops(name) or OTHER_PEAK) - COMPILE_S
