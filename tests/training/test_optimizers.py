"""The contract of an optimizer, over every YAML of conf/optimizer: it trains, is recorded, resumes.

A new optimizer is tested here as soon as its YAML exists.
"""

import functools
from dataclasses import fields

import pytest
import torch
import yaml
from helpers import NOISY, assert_identical, composed, crash_at

from phasegpt.core.composition import CONF_DIR, compose
from phasegpt.core.errors import ConfigError
from phasegpt.training.config import run_config
from phasegpt.training.optim import build_optimizer, parameter_groups
from phasegpt.training.optimizer_config import OPTIMIZERS, MuonConfig, ScheduledConfig
from phasegpt.training.optimizers import Lion, ScheduleFree
from phasegpt.training.run import fit
from phasegpt.training.run_folder import read_metrics, read_record

STEMS = sorted(path.stem for path in (CONF_DIR / "optimizer").glob("*.yaml"))
#: What optimizer=own names here, with an argument of its own.
OWN = {"_target_": "torch.optim.RAdam", "betas": [0.9, 0.9]}


def section(name, **values):
    own = OWN if name == "own" else {}
    return OPTIMIZERS[name].parse(
        {"lr": 1e-2, "weight_decay": 0.1, "warmup_steps": 0} | own | values
    )


def words_of(stem):
    own = ["optimizer._target_=torch.optim.RAdam", "+optimizer.betas=[0.9,0.9]"]
    return own if stem == "own" else [f"optimizer={stem}"]


# --- every optimizer -------------------------------------------------------------------------


def test_every_optimizer_has_a_file_and_every_file_an_optimizer():
    assert sorted(OPTIMIZERS) == STEMS


@pytest.mark.parametrize("stem", STEMS)
def test_it_is_recorded_by_name_and_resumed_bit_for_bit(tmp_path, text, stem):
    words = [*NOISY, *text, *words_of(stem), "optimizer.oscillator_lr_factor=2"]
    fit(compose(words), tmp_path / "whole")
    with crash_at(7):
        fit(compose(words), tmp_path / "cut")
    fit(compose([*words, "resume=true"]), tmp_path / "cut")
    assert_identical(tmp_path / "whole", tmp_path / "cut")

    group = read_record(tmp_path / "cut")["config"]["optimizer"]
    assert group.get("name", "adamw") == stem
    rates = [row["train/lr"] for row in read_metrics(tmp_path / "cut" / "metrics.csv")]
    assert rates[2] == yaml.safe_load((CONF_DIR / f"optimizer/{stem}.yaml").read_text())["lr"]
    written = yaml.safe_load((tmp_path / "cut" / "config.yaml").read_text())
    assert type(run_config(written).optimizer) is OPTIMIZERS[stem]
    assert run_config(written).hash == read_record(tmp_path / "whole")["config_hash"]


@pytest.mark.parametrize("stem", STEMS)
def test_the_loss_falls_and_every_parameter_moves(make_model, stem):
    model = make_model("kuramoto", layers=(1,)).train()
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    given = yaml.safe_load((CONF_DIR / "optimizer" / f"{stem}.yaml").read_text())
    own = OWN if stem == "own" else {}
    optimizer = build_optimizer(model, OPTIMIZERS[stem].parse(given | own))
    losses = descend(model, optimizer, 12)
    assert losses[-1] < losses[0]
    assert [n for n, p in model.named_parameters() if torch.equal(p, before[n])] == []


def descend(model, optimizer, steps):
    idx = torch.arange(32).reshape(2, 16) % 11
    losses = []
    for _ in range(steps):
        if isinstance(optimizer, ScheduleFree):
            optimizer.look_ahead()
        logits = model(idx[:, :-1]).logits
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), idx[:, 1:].flatten())
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return losses


