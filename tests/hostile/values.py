"""Hostile values: as Python objects, as words of a command line, and as damage to a file."""

from __future__ import annotations

import math
import random
from typing import Any

#: What a caller may hand over by mistake, or from a broken pipeline.
OBJECTS: tuple[Any, ...] = (
    None, True, False, 0, 1, -1, 2, 7, 2**31, 2**63, 10**30, -(10**30),
    0.0, -0.0, 0.5, -0.5, 1.5, 1e-320, 1e300, -1e300, math.nan, math.inf, -math.inf,
    "", " ", "\n", "x", "true", "null", "1", "1e5", "nan", "\u00e9\u65e5\u672c", "\ud800",
    "a/b", "../../evil", "/", "~", "x" * 300, "${nope}", "${seed}", "???", "a\0b", "-", "=#",
    (), [], [None], [1, 2], [0.35, 0.55], [-1], [[1]], ["a"], [math.nan], [1e300, 2],
    {}, {"a": 1}, {"name": "x"}, b"bytes", object, 1j, range(3),
)  # fmt: skip

#: The same as a shell hands them over: KEY=WORD, in Hydra's grammar.
WORDS: tuple[str, ...] = (
    "", "null", "true", "false", "0", "1", "-1", "2", "7", "1048576", "16777216",
    "99999999999999999999", "-99999999999",
    "0.0", "-0.0", "0.5", "1.5", "1e-320", "1e300", "-1e300", "1e999", "nan", "inf", "-inf",
    "x", "abc def", "'quoted'", '""', "\u00e9\u65e5\u672c", "a/b", "../../evil", "/", "~",
    "x" * 300, "${nope}", "${seed}", "${oc.env:NOPE}", "???", "[]", "[null]", "[1,2]",
    "[0.35,0.55]", "[[1]]", "[a]", "[1", "{}", "{a:1}", "{a", "a=b", "#", "a#b", "1,2", "\\",
    "glob(*)", "range(3)", "@", "$",
)  # fmt: skip


def damage(content: bytes, rng: random.Random) -> tuple[str, bytes]:
    """One kind of damage to a file's bytes, and its name."""
    kind = rng.choice(("empty", "cut", "flip", "flips", "zeros", "words", "json", "twice", "long"))
    if kind == "empty":
        return kind, b""
    if kind == "cut":
        return kind, content[: rng.randrange(len(content) + 1)]
    if kind in ("flip", "flips"):
        spoilt = bytearray(content)
        for _ in range(1 if kind == "flip" else 20):
            if spoilt:
                spoilt[rng.randrange(len(spoilt))] ^= 1 << rng.randrange(8)
        return kind, bytes(spoilt)
    if kind == "zeros":
        at = rng.randrange(len(content) + 1)
        return kind, content[:at] + bytes(64) + content[at + 64 :]
    if kind == "words":
        return kind, b"not what you think\xff\xfe\n" * rng.randrange(1, 4)
    if kind == "json":
        return kind, rng.choice(
            (b"{}", b"[]", b"3", b"null", b'"x"', b'{"config": 3}', b"{", b"NaN")
        )
    if kind == "twice":
        return kind, content + content
    return kind, content + b"\n" + b"x" * 10_000


def spoil(value: Any, rng: random.Random) -> tuple[str, Any]:
    """A copy of nested dicts and lists in which one place is gone, renamed or another value."""
    if isinstance(value, dict) and value and rng.random() < 0.85:
        key = rng.choice(sorted(value, key=str))
        roll = rng.random()
        rest = {k: v for k, v in value.items() if k != key}
        if roll < 0.15:
            return f"{key} gone", rest
        if roll < 0.25:
            return f"{key} renamed", {**rest, f"{key}x": value[key]}
        path, inner = spoil(value[key], rng)
        return f"{key}.{path}", {**value, key: inner}
    if isinstance(value, list) and value and rng.random() < 0.7:
        at = rng.randrange(len(value))
        path, inner = spoil(value[at], rng)
        return f"[{at}].{path}", [*value[:at], inner, *value[at + 1 :]]
    new = rng.choice([o for o in OBJECTS if not isinstance(o, type | complex | range | bytes)])
    return f"= {new!r:.40}", new
