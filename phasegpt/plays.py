"""The grammar of the embedded corpus: the words, the rules and the memory of one scene.

`write_scene(walk)` is the only way through it. The walk decides what `pick` does: draw an option
or read it off a given text (see phasegpt.synthetic). For the reading to be unique no option may
be the beginning of another one at the same choice; words therefore carry the blank or stop that
follows them, a noun is used once in a scene, and no singular noun has its plural in the list.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

PLACES = "harbour orchard mill market chapel forest castle bridge tavern garden tower desert"
TIMES = {"dawn": "morning", "noon": "day", "dusk": "evening", "midnight": "night"}
NAMES = (
    "Marin Odile Tobias Ferrand Isolde Lucan Perdita Rosalba Silvan Ursula Viola Corin "
    "Beatrix Dorian Emeric Giles Helena Jocelyn Leontes Nerissa Orsino Quentin Thaisa Bertram"
)
ADJECTIVES = (
    "silver golden broken little heavy crimson hollow painted wooden secret stolen faded bright "
    "curious borrowed frozen velvet nameless ancient iron empty ivory old amber"
)
SINGULARS = (
    "key lantern mirror crown sword drum book ring bottle cup harp mask map bell cloak coin "
    "feather flute basket clock"
)
PLURALS = "letters pearls candles gloves ribbons apples dice stones arrows roses"
VERBS = "found lost bought sold buried mended made kept"
ROLES = {
    **dict.fromkeys("miller captain baker priest king sailor".split(), ("he", "him")),
    **dict.fromkeys("queen widow duchess nurse witch abbess".split(), ("she", "her")),
}
PLANS = ("leave the {place}", "wait for the {role}", "hide the {item}", "follow the {role}")


class Walk(Protocol):
    """What the grammar needs of a sampler or a scorer."""

    def say(self, text: str) -> None:
        """Write (or expect) `text`."""

    def pick(self, options: Sequence[str], weights: Sequence[float] | None = None) -> int:
        """Write (or recognise) one of the options, drawn with these weights; return its index."""


@dataclass(frozen=True)
class Thing:
    """Something a speaker has brought into the scene; `noun` includes its adjective."""

    noun: str
    plural: bool
    verb: str
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

    def enter(self, end: str) -> None:
        """Bring in somebody who is not on stage."""
        names = [name for name in NAMES.split() if name not in self.cast]
        self.cast.append(self.choose(names, end))

    def focus_on(self, thing: Thing) -> None:
        """Let pronouns and verbs agree with `thing`."""
        self.focus = thing
        forms = "they They them are were" if thing.plural else "it It it is was"
        self.words |= zip(("subj", "Subj", "it", "be", "was"), forms.split(), strict=True)
        self.words["item"] = thing.noun


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
        weights = [4.0, *(3.0 if name == scene.asker else 1.0 for name in names)]
        chosen = scene.walk.pick([stop, *(f", {name}{stop}" for name in names)], weights)
        if chosen:
            scene.addressed = names[chosen - 1]

    return write


def new_thing(scene: Scene) -> None:
    """A thing that nobody has mentioned, with its verb: `found a silver key`."""
    verb = scene.choose(VERBS.split(), " ")
    number = scene.walk.pick(["a", "two", "three", "seven"], [6, 1, 1, 1])
    adjectives = ADJECTIVES.split()
    start = {a: "n " if number == 0 and a[0] in "aeiou" else " " for a in adjectives}
    adjective = adjectives[scene.walk.pick([f"{start[a]}{a} " for a in adjectives])]
    used = {thing.noun.split()[1] for thing in scene.things}
    nouns = [n for n in (PLURALS if number else SINGULARS).split() if n not in used]
    noun = f"{adjective} {scene.choose(nouns)}"
    scene.things.append(Thing(noun, number > 0, verb, scene.speaker))
    scene.focus_on(scene.things[-1])


def old_thing(form: str) -> Part:
    """A thing mentioned before in this scene, written in `form` ({be} agrees with it)."""

    def write(scene: Scene) -> None:
        texts = [form.format(item=t.noun, be="are" if t.plural else "is") for t in scene.things]
        scene.focus_on(scene.things[scene.walk.pick(texts)])

    return write


def role(end: str) -> Part:
    """A person who is not on stage; later pronouns agree."""

    def write(scene: Scene) -> None:
        scene.words["role"] = name = scene.choose(list(ROLES), end)
        scene.words["he"], scene.words["him"] = ROLES[name]
        scene.words["He"] = ROLES[name][0].capitalize()

    return write


def plan(scene: Scene) -> None:
    """A plan, kept word for word for the answers."""
    plans = ["leave the {place}", "wait here until {next}", "look for the ", "send for the "]
    texts = [text.format_map(scene.words) for text in plans]
    text = texts[scene.walk.pick(texts)]
    if text.endswith(" "):
        role("")(scene)
        text += scene.words["role"]
    scene.words["plan"] = text


def memory(scene: Scene) -> None:
    """Who did what to the thing, in the speaker's terms: I, you, or a third name."""
    thing = scene.focus
    assert thing is not None
    terms = {scene.speaker: "I", scene.asker: "you"}
    scene.walk.say(f"{terms.get(thing.owner, thing.owner)} {thing.verb} {scene.words['it']}")