@pytest.mark.parametrize("stem", STEMS)
def test_groups_hold_decay_and_the_factors_of_oscillators(make_model, stem):
    model = make_model("kuramoto", layers=(1,))
    optimizer = build_optimizer(model, section(stem, oscillator_lr_factor=0.0))
    named = dict(model.named_parameters())
    group_of = {id(p): group for group in optimizer.param_groups for p in group["params"]}
    assert len(group_of) == len(named)
    still = {name: p.detach().clone() for name, p in named.items()}
    descend(model, optimizer, 2)
    for name, p in named.items():
        oscillator = "oscillators" in name or name.endswith(".beta")
        assert torch.equal(p, still[name]) == oscillator, name
        decay = 0.1 if p.dim() >= 2 and not oscillator else 0.0
        assert group_of[id(p)]["weight_decay"] == decay, name
    assert optimizer.param_groups[0]["lr"] == 1e-2  # the logged one


@pytest.mark.parametrize("stem", STEMS)
def test_the_state_round_trips_exactly_and_without_code(make_model, tmp_path, stem):
    one, two = make_model("kuramoto"), make_model("kuramoto")
    first, second = (build_optimizer(model, section(stem)) for model in (one, two))
    descend(one, first, 3)
    torch.save(first.state_dict(), tmp_path / "state")
    two.load_state_dict(one.state_dict())
    second.load_state_dict(torch.load(tmp_path / "state", weights_only=True))
    assert descend(one, first, 3) == descend(two, second, 3)
    for p, q in zip(one.parameters(), two.parameters(), strict=True):
        assert torch.equal(p, q)


@pytest.mark.parametrize("name", ["lion", "schedule_free", "sgd"])
def test_keys_of_another_optimizer_are_refused(name):
    key = {"lion": "eps=1e-8", "schedule_free": "schedule=cosine", "sgd": "betas=[0.9,0.9]"}[name]
    with pytest.raises(ConfigError, match=f"optimizer.{key.split('=')[0]} is unknown"):
        run_config(compose([f"optimizer={name}", f"+optimizer.{key}"]))


def test_an_unknown_optimizer_is_answered_with_the_known_ones():
    values = composed().to_dict()
    values["optimizer"]["name"] = "lyon"
    with pytest.raises(ConfigError, match="optimizer=lyon is unknown; did you mean optimizer=lion"):
        run_config(values)


def test_a_group_without_a_name_is_that_of_adamw():
    assert composed().optimizer.name == "adamw"
    assert list(composed().to_dict()["optimizer"]) == [
        *("lr", "min_lr", "warmup_steps", "schedule", "weight_decay", "betas", "eps"),
        "oscillator_lr_factor",
    ]


def test_every_optimizer_has_a_hash_of_its_own():
    hashes = {run_config(compose([*words_of(stem), "optimizer.lr=0.001"])).hash for stem in STEMS}
    assert len(hashes) == len(STEMS)


# --- each against its formula ----------------------------------------------------------------


def one():
    return torch.nn.Parameter(torch.tensor([2.0], dtype=torch.float64))


def steps(p, optimizer, gradients):
    for gradient in gradients:
        p.grad = torch.full_like(p, gradient)
        optimizer.step()
    return p.item()


def test_lion_takes_signed_steps_by_hand():
    p = one()
    group = {"params": [p], "lr": 0.1, "weight_decay": 0.5}
    optimizer = Lion([group], lr=0.1, betas=(0.9, 0.99))
    # m: 0, 0.01 * 3 = 0.03; direction of step 2: sign(0.9 * 0.03 - 0.1 * 0.2) = sign(0.007) = +1
    after_one = 2.0 * (1 - 0.05) - 0.1
    assert steps(p, optimizer, [3.0]) == pytest.approx(after_one)
    assert steps(p, optimizer, [-0.2]) == pytest.approx(after_one * 0.95 - 0.1)
    assert optimizer.state[p]["momentum"].item() == pytest.approx(0.99 * 0.03 - 0.01 * 0.2)


