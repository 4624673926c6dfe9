"""The grammar of the embedded corpus: its words, its sentences, and the course of a scene.

`write_scene(walk)` is the only way through it; the walk decides whether `pick` draws an option or
reads it off a given text. For the reading to be unique no option may be the beginning of another
one at the same choice: words carry the blank or stop that follows them, a noun is introduced once
in a scene, and no singular noun has its plural in the lists.
"""

from __future__ import annotations

from collections.abc import Callable

from phasegpt.data._scene import Part, Rule, Scene, Thing, Walk, agreeing, any_of, call, old_thing


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


PLACES = _words(
    "harbour orchard mill market chapel forest castle cellar tavern garden tower desert"
)
TIMES = {"dawn": "morning", "noon": "day", "dusk": "evening", "midnight": "night"}
NEXT = {"dawn": "noon", "noon": "dusk", "dusk": "midnight", "midnight": "dawn"}
NAMES = _words(
    "Marin Odile Tobias Ferran Isolde Lucan Perdita Rosa Silvan Ursula Viola Corin Beatrix Dorian "
    "Emeric Giles Helena Josse Leontes Nerissa Orsino Quentin Thaisa Bertram"
)
ADJECTIVES = _words(
    "silver golden broken little heavy crimson hollow painted wooden secret stolen faded bright "
    "curious borrowed frozen velvet nameless green crooked ancient iron empty ivory old amber"
)
SINGULARS = _words(
    "key lantern mirror crown sword drum book ring bottle cup harp mask map bell cloak coin "
    "feather flute basket clock"
)
PLURALS = _words("letters pearls candles gloves ribbons apples dice stones arrows roses")
VERBS = _words("found lost bought sold buried mended hidden kept")
ROLES = {
    **dict.fromkeys(
        _words("miller captain baker priest king sailor duke beggar doctor jester"), ("he", "him")
    ),
    **dict.fromkeys(
        _words("queen widow countess nurse witch abbess empress maid singer gipsy"), ("she", "her")
    ),
}
RELATIVES = {
    **dict.fromkeys(_words("brother sister mother father cousin uncle"), "has"),
    **dict.fromkeys(_words("sons daughters neighbours rivals"), "have"),
}
DEEDS = _words(
    "married cursed betrayed robbed forgiven insulted saved followed poisoned praised "
    "painted hidden mocked healed"
)
SPOTS = _words("table door well chest roof fire stairs bed gate river wall oak")
ABSTRACTS = _words("love time fear hope grief pride sleep truth honour luck envy death")
MANNERS = _words(
    "patient gentle jealous blind cruel hungry silent faithful clever lazy "
    "humble foolish tired merry greedy noble proud bitter"
)
CREATURES = _words(
    "thief dog guest teacher wolf judge servant tailor horse dancer liar spider "
    "river garden mother soldier cat master shepherd candle pilgrim fool door fox"
)
BEASTS = _words(
    "wolves ravens horses bees owls geese bats lions crickets ghosts foxes monks frogs sheep"
)
ACTIONS = _words("steal guard carry want count break hide bring love scatter find bury wash burn")
CLAIMS = {
    **dict.fromkeys(_words("moon road sea night wind house"), "is"),
    **dict.fromkeys(_words("stars streets waves bells woods shadows"), "are"),
}
STATES = _words("long full cold deep dark quiet grey wild pale strange white restless")


def new_thing(scene: Scene) -> None:
    """A thing that nobody has mentioned, with its story: `found a silver key in the mill`."""
    verb = scene.choose(VERBS, " ")
    number = scene.walk.pick(["a", "two", "three", "seven"], [6, 1, 1, 1])
    start = {a: "n " if number == 0 and a[0] in "aeiou" else " " for a in ADJECTIVES}
    adjective = ADJECTIVES[scene.walk.pick([f"{start[a]}{a} " for a in ADJECTIVES])]
    used = {thing.noun for thing in scene.things}
    noun = scene.choose([n for n in (PLURALS if number else SINGULARS) if n not in used])
    place = scene.choose(PLACES, start=" in the ")
    story = f"{verb} {'them' if number else 'it'} in the {place}"
    scene.things.append(Thing(noun, adjective, number > 0, story, scene.speaker))
    scene.focus_on(scene.things[-1])


