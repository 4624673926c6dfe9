"""Subject-verb agreement with fixed_query attention: a published result of others, trained anew.

    python scripts/reproduce_agreement.py --out results/reproductions/agreement

Pasqualetti and Guo (arXiv 2606.12059) train a reader of one layer and one head to say whether the
verb of a sentence agrees with its subject, with oscillators on a circle or with softmax, 5 seeds
each. This is their task and their training, outside of the GPT: every token sees all others,
padding aside. `free_anchors` is their oscillator arm: anchors may leave the circle, as in their
code; `fixed_query` is phasegpt's, whose anchors stay on it. What is there is not trained again. At
the defaults about 10 minutes of one quiet CPU core.

A sentence is "the NOUN VERB ." or, in 60% of cases, "the NOUN PREP the NOUN VERB ."; half of all
verbs agree with the first noun, and half of the second nouns have its number. Words are numbers
here: what they are called changes nothing. Two nouns are the same in singular and plural, so nobody
can say whether their verb agrees: that is the ceiling. One plural noun is spelled as a verb, and
its singular as that verb's plural.

Shapes: B batch, T tokens, Y tokens that look, D model width, d oscillator dimension, n sentences.
"""

import argparse
import math
import random
import sys
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from phasegpt.analysis.temperature_study import once
from phasegpt.attention.fixed_query import direction, on_sphere, readout
from phasegpt.cli import guarded

NOUNS, VERBS, PREPOSITIONS = 50, 30, 7
#: Pairs of nouns with one form for both numbers, and the noun that is also the verb.
ONE_FORM, VERB_NOUN, VERB_OF_IT = (17, 38), 42, 8
PAD, BEGIN, END, THE, STOP = 0, 1, 2, 4, 5  # 3 stands for unknown words, of which there are none
LONGEST, PLACES = 9, 50  # tokens of the longest sentence; positions that have anchors
SETTINGS: dict[str, Any] = {
    "d_model": 32, "heads": 1, "layers": 1, "d_ff": 64, "d_osc": 2, "p": 1, "dropout": 0.1,
    "lr": 5e-4, "weight_decay": 1e-4, "batch": 64, "epochs": 20, "clip": 1.0,
    "sentences": 40_000, "validation": 4_000,
}  # fmt: skip


# --- the task --------------------------------------------------------------------------------


def words() -> tuple[list[tuple[int, int]], list[tuple[int, int]], list[int], int]:
    """(singular, plural) of nouns and verbs, prepositions, as ids, and the size of it all."""
    free = iter(range(STOP + 1, 10_000))
    verbs = [(next(free), next(free)) for _ in range(VERBS)]
    nouns = []
    for noun in range(NOUNS):
        if noun == VERB_NOUN:
            nouns.append((verbs[VERB_OF_IT][1], verbs[VERB_OF_IT][0]))
            continue
        one = next(free)
        nouns.append((one, one if noun in ONE_FORM else next(free)))
    prepositions = [next(free) for _ in range(PREPOSITIONS)]
    return nouns, verbs, prepositions, next(free)


class Sentences(NamedTuple):
    """What is read, and what is asked of it."""

    ids_nT: Tensor  # PAD behind the end
    verb_n: Tensor  # where it stands
    agrees_n: Tensor  # bool
    simple_n: Tensor  # without a second noun
    hard_n: Tensor  # its second noun has the other number
    open_n: Tensor  # the subject has one form for both numbers

    def accuracy(self, says_n: Tensor) -> dict[str, float]:
        """Share of right answers, percent: of all sentences, simple ones and hard ones."""
        right = (says_n == self.agrees_n).double()
        every = torch.ones_like(self.simple_n)
        groups = {"all": every, "simple": self.simple_n, "hard": self.hard_n}
        return {name: 100 * float(right[group].mean()) for name, group in groups.items()}

    def ceiling(self) -> dict[str, float]:
        """Expected accuracy of a reader who knows every number and guesses where it is open."""
        open_n, every = self.open_n.double(), torch.ones_like(self.simple_n)
        groups = {"all": every, "simple": self.simple_n, "hard": self.hard_n}
        return {name: 100 * (1 - float(open_n[g].mean()) / 2) for name, g in groups.items()}


def sentences(count: int, seed: int) -> Sentences:
    """`count` sentences, drawn as theirs are: the same random numbers in the same order."""
    rng = random.Random(seed)
    nouns, verbs, prepositions, _ = words()
    numbers = range(NOUNS)
    rows: list[list[int]] = []
    facts: list[tuple[int, bool, bool, bool, bool]] = []
    for _ in range(count):
        second, singular = rng.random() < 0.6, rng.random() < 0.5
        subject, agrees = rng.choice(numbers), rng.random() < 0.5
        verb = verbs[rng.choice(range(VERBS))][singular != agrees]
        text, same = [BEGIN, THE, nouns[subject][not singular]], True
        if second:
            preposition, same = rng.choice(prepositions), rng.random() < 0.5
            other = nouns[rng.choice(numbers)][singular != same]
            text += [preposition, THE, other]
        rows.append([*text, verb, STOP, END] + [PAD] * (LONGEST - len(text) - 3))
        facts.append((len(text), agrees, not second, not same, subject in ONE_FORM))
    verb_n, *truths = (torch.tensor(column) for column in zip(*facts, strict=True))
    return Sentences(torch.tensor(rows), verb_n, *truths)