def greet(scene: Scene) -> None:
    """The speaker's first words, to somebody by name."""
    scene.greeted.add(scene.speaker)
    scene.run("{greeting}, ")
    scene.addressed = scene.choose(scene.others(), ".")


def statement(scene: Scene) -> None:
    """Any sentence that answers nothing."""
    scene.apply(STATEMENTS)


def _things(weight: float) -> Callable[[Scene], float]:
    return lambda scene: weight if scene.things else 0


STATEMENTS = (
    Rule(
        lambda scene: (9, 4, 3, 2, 1, 0)[min(len(scene.things), 5)],
        "I have ",
        (new_thing, call(".")),
        "news",
    ),
    Rule(
        lambda scene: 0 if scene.speaker in scene.greeted else 4,
        "Good ",
        (greet, " ", statement),
    ),
    Rule(_things(3), "Where ", (old_thing("{be} the {item}"), call("?")), "where"),
    Rule(
        _things(2),
        "The ",
        (
            old_thing("{item} {be} "),
            (
                "cursed",
                "worth a kingdom",
                "cold as ice",
                "not for children",
                "older than the hills",
                "too good for thieves",
                "made of moonlight",
                "no use to me",
            ),
            call("."),
        ),
    ),
    Rule(2, "Have you seen the ", (role(""), call("?")), "seen"),
    Rule(2, "Let us ", (plan, call(".")), "plan"),
    Rule(_things(3), "Give me the ", (old_thing("{item}"), call(".")), "give"),
    Rule(_things(3), "Do you remember the ", (old_thing("{item}"), call("?")), "memory"),
    Rule(1, "I fear the ", (role(""), call(".")), "fear"),
    Rule(_things(2), "I hear that the ", (role(" wants the "), old_thing("{item}"), call("."))),
    Rule(
        1,
        "They say ",
        (
            (
                "time is a patient thief",
                "love is blind",
                "the sea keeps no secrets",
                "a full purse has many friends",
                "every road leads home",
                "no night is without end",
                "gold cannot buy sleep",
                "fools rush where angels wait",
            ),
            call("."),
        ),
    ),
)