def role(end: str = "") -> Part:
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
        scene.run(role())
        text += scene.words["role"]
    scene.words["plan"] = text


def memory(scene: Scene) -> None:
    """Who did what to the thing, in the speaker's terms: I, you, or a third name."""
    assert scene.focus is not None
    terms = {scene.speaker: "I", scene.asker: "you"}
    scene.walk.say(f"{terms.get(scene.focus.owner, scene.focus.owner)} {scene.focus.story}")


def enter(scene: Scene, end: str) -> None:
    """Bring in somebody who is not on stage."""
    scene.cast.append(scene.choose([name for name in NAMES if name not in scene.cast], end))


def greet(scene: Scene) -> None:
    """The speaker's first words, to somebody by name."""
    scene.greeted.add(scene.speaker)
    scene.run("{greeting}, ")
    scene.addressed = scene.choose(scene.others(), ".")


def statement(scene: Scene) -> None:
    """Any sentence that answers nothing."""
    scene.apply(STATEMENTS)


def _if_things(weight: float) -> Callable[[Scene], float]:
    return lambda scene: weight if scene.things else 0


def _news_weight(scene: Scene) -> float:
    return (12, 5, 4, 2, 1, 0)[min(len(scene.things), 5)]


def _greeting_weight(scene: Scene) -> float:
    return 0 if scene.speaker in scene.greeted else 5


_CLAIM: tuple[Part, ...] = ("the ", agreeing(CLAIMS), any_of(STATES))
_SPOT: tuple[Part, ...] = (
    any_of(_words("under behind near beside"), " the "),
    any_of(SPOTS),
)
_SONG: tuple[Part, ...] = (
    any_of(BEASTS, " "),
    any_of(ACTIONS, " "),
    any_of(ADJECTIVES, " "),
    any_of(PLURALS),
)

STATEMENTS = (
    Rule(_news_weight, "I have ", (new_thing, call(".")), "news"),
    Rule(_greeting_weight, "Good ", (greet, " ", statement)),
    Rule(_if_things(3), "Where ", (old_thing("{be} the {item}"), call("?")), "where"),
    Rule(_if_things(3), "Give me the ", (old_thing("{noun}"), call(".")), "give"),
    Rule(_if_things(4), "Do you remember the ", (old_thing("{item}"), call("?")), "memory"),
    Rule(
        _if_things(4),
        "The ",
        (old_thing("{noun} {be} as "), any_of(STATES, " as a "), any_of(CREATURES), call(".")),
    ),
    Rule(_if_things(3), "I hear the ", (role(" wants the "), old_thing("{item}"), call("."))),
    Rule(3, "Have you seen the ", (role(), call("?")), "seen"),
    Rule(3, "Let us ", (plan, call(".")), "plan"),
    Rule(2, "I fear the ", (role(), call(".")), "fear"),
    Rule(5, "My ", (agreeing(RELATIVES), any_of(DEEDS, " the "), role(), call(".")), "gossip"),
    Rule(3, "Listen, ", (any_of(BEASTS, " "), *_SPOT, " and ", any_of(BEASTS, " "), *_SPOT, ".")),
    *(
        Rule(
            0.8, f"{what.capitalize()} is a ", (any_of(MANNERS, " "), any_of(CREATURES), call("."))
        )
        for what in ABSTRACTS
    ),
    *(Rule(0.8, f"{how.capitalize()} ", (*_SONG, call("."))) for how in MANNERS),
)