# --- the reader ------------------------------------------------------------------------------


class Attend(nn.Module):
    """One head of softmax attention: tokens y see all tokens x of their sentence, [B,Y,D]."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.q, self.k, self.v = (nn.Linear(width, width, bias=False) for _ in range(3))
        self.o = nn.Linear(width, width)

    def forward(self, y_BYD: Tensor, x_BTD: Tensor, seen_B1T: Tensor) -> Tensor:
        weights_BYT = self.weights(self.q(y_BYD), self.k(x_BTD), seen_B1T)
        return self.o(weights_BYT @ self.v(x_BTD))

    def weights(self, q_BYD: Tensor, k_BTD: Tensor, seen_B1T: Tensor) -> Tensor:
        score_BYT = q_BYD @ k_BTD.transpose(1, 2) / math.sqrt(q_BYD.shape[-1])
        return score_BYT.masked_fill(~seen_B1T, -math.inf).softmax(-1)


class FixedQuery(Attend):
    """phasegpt's fixed_query without its causal mask; padding does not pull x*, but is read."""

    def __init__(self, width: int, dimension: int) -> None:
        super().__init__(width)
        self.anchors = nn.Parameter(F.normalize(torch.randn(1, PLACES, dimension), dim=-1))

    def weights(self, q_BYD: Tensor, k_BTD: Tensor, seen_B1T: Tensor) -> Tensor:
        q_B1YD, k_B1TD = q_BYD.unsqueeze(1), k_BTD.unsqueeze(1)
        anchors_1Td = on_sphere(self.anchors[:, : k_BTD.shape[1]])
        star_B1Yd = direction(q_B1YD, k_B1TD, anchors_1Td, seen_B1T.unsqueeze(1))
        p_1 = q_BYD.new_full((1,), SETTINGS["p"])
        return readout(star_B1Yd, anchors_1Td, p_1).squeeze(1)


class FreeAnchors(FixedQuery):
    """The same with anchors that begin on the circle and may leave it, as in the authors' code."""

    def weights(self, q_BYD: Tensor, k_BTD: Tensor, seen_B1T: Tensor) -> Tensor:
        anchors_Td = self.anchors[0, : k_BTD.shape[1]]
        score_BYT = q_BYD @ k_BTD.transpose(1, 2) / math.sqrt(q_BYD.shape[-1])
        star_BYd = F.normalize((F.softplus(score_BYT) * seen_B1T) @ anchors_Td, dim=-1)
        kernel_BYT = (1 + star_BYd @ anchors_Td.T).clamp(min=0)
        return kernel_BYT / kernel_BYT.sum(-1, keepdim=True).clamp(min=1e-8)


ARMS = {"fixed_query": FixedQuery, "free_anchors": FreeAnchors, "softmax": Attend}


class AgreementReader(nn.Module):
    """Embedding and sines, one block, and one number at the verb: above 0 it agrees.

    Since there is one block, nothing but the verb's row of it is computed.
    """

    def __init__(self, arm: str) -> None:
        super().__init__()
        D, hidden, rate = SETTINGS["d_model"], SETTINGS["d_ff"], SETTINGS["dropout"]
        self.embedding = nn.Embedding(words()[-1], D, padding_idx=PAD)
        place_T1 = torch.arange(LONGEST).unsqueeze(-1)
        angle_TP = place_T1 * 10_000.0 ** (-torch.arange(0, D, 2) / D)
        waves_TD = torch.stack((angle_TP.sin(), angle_TP.cos()), -1).flatten(1)
        self.register_buffer("waves_TD", waves_TD, persistent=False)
        self.drop = nn.Dropout(rate)
        self.ln_1, self.ln_2, self.ln_f = (nn.LayerNorm(D) for _ in range(3))
        attend = ARMS[arm]
        self.attn = attend(D) if attend is Attend else attend(D, SETTINGS["d_osc"])
        self.mlp = nn.Sequential(
            nn.Linear(D, hidden),
            nn.GELU(),
            nn.Dropout(rate),
            nn.Linear(hidden, D),
            nn.Dropout(rate),
        )
        self.head = nn.Linear(D, 1)

    def forward(self, ids_BT: Tensor, verb_B: Tensor) -> Tensor:
        """How much it thinks that the verb agrees, [B]."""
        x_BTD = self.drop(self.embedding(ids_BT) + self.waves_TD)
        verb_B1D = verb_B.view(-1, 1, 1).expand(-1, 1, x_BTD.shape[-1])
        y_B1D, h_BTD = x_BTD.gather(1, verb_B1D), self.ln_1(x_BTD)
        seen_B1T = (ids_BT != PAD).unsqueeze(1)
        y_B1D = y_B1D + self.attn(h_BTD.gather(1, verb_B1D), h_BTD, seen_B1T)
        y_B1D = y_B1D + self.mlp(self.ln_2(y_B1D))
        return self.head(self.ln_f(y_B1D)).flatten()