REPLIES = {
    "news": (
        Rule(3, "Then guard {it} well, {asker}.", ()),
        Rule(3, "May I see {it}, {asker}?", (), "see"),
        Rule(2, "{Subj} {was} mine once", (call("."),)),
        Rule(2, "I do not believe you, {asker}.", ()),
        Rule(2, "The ", (role(" will want {it}"), call("."))),
    ),
    "see": (
        Rule(2, "You may, if you ask the ", (role(" first."),)),
        Rule(2, "Not before {next}, {asker}.", ()),
        Rule(2, "Look, here {subj} {be}.", ()),
    ),
    "where": (
        Rule(
            4,
            "{Subj} {be} ",
            (
                (
                    "under the table.",
                    "behind the door.",
                    "at the bottom of the well.",
                    "in the chest.",
                    "on the roof.",
                    "between two graves.",
                    "beside the fire.",
                    "where you left {it}.",
                ),
            ),
        ),
        Rule(2, "I gave {it} to the ", (role("."),)),
        Rule(2, "I cannot say where {subj} {be}, {asker}.", ()),
        Rule(2, "Ask the ", (role(""), ", for {he} has taken {it}", call("."))),
    ),
    "seen": (
        Rule(3, "{He} waits for us in the {place}", (call("."),)),
        Rule(2, "{He} has left for the ", (tuple(p + "." for p in PLACES.split()),)),
        Rule(2, "No, {asker}, and I do not wish to see {him}.", ()),
        Rule(_things(2), "I saw {him} with ", (old_thing("the {item}"), call("."))),
    ),
    "plan": (
        Rule(3, "Yes, let us {plan}.", ()),
        Rule(2, "Why should we {plan}, {asker}?", (), "why"),
        Rule(2, "I dare not {plan}.", ()),
    ),
    "give": (
        Rule(3, "Take {it}, {asker}, and be happy.", ()),
        Rule(2, "I will not give you the {item}.", ()),
        Rule(2, "What will you pay for {it}?", (), "pay"),
    ),
    "memory": (
        Rule(4, "Yes, ", (memory, call("."))),
        Rule(1, "No, I have forgotten {it}.", ()),
    ),
    "fear": (
        Rule(2, "Why do you fear {him}, {asker}?", (), "why"),
        Rule(2, "{He} is kinder than you think.", ()),
        Rule(1, "So do I, {asker}.", ()),
    ),
    "why": (
        Rule(
            1,
            "Because ",
            (
                (
                    "the road is long.",
                    "no one will stop us.",
                    "my heart is uneasy.",
                    "the moon is full.",
                    "a ghost has told me so.",
                    "there is blood on the stairs.",
                ),
            ),
        ),
    ),
    "pay": tuple(
        Rule(1, price, (call("."),))
        for price in ("A song and a kiss", "Ten gold crowns", "My best horse", "Nothing at all")
    ),
}


def write_scene(walk: Walk) -> None:
    """Walk through one scene, from its heading to `Exeunt.` and the blank line after it."""
    scene = Scene(walk)
    walk.say("SCENE: the ")
    scene.words["place"] = scene.choose(PLACES.split(), " at ")
    time = scene.choose(list(TIMES), ".\n")
    scene.words["greeting"] = TIMES[time]
    scene.words["next"] = {"dawn": "noon", "noon": "dusk", "dusk": "midnight"}.get(time, "dawn")
    walk.say("Enter ")
    scene.enter("")
    if walk.pick([", ", " and "], [2, 1]) == 0:
        scene.enter("")
        walk.say(" and ")
    scene.enter(".\n\n")
    lines = 0
    while _label(scene, lines):
        lines += 1
        _line(scene)


def _label(scene: Scene, lines: int) -> bool:
    """Stage directions, then the next speaker's label; False when the scene is over."""
    scene.asker = scene.words["asker"] = scene.speaker
    while True:
        speakers = scene.others()
        weights = {f"{n.upper()}. ": 10.0 if n == scene.addressed else 1.0 for n in speakers}
        if lines and not scene.pending:
            weights |= {"Exit ": 0.3} if len(scene.cast) > 2 else {}
            weights |= {"Enter ": 0.3} if len(scene.cast) < 4 else {}
            weights |= {"Exeunt.\n\n": 1.5} if lines > 5 else {}
        chosen = scene.walk.pick(list(weights), list(weights.values()))
        if chosen < len(speakers):
            scene.speaker = speakers[chosen]
            return True
        direction = list(weights)[chosen]
        if direction == "Exit ":
            scene.cast.remove(scene.choose(scene.cast, ".\n"))
        elif direction == "Enter ":
            scene.enter(".\n")
        else:
            return False


def _line(scene: Scene) -> None:
    """One to three sentences by one speaker; a question ends the line and waits for its answer."""
    scene.addressed = scene.asker
    scene.apply(REPLIES[scene.pending] if scene.pending else STATEMENTS)
    for _ in range(2):
        if scene.pending or scene.walk.pick([" ", "\n"], [1, 2]):
            break
        statement(scene)
    else:
        scene.pending or 0
    if scene.pending:
        scene.walk.say("\n")
