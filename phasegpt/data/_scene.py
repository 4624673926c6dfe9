"""The memory of a scene, and how its rules write a sentence and remember what it said."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol


class Walk(Protocol):
    """What the grammar needs of a sampler or a scorer."""

    def say(self, text: str) -> None:
        """Write (or expect) `text`."""

    def pick(self, options: Sequence[str], weights: Sequence[float] | None = None) -> int:
        """Write (or recognise) one of the options, drawn with these weights; return its index."""


@dataclass(frozen=True)
class Thing:
    """Something a speaker has brought into the scene, and what became of it."""

    noun: str
    adjective: str
    plural: bool
    story: str
    owner: str


class Scene:
    """What the later words of a scene depend on.

    `words` fills the {slots} in the rules: pronouns and verbs that agree with the thing or person
    last spoken of, the previous speaker's name, the plan under discussion. `pending` names the
    set of rules that may answer the last line.
    """

    def __init__(self, walk: Walk) -> None:
        self.walk = walk
        self.cast: list[str] = []
        self.things: list[Thing] = []
        self.focus: Thing | None = None
        self.greeted: set[str] = set()
        self.speaker = self.asker = self.addressed = ""
        self.pending: str | None = None
        self.words: dict[str, str] = {}

    def choose(self, words: Sequence[str], end: str = "", start: str = "") -> str:
        """One of equally likely words, written between `start` and `end`."""
        return words[self.walk.pick([start + word + end for word in words])]

    def run(self, *parts: Part) -> None:
        """Write literals with {slots}, one text out of a tuple, or whatever a function writes."""
        for part in parts:
            if isinstance(part, str):
                self.walk.say(part.format_map(self.words))
            elif isinstance(part, tuple):
                self.walk.pick([text.format_map(self.words) for text in part])
            else:
                part(self)

    def apply(self, rules: Sequence[Rule]) -> None:
        """Write one sentence by a rule whose weight is not zero now."""
        weights = [r.weight(self) if callable(r.weight) else r.weight for r in rules]
        able = [(rule, weight) for rule, weight in zip(rules, weights, strict=True) if weight]
        heads = [rule.head.format_map(self.words) for rule, _ in able]
        rule = able[self.walk.pick(heads, [weight for _, weight in able])][0]
        self.pending = rule.pending
        self.run(*rule.rest)

    def others(self) -> list[str]:
        """Everybody on stage but the speaker."""
        return [name for name in self.cast if name != self.speaker]

    def focus_on(self, thing: Thing) -> None:
        """Let pronouns and verbs agree with `thing`."""
        self.focus = thing
        forms = "they They them are were" if thing.plural else "it It it is was"
        self.words |= zip(("subj", "Subj", "it", "be", "was"), forms.split(), strict=True)
        self.words["item"] = f"{thing.adjective} {thing.noun}"


Part = str | tuple[str, ...] | Callable[[Scene], None]


@dataclass(frozen=True)
class Rule:
    """A sentence: `head` tells it from the other rules; `pending` names the answers it wants."""

    weight: float | Callable[[Scene], float]
    head: str
    rest: tuple[Part, ...]
    pending: str | None = None


def call(stop: str) -> Part:
    """Sentence end, perhaps with a name before the stop: that person tends to speak next."""

    def write(scene: Scene) -> None:
        names = scene.others()
        weights = [10.0, *(3.0 if name == scene.asker else 1.0 for name in names)]
        chosen = scene.walk.pick([stop, *(f", {name}{stop}" for name in names)], weights)
        if chosen:
            scene.addressed = names[chosen - 1]

    return write


def old_thing(form: str) -> Part:
    """A thing mentioned before in this scene, written in `form` ({be} agrees with it)."""

    def write(scene: Scene) -> None:
        words = [
            {"noun": t.noun, "item": f"{t.adjective} {t.noun}", "be": "are" if t.plural else "is"}
            for t in scene.things
        ]
        scene.focus_on(scene.things[scene.walk.pick([form.format_map(w) for w in words])])

    return write


def any_of(words: Iterable[str], end: str = "") -> Part:
    """One of equally likely words."""
    return tuple(word + end for word in words)


def agreeing(forms: dict[str, str]) -> Part:
    """One of the nouns, then the verb form that agrees with it."""
    return tuple(f"{noun} {verb} " for noun, verb in forms.items())