def test_schedule_free_is_the_mean_of_its_path_by_hand():
    p, b1, b2, lr = one(), 0.9, 0.95, 0.1
    group = {"params": [p], "lr": lr, "weight_decay": 0.5}
    optimizer = ScheduleFree([group], lr=lr, betas=(b1, b2), eps=1e-8)
    x = z = 2.0
    second = 0.0
    for k, gradient in enumerate([1.0, -3.0, 0.5, 2.0], start=1):
        y = (1 - b1) * z + b1 * x
        optimizer.look_ahead()
        optimizer.look_ahead()  # a second micro-batch changes nothing
        assert p.item() == pytest.approx(y, rel=1e-12)
        second = b2 * second + (1 - b2) * gradient**2
        z -= lr * (gradient / ((second / (1 - b2**k)) ** 0.5 + 1e-8) + 0.5 * y)
        x += (z - x) / k
        steps(p, optimizer, [gradient])
        assert p.item() == pytest.approx(x, rel=1e-12)


def test_schedule_free_wants_its_gradients_ahead():
    p = one()
    optimizer = ScheduleFree([{"params": [p], "lr": 0.1}], lr=0.1, betas=(0.9, 0.9), eps=1e-8)
    with pytest.raises(RuntimeError, match="look_ahead"):
        steps(p, optimizer, [1.0])


def test_muon_turns_the_matrices_of_blocks_alone(make_model):
    model = make_model("kuramoto", layers=(1,))
    names = {id(p): name for name, p in model.named_parameters()}
    rules = {
        names[id(p)]: group["rule"]
        for group in parameter_groups(model, MuonConfig(lr=1e-3))
        for p in group["params"]
    }
    for name, rule in rules.items():
        matrix = ".h." in name and model.get_parameter(name).dim() == 2
        turned = matrix and "oscillators" not in name and not name.endswith(".beta")
        assert rule == ("muon" if turned else "adamw"), name


class Both:
    """torch's Muon and AdamW, each of its groups."""

    def __init__(self, groups, *, betas, eps, **muon):
        of = {rule: [dict(g) for g in groups if g["rule"] == rule] for rule in ("muon", "adamw")}
        muon = torch.optim.Muon(of["muon"], adjust_lr_fn="match_rms_adamw", **muon)
        self.two = muon, torch.optim.AdamW(of["adamw"], betas=betas, eps=eps, fused=True)

    def step(self):
        for one in self.two:
            one.step()

    def zero_grad(self):
        for one in self.two:
            one.zero_grad()


def adafactor(groups, beta2_decay, clip, min_scale):
    return torch.optim.Adafactor(groups, beta2_decay=beta2_decay, d=clip, eps=(None, min_scale))


ADAM = {"betas": (0.5, 0.8), "eps": 1e-3}
MUON = {"momentum": 0.8, "nesterov": False, "ns_steps": 3}
#: Values of an optimizer's own options, none of them the default, and what takes them.
OPTIONS = {
    "adamw": (ADAM, functools.partial(torch.optim.AdamW, fused=True)),
    "sgd": ({"momentum": 0.5, "nesterov": True}, torch.optim.SGD),
    "muon": (MUON | ADAM, Both),
    "lion": ({"betas": (0.5, 0.8)}, functools.partial(Lion, lr=1e-2)),
    "adafactor": ({"beta2_decay": -0.5, "clip": 1.5, "min_scale": 0.1}, adafactor),
    "schedule_free": (ADAM, functools.partial(ScheduleFree, lr=1e-2)),
    "own": ({"betas": (0.5, 0.8)}, torch.optim.RAdam),
}


@pytest.mark.parametrize("stem", STEMS)
def test_every_option_reaches_the_optimizer(make_model, stem):
    values, reference = OPTIONS[stem]
    own = {f.name for f in fields(OPTIMIZERS[stem])} - {f.name for f in fields(ScheduledConfig)}
    assert own - {"target", "arguments"} <= values.keys()

    def losses(**given):
        model = make_model("kuramoto")
        return descend(model, build_optimizer(model, section(stem, **given)), 3)

    model = make_model("kuramoto")
    groups = parameter_groups(model, section(stem, **values))
    assert losses(**values) == descend(model, reference(groups, **values), 3)
    for name in values:
        others = {key: value for key, value in values.items() if key != name}
        assert losses(**others) != losses(**values), name