REPLIES = {
    "news": (
        Rule(3, "Then guard {it} well, {asker}.", ()),
        Rule(3, "May I see {it}, {asker}?", (), "see"),
        Rule(2, "{Subj} {was} mine once", (call("."),)),
        Rule(3, "The ", (role(" will want "), "{it}", call("."))),
        Rule(3, "Hide {it} ", (*_SPOT, call("."))),
    ),
    "see": (
        Rule(2, "You may, if you ask the ", (role(" first."),)),
        Rule(2, "Not before {next}, {asker}.", ()),
        Rule(2, "Look, here {subj} {be}.", ()),
    ),
    "where": (
        Rule(4, "{Subj} {be} ", (*_SPOT, call("."))),
        Rule(2, "I gave {it} to the ", (role("."),)),
        Rule(1, "I cannot say where {subj} {be}, {asker}.", ()),
        Rule(3, "Ask the ", (role(), ", for {he} has taken {it}", call("."))),
    ),
    "seen": (
        Rule(3, "{He} waits for us in the {place}", (call("."),)),
        Rule(3, "{He} has left for the ", (any_of(PLACES, "."),)),
        Rule(2, "No, and I do not wish to see {him}, {asker}.", ()),
        Rule(_if_things(3), "I saw {him} with ", (old_thing("the {noun}"), call("."))),
    ),
    "plan": (
        Rule(3, "Yes, let us {plan}.", ()),
        Rule(3, "Why should we {plan}, {asker}?", (), "why"),
        Rule(3, "Not while ", (*_CLAIM, call("."))),
    ),
    "give": (
        Rule(3, "Take {it}, {asker}, and be ", (any_of(MANNERS, "."),)),
        Rule(2, "I will not give you the {item}.", ()),
        Rule(3, "What will you pay for {it}?", (), "pay"),
    ),
    "memory": (
        Rule(5, "Yes, ", (memory, call("."))),
        Rule(1, "No, I have forgotten {it}.", ()),
    ),
    "fear": (
        Rule(3, "Why do you fear {him}, {asker}?", (), "why"),
        Rule(3, "{He} is ", (any_of(MANNERS, " as a "), any_of(CREATURES, "."))),
    ),
    "gossip": (
        Rule(2, "So much the better for {him}.", ()),
        Rule(2, "Who told you that, {asker}?", (), "who"),
    ),
    "who": (Rule(1, "The ", (role(" told me."),)),),
    "why": (Rule(1, "Because ", (*_CLAIM, ".")),),
    "pay": (
        Rule(2, "Nothing at all.", ()),
        Rule(3, "My ", (any_of(ADJECTIVES, " "), any_of(PLURALS, "."))),
    ),
}


def write_scene(walk: Walk) -> None:
    """Walk through one scene, from its heading to `Exeunt.` and the blank line after it."""
    scene = Scene(walk)
    walk.say("SCENE: the ")
    scene.words["place"] = scene.choose(PLACES, " at ")
    time = scene.choose(list(TIMES), ".\n")
    scene.words["greeting"] = TIMES[time]
    scene.words["next"] = NEXT[time]
    walk.say("Enter ")
    enter(scene, "")
    if walk.pick([", ", " and "], [2, 1]) == 0:
        enter(scene, "")
        walk.say(" and ")
    enter(scene, ".\n\n")
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
            weights |= {"Exeunt.\n\n": 2.5} if lines > 4 else {}
        chosen = scene.walk.pick(list(weights), list(weights.values()))
        if chosen < len(speakers):
            scene.speaker = speakers[chosen]
            return True
        direction = list(weights)[chosen]
        if direction == "Exit ":
            scene.cast.remove(scene.choose(scene.cast, ".\n"))
        elif direction == "Enter ":
            enter(scene, ".\n")
        else:
            return False


def _line(scene: Scene) -> None:
    """One to three sentences by one speaker; a question ends the line and waits for its answer."""
    scene.addressed = scene.asker
    scene.apply(REPLIES[scene.pending] if scene.pending else STATEMENTS)
    sentences = 1
    while sentences < 4 and not scene.pending and scene.walk.pick([" ", "\n"]) == 0:
        statement(scene)
        sentences += 1
    if sentences == 4 or scene.pending:
        scene.walk.say("\n")
