"""Random streams as pure functions of a key, so that workers, accumulation and resume agree."""

from __future__ import annotations

import hashlib

import torch


def keyed_seed(*key: int | str) -> int:
    """63-bit seed from a tuple of integers and names (blake2b of its text)."""
    digest = hashlib.blake2b(repr(key).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


def global_state(device: torch.device) -> str:
    """A digest of torch's global generator for `device`, which stays as it is."""
    cuda = device.type == "cuda"
    state = torch.cuda.get_rng_state(device) if cuda else torch.get_rng_state()
    return hashlib.blake2b(state.numpy().tobytes(), digest_size=8).hexdigest()


def keyed_generator(*key: int | str, device: torch.device | str = "cpu") -> torch.Generator:
    """A fresh torch.Generator on `device`, seeded by `key`."""
    return torch.Generator(device=device).manual_seed(keyed_seed(*key))