def train(arm: str, seeds: list[int], *, epochs: int) -> dict[int, dict[str, Any]]:
    """A run for each seed, side by side in one process, which is several times as fast.

    Each has initial weights, an order of sentences, a gradient norm and an optimizer state of its
    own; dropout of all of them comes from one stream. Accuracy is that on the validation sentences
    after every epoch; the last one counts.
    """
    models, orders = [], []
    for seed in seeds:
        torch.manual_seed(seed)
        models.append(AgreementReader(arm))
        orders.append(torch.Generator().manual_seed(seed))
    weights, constants = torch.func.stack_module_state(models)
    model, size = models[0], SETTINGS["batch"]

    def answers(own: dict[str, Tensor], ids_BT: Tensor, verb_B: Tensor) -> Tensor:
        return torch.func.functional_call(model, (own, constant), (ids_BT, verb_B))

    def loss(own: dict[str, Tensor], ids_BT: Tensor, verb_B: Tensor, agrees_B: Tensor) -> Tensor:
        return F.binary_cross_entropy_with_logits(answers(own, ids_BT, verb_B), agrees_B)

    constant = {name: value[0] for name, value in constants.items()}  # the same for all seeds
    data, held = sentences(SETTINGS["sentences"], 0), sentences(SETTINGS["validation"], 1)
    steps = epochs * math.ceil(len(data.ids_nT) / size)
    optimizer = torch.optim.AdamW(
        weights.values(), lr=SETTINGS["lr"], weight_decay=SETTINGS["weight_decay"], fused=True
    )
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=steps)
    curves: list[list[dict[str, float]]] = [[] for _ in seeds]
    for epoch in range(epochs):
        model.train()
        order_Sn = torch.stack([torch.randperm(len(data.ids_nT), generator=g) for g in orders])
        for rows_SB in order_Sn.split(size, dim=1):
            batch = (data.ids_nT[rows_SB], data.verb_n[rows_SB], data.agrees_n[rows_SB].float())
            optimizer.zero_grad()
            torch.vmap(loss, randomness="different")(weights, *batch).sum().backward()
            clip([w.grad for w in weights.values()], SETTINGS["clip"])
            optimizer.step()
            schedule.step()
        model.eval()
        with torch.no_grad():
            says_Sn = torch.vmap(answers, (0, None, None))(weights, held.ids_nT, held.verb_n) > 0
        for curve, says_n in zip(curves, says_Sn, strict=True):
            curve.append(held.accuracy(says_n))
        shown = " ".join(f"{curve[-1]['all']:.2f}" for curve in curves)
        print(f"{arm} epoch {epoch + 1}: {shown}", flush=True)
    found: dict[int, dict[str, Any]] = {}
    for at, (seed, curve) in enumerate(zip(seeds, curves, strict=True)):
        found[seed] = {
            "accuracy": curve[-1],
            "curve": curve,
            "ceiling": held.ceiling(),
            "parameters": sum(w[at].numel() for w in weights.values()),
            "steps": steps,
            "together": seeds,
            "command": " ".join(["python scripts/reproduce_agreement.py", *sys.argv[1:]]),
        }
        if arm != "softmax":
            lengths = weights["attn.anchors"][at, 0, :LONGEST].norm(dim=-1)
            found[seed]["anchor_lengths"] = lengths.tolist()
    return found


def clip(gradients_S: list[Tensor], largest: float) -> None:
    """Scale the gradients of each seed down to a norm of `largest` over all weights."""
    norm_S = sum(g.flatten(1).square().sum(1) for g in gradients_S).sqrt()
    scale_S = (largest / (norm_S + 1e-6)).clamp(max=1)
    for g in gradients_S:
        g.mul_(scale_S.view(-1, *[1] * (g.dim() - 1)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="folder of the records")
    parser.add_argument("--seeds", type=int, nargs="+", default=list(range(5)))
    parser.add_argument("--arms", nargs="+", default=list(ARMS), choices=list(ARMS))
    parser.add_argument("--epochs", type=int, default=SETTINGS["epochs"])
    args = parser.parse_args()
    torch.set_num_threads(1)
    settings = {**SETTINGS, "epochs": args.epochs}
    for arm in args.arms:
        missing = [
            s for s in args.seeds if not (args.out / "arms" / f"{arm}-seed{s}.json").exists()
        ]
        made = train(arm, missing, epochs=args.epochs) if missing else {}
        for seed in args.seeds:
            once(args.out, arm, seed, settings, partial(made.get, seed))


if __name__ == "__main__":
    raise SystemExit(guarded(main))
