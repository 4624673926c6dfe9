"""conf/ is whole: every option composes, validates and builds; experiments hold the seeds' numbers.

Bad values are answered by one short ConfigError with the value and the fix.
"""

import functools
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from phasegpt import model as gpt
from phasegpt.build import build, gpt_config, run_config
from phasegpt.config import CONF_DIR, GPTConfig, RunConfig, compose, plain
from phasegpt.errors import ConfigError
from phasegpt.lit import LitGPT

# Those that set one section each; the others set values of the whole configuration, and `sampler`
# is of another command (tests/samplers/test_commands.py).
_GLOBAL = {"experiment", "sweep", "scale", "launcher", "sampler"}
GROUPS = sorted(p.name for p in CONF_DIR.iterdir() if p.is_dir() and p.name not in _GLOBAL)
OPTIONS = [
    f"{group}={path.stem}" for group in GROUPS for path in sorted((CONF_DIR / group).glob("*.yaml"))
]
ATTENTIONS = [option for option in OPTIONS if option.startswith("attention=")]
EXPERIMENT_FILES = sorted(
    p for p in (CONF_DIR / "experiment").rglob("*.yaml") if "_shared" not in p.parts
)
EXPERIMENTS = [
    p.relative_to(CONF_DIR / "experiment").with_suffix("").as_posix() for p in EXPERIMENT_FILES
]
every_experiment = pytest.mark.parametrize("experiment", EXPERIMENTS)


@functools.cache
def composed(*overrides: str) -> RunConfig:
    return run_config(compose(list(overrides)))


def model_of(run: RunConfig, vocab_size: int = 65) -> GPTConfig:
    return GPTConfig.from_sections(run.model, run.attention, vocab_size)


def at(values: dict[str, Any], key: str) -> Any:
    """values["a"]["b"] for key "a.b"."""
    for part in key.split("."):
        values = values[part]
    return values


# --- groups ----------------------------------------------------------------------------------


def test_the_groups_are_the_promised_ones() -> None:
    promised = {"attention", "callbacks", "data", "logger", "model", "optimizer", "regularizer"}
    assert promised | {"trainer"} <= set(GROUPS)
    known = {option.split("=")[1] for option in OPTIONS if option.startswith("data=")}
    assert known == {"shakespeare", "wikitext2", "text", "hub", "synthetic"}
    sizes = {option.split("=")[1] for option in OPTIONS if option.startswith("model=")}
    assert sizes >= {"nano", "small", "gpt2", "gpt2_medium", "gpt2_large"}


@pytest.mark.parametrize("option", OPTIONS)
def test_every_option_composes_and_validates(option: str) -> None:
    group, name = option.split("=")
    run = composed(option)
    written = yaml.safe_load((CONF_DIR / group / f"{name}.yaml").read_text())
    written.pop("defaults", None)
    found = at(run.to_dict(), group)
    assert {k: found[k] for k in written} == written
    assert RunConfig.parse(run.to_dict()) == run


def test_the_default_configuration_is_valid_and_small() -> None:
    run = composed()
    assert (run.seed, run.resume, run.debug, run.compile) == (42, False, False, "auto")
    assert run.name == "kuramoto-synthetic"
    assert (run.model.n_layer, run.model.n_embd) == (12, 64)


@pytest.mark.parametrize("option", ATTENTIONS)
@pytest.mark.parametrize("positions", ["learned", "rope"])
def test_every_attention_builds_at_nano_size(option: str, positions: str) -> None:
    run = composed(option, "model=nano", f"model.positions={positions}")
    model = gpt.GPT(model_of(run), seed=run.seed)
    assert model(torch.zeros(1, 2, dtype=torch.long)).logits.shape == (1, 2, 65)
    assert not model.leaky


@pytest.mark.parametrize("option", [o for o in OPTIONS if o.startswith("model=")])
def test_every_model_builds_and_has_its_size(option: str) -> None:
    run = composed(option, "attention=softmax")
    with torch.device("meta"):
        model = gpt.GPT(model_of(run, 50257), seed=0)
    found = model.num_parameters(non_embedding=False)
    # GPT-2's published sizes; `gpt2` has the seeds' context of 512 instead of 1024.
    sizes = {
        "model=nano": 12 * (12 * 64**2 + 13 * 64) + 2 * 64 + (50257 + 128) * 64,
        "model=small": 4 * (12 * 128**2 + 13 * 128) + 2 * 128 + (50257 + 128) * 128,
        "model=gpt2": 124_439_808 - 512 * 768,
        "model=gpt2_rope": 124_439_808 - 1024 * 768,
        "model=gpt2_medium": 354_823_168,
        "model=gpt2_large": 774_030_080,
    }
    assert found == sizes[option]
    assert composed(option).model.vocab_size is None


def test_build_reads_no_data_and_takes_the_seed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PHASEGPT_DATA_DIR", "/nowhere")
    run = composed("data=shakespeare", "model=nano", "seed=7")
    model = build(run)
    assert model.config.vocab_size == 65
    again = gpt.GPT(gpt_config(run), seed=7)
    assert torch.equal(model.lm_head.weight, again.lm_head.weight)


# --- experiments -----------------------------------------------------------------------------

PHASE_A = {
    **{"model.n_layer": 12, "model.n_head": 12, "model.n_embd": 768, "model.block_size": 512},
    **{"model.dropout": 0.1, "model.positions": "learned", "seed": 42},
    **{"data.corpus": "shakespeare", "data.tokenizer": "char", "data.batch_size": 32},
    **{"optimizer.lr": 3e-4, "optimizer.weight_decay": 0.1, "optimizer.warmup_steps": 100},
    **{"optimizer.schedule": "cosine", "optimizer.min_lr": 0.0},
    **{"trainer.gradient_clip_val": 1.0, "trainer.accumulate_grad_batches": 1},
    "trainer.max_steps": round(20 * 1_003_854 / (32 * 512) + 0.5),  # 20 epochs
    **{"regularizer.mode": "none", "callbacks.early_stopping.patience": None},
}
PHASE_B = {
    **PHASE_A,
    **{"data.corpus": "wikitext2", "data.tokenizer": "gpt2", "data.variant": "tokens"},
    **{"data.batch_size": 8, "optimizer.weight_decay": 0.01, "optimizer.warmup_steps": 500},
    **{"optimizer.min_lr": 1e-5, "trainer.max_steps": 50 * 598, "trainer.val_check_interval": 598},
    **{"callbacks.early_stopping.patience": 5, "callbacks.early_stopping.min_delta": 0.01},
}
SOFTMAX = {"attention.name": "softmax"}


def oscillators(layers: list[int], n: int, coupling: float, **more: Any) -> dict[str, Any]:
    return {
        **{"attention.name": "kuramoto", "attention.layers": layers},
        **{"attention.num_oscillators": n, "attention.coupling": coupling},
        **{"attention.learn_coupling": False, "attention.steps": 10, "attention.dt": 0.1},
        **{"attention.noise_sigma": 0.0, "attention.frequency_jitter": 0.0},
        **{f"attention.{k}": v for k, v in more.items()},
    }


#: The numbers of the seed study.
SEEDS = {
    "phase_a/baseline": PHASE_A | SOFTMAX,
    "phase_a/l7_n32_k1": PHASE_A | oscillators([7], 32, 1.0),
    "phase_a/l6_n32_k1": PHASE_A | oscillators([6], 32, 1.0),
    "phase_a/l6_n16_k1": PHASE_A | oscillators([6], 16, 1.0),
    "phase_a/l6_n32_k2": PHASE_A | oscillators([6], 32, 2.0),
    "phase_a/l6_n64_k1": PHASE_A | oscillators([6], 64, 1.0),
    "phase_a/l67_n32_k1": PHASE_A | oscillators([6, 7], 32, 1.0),
    "phase_a/l47_n32_k1": PHASE_A | oscillators([4, 7], 32, 1.0),
    "phase_b/baseline": PHASE_B | SOFTMAX,
    "phase_b/soft": PHASE_B | oscillators([7], 32, 0.5),
    "phase_b/mid": PHASE_B | oscillators([7], 32, 0.75),
    "phase_b/diverse": PHASE_B
    | oscillators([7], 32, 0.75, noise_sigma=0.03, frequency_jitter=0.02)
    | {"regularizer.mode": "ceiling", "regularizer.target": 0.45, "regularizer.weight": 0.01},
}


@pytest.mark.parametrize("experiment", SEEDS)
def test_an_experiment_of_the_seeds_has_the_seeds_numbers(experiment: str) -> None:
    run = composed(f"+experiment={experiment}").to_dict()
    expected = SEEDS[experiment]
    assert {key: at(run, key) for key in expected} == expected


def test_every_experiment_of_the_two_phases_is_in_the_table() -> None:
    assert {e for e in EXPERIMENTS if e.startswith(("phase_a/", "phase_b/"))} == set(SEEDS)


@pytest.mark.parametrize(
    ("short", "full"),
    [("phase_a_winner", "phase_a/l7_n32_k1"), ("baseline", "phase_a/baseline")],
)
def test_the_two_short_names_are_two_of_phase_a(short: str, full: str) -> None:
    assert composed(f"+experiment={short}") == composed(f"+experiment={full}")


def test_phase_a_differs_from_its_baseline_by_the_mechanism_alone() -> None:
    winner, baseline = (
        composed(f"+experiment={name}").to_dict() for name in ("phase_a_winner", "baseline")
    )
    assert {k for k in winner if winner[k] != baseline[k]} == {"name", "attention"}


@every_experiment
def test_every_experiment_composes_and_fits_its_model(experiment: str) -> None:
    run = composed(f"+experiment={experiment}")
    config = model_of(run)
    assert set(config.attention_layers) <= set(range(config.n_layer))
    assert run.name.replace("-", "/") in (experiment, *EXPERIMENTS)
    with torch.device("meta"):
        model = gpt.GPT(config, seed=0)
    assert not model.leaky


@every_experiment
def test_a_users_model_wins_over_the_experiments(experiment: str) -> None:
    nano = yaml.safe_load((CONF_DIR / "model" / "nano.yaml").read_text())
    run = composed(f"+experiment={experiment}", "model=nano")
    assert run.to_dict()["model"] == nano
    assert gpt.GPT(model_of(run), seed=0).config.n_embd == 64
    without = composed(f"+experiment={experiment}").to_dict()
    assert {k for k, v in run.to_dict().items() if v != without[k]} <= {"model"}


@pytest.mark.parametrize("path", sorted((CONF_DIR / "experiment").rglob("*.yaml")), ids=str)
def test_no_experiment_sets_model_values_in_its_body(path: Path) -> None:
    text = path.read_text()
    body = yaml.safe_load(text)
    assert text.startswith("# @package _global_\n")
    assert "model" not in body
    assert not [key for key in body if str(key).startswith("model.")]


#: Experiments without oscillators, or with beta, which is kuramoto's own.
OF_ONE_MECHANISM = {
    *("baseline", "phase_a/baseline", "phase_b/baseline", "phase_a_controls/rope"),
    *("phase_a_controls/n16_beta4", "phase_a_controls/n64_beta4"),
}


def test_experiments_of_one_mechanism_have_no_oscillators_or_a_beta() -> None:
    attention = {e: composed(f"+experiment={e}").attention for e in EXPERIMENTS}
    found = {e for e, a in attention.items() if a["name"] == "softmax" or a.get("beta")}
    assert found == OF_ONE_MECHANISM


@pytest.mark.parametrize("experiment", [e for e in EXPERIMENTS if e not in OF_ONE_MECHANISM])
def test_the_mechanism_is_a_switch_on_every_phase_experiment(experiment: str) -> None:
    before = composed(f"+experiment={experiment}")
    after = composed(f"+experiment={experiment}", "attention=phase_sync")
    with torch.device("meta"):
        model = gpt.GPT(model_of(after), seed=0)
    assert model.config.attention == "phase_sync"
    assert model.config.attention_layers == model_of(before).attention_layers
    assert after.attention["coupling"] == before.attention["coupling"]


@every_experiment
def test_every_experiment_computes_a_loss_and_its_gradients_at_nano_size(experiment: str) -> None:
    run = composed(f"+experiment={experiment}", "model=nano")
    module = LitGPT(run.to_dict(), {}, 65)
    ids = torch.randint(65, (2, 17))
    batch = {"idx": ids[:, :-1], "targets": ids[:, 1:], "sample": torch.arange(2)}
    step = module.training_step(batch, 0)
    step["loss"].backward()
    gradients = [p.grad for p in module.parameters() if p.requires_grad]
    assert 0 < step["nll"] < 10
    assert all(g is not None and g.isfinite().all() for g in gradients)
    phases = run.attention["layers"] if run.attention["name"] != "softmax" else ()
    assert set(step["R"]) == set(phases)
    assert (step["penalty"] is not None) == (run.regularizer.mode != "none")


# --- two steps of one experiment of each kind through the training entry -----------------------

#: One for each attention, regularizer and corpus; the others differ from it in numbers.
TRAINED = [
    *("phase_a/baseline", "phase_a/l7_n32_k1", "phase_a_controls/phase_sync_k0", "quickstart"),
    *("phase_b/baseline", "phase_b/mid", "phase_b/diverse"),
]


def kind(experiment: str) -> tuple[str, str, str]:
    run = composed(f"+experiment={experiment}")
    return run.attention["name"], run.regularizer.mode, run.data.corpus


def test_one_experiment_of_each_kind_is_trained() -> None:
    assert sorted(map(kind, TRAINED)) == sorted({kind(e) for e in EXPERIMENTS})


def train_two_steps(experiment: str, tmp_path: Path, text: str) -> dict[str, Any]:
    """run.json of two optimizer steps at nano size, on a small text so that validation is short."""
    from phasegpt.train import train

    corpus = tmp_path / "text.txt"
    corpus.write_text(text * 4, encoding="utf-8")
    config = compose(
        [
            *(f"+experiment={experiment}", "model=nano", "trainer=cpu", "compile=false"),
            "model.block_size=32",
            *("data=text", f"data.path={corpus}", f"data.cache_dir={tmp_path / 'cache'}"),
            *("data.tokenizer=char", "data.variant=null", "data.batch_size=2"),
            *("trainer.max_steps=2", "trainer.val_check_interval=2", "optimizer.warmup_steps=1"),
            *("callbacks.sample_text.max_new_tokens=4", "callbacks.progress_bar=false"),
        ]
    )
    return train(config, tmp_path / "run")


@pytest.mark.parametrize("experiment", TRAINED)
def test_an_experiment_of_each_kind_trains_two_steps_at_nano_size(
    experiment: str, tmp_path: Path, english: str
) -> None:
    record = train_two_steps(experiment, tmp_path, english)
    assert (record["status"], record["step"]) == ("ok", 2)
    assert 0 < record["final"]["val/loss"] < 10
    for name in ("config.yaml", "metrics.csv", "run.json"):
        assert (tmp_path / "run" / name).is_file()
    phases = [key for key in record["final"] if key.startswith("phase/R/")]
    assert bool(phases) == (record["config"]["attention"]["name"] != "softmax")
    assert ("reg/coherence" in record["final"]) == experiment.endswith("diverse")


# --- bad input -------------------------------------------------------------------------------

BAD = {
    "seed=abc": ["seed='abc'", "whole number"],
    "seed=-1": ["seed=-1", ">= 0"],
    "optimizer.lr=-1": ["optimizer.lr=-1", "> 0"],
    "optimizer.lr=nan": ["optimizer.lr=nan", "number"],
    "optimizer.lr=inf": ["optimizer.lr=inf"],
    "optimizer.betas=[0.9]": ["betas=[0.9]", "[0.9,0.95]"],
    "optimizer.min_lr=1": ["optimizer.min_lr=1", "lower it"],
    "data.batch_size=0": ["data.batch_size=0", ">= 1"],
    "data.corpus=shakespear": ["'shakespear'", "did you mean shakespeare?"],
    "trainer.max_steps=-5": ["trainer.max_steps=-5", ">= 1"],
    "trainer.max_steps=1.5": ["trainer.max_steps=1.5", "whole number"],
    "attention.steps=-1": ["attention.steps=-1", ">= 0"],
    "attention.coupling=strong": ["attention.coupling='strong'", "number"],
    "attention.coupling=inf": ["attention.coupling=inf"],
    "attention.layers=[12]": ["attention.layers=[12]", "12 layers, counted 0..11"],
    "attention.layers=7": ["attention.layers=7", "[7], or all"],
    "attention.layers=some": ["attention.layers='some'", "[7], or all"],
    "model.n_head=5": ["model.n_head=5", "model.n_embd=64", "choose n_head from 1,2,4,8"],
    "model.n_layer=0": ["model.n_layer=0", ">= 1"],
    "model.positions=rop": ["'rop'", "did you mean rope?"],
    "regularizer.mode=floor": ["'floor'", "none, ceiling, center, band"],
    "regularizer.mode=centre": ["'centre'", "did you mean center?"],
    "regularizer.axis=head": ["'head'", "did you mean heads?"],
    "regularizer.through=cuopling": ["'cuopling'", "did you mean coupling?"],
    "regularizer.schedule=linear": ["'linear'", "constant, warmup, adaptive"],
    "regularizer.target=1.5": ["regularizer.target=1.5", "<= 1"],
    "regularizer.widht=0.1": ["regularizer.widht", "did you mean regularizer.width?"],
    "regularizer=bande": ["bande", "band", "ceiling", "center"],
    "attention.omega_spread=-1": ["attention.omega_spread=-1", ">= 0"],
    "callbacks.collapse_guard.action=rolback": ["'rolback'", "did you mean rollback?"],
    "callbacks.collapse_guard.R_low=0.99": ["R_low=0.99 must be below R_high=0.95"],
    "callbacks.phase_monitor=null": ["callbacks.phase_monitor=None", "keys: every_n_steps, band"],
    "callbacks.collapse_guard=stop": ["callbacks.collapse_guard='stop'", "keys: action, R_low"],
    "regularizer=null": ["regularizer=null is no option", "band, ceiling, center, none"],
    "compile=maybe": ["'maybe'", "auto"],
    "attention=kuramotto": ["kuramotto", "kuramoto", "phase_sync", "softmax"],
    "+experiment=phase_a_winer": ["phase_a_winer", "phase_a_winner"],
    "+attention.couplng=0.5": ["attention.couplng", "did you mean attention.coupling?"],
    "attention.couplng=0.5": ["attention.couplng", "did you mean attention.coupling?"],
    "modle=nano": ["modle", "did you mean model?"],
    "trainer.max_step=3": ["trainer.max_step", "did you mean trainer.max_steps?"],
    "attention.layers=[7": ["[7"],
}


@pytest.mark.parametrize("override", BAD)
def test_bad_input_is_answered_with_the_value_and_the_fix(override: str) -> None:
    with pytest.raises(ConfigError) as caught:
        run_config(compose([override]))
    message = str(caught.value)
    for part in BAD[override]:
        assert part in message
    assert len(message.splitlines()) <= 20


def test_a_missing_value_is_named() -> None:
    values = plain(compose([]))
    del values["optimizer"]["lr"]
    with pytest.raises(ConfigError, match=r"optimizer\.lr is missing; give it a value"):
        run_config(values)


def test_the_same_error_comes_from_the_plain_dataclasses() -> None:
    values = plain(compose([]))
    values["data"]["batch_size"] = 0
    with pytest.raises(ConfigError, match=r"data.batch_size=0 is out of range; it must be >= 1"):
        RunConfig.parse(values)


# --- the hash of a configuration -------------------------------------------------------------

CHANGES = [
    *("seed=43", "attention.coupling=0.5", "attention.layers=[7]", "attention=phase_sync"),
    *("model.dropout=0.1", "optimizer.lr=1e-3", "data.batch_size=8", "trainer.max_steps=7"),
    *("regularizer=ceiling", "trainer.accumulate_grad_batches=2", "data=shakespeare"),
    *("callbacks.early_stopping.patience=3", "+experiment=quickstart"),
    *("regularizer.through=coupling", "regularizer.schedule=adaptive", "attention.omega_spread=1"),
    "callbacks.collapse_guard.action=rollback",
]
SAME = [
    *("resume=true", "resume=some/folder", "debug=true", "logger=wandb", "logger.group=x"),
    *("logger=tensorboard", "data.num_workers=2", "data.cache_dir=/tmp/x", "name=other"),
    *("callbacks.progress_bar=false", "callbacks.checkpoint.every_n_train_steps=7"),
    *("callbacks.sample_text.max_new_tokens=1",),
]


@pytest.mark.parametrize("override", CHANGES)
def test_what_changes_the_result_changes_the_hash(override: str) -> None:
    assert composed(override).hash != composed().hash


@pytest.mark.parametrize("override", SAME)
def test_what_does_not_change_the_result_keeps_the_hash(override: str) -> None:
    assert composed(override).hash == composed().hash


@pytest.mark.parametrize("override", ["attention.coupling=1", "optimizer.weight_decay=1e-1"])
def test_another_way_to_write_the_same_number_keeps_the_hash(override: str) -> None:
    assert composed(override).hash == composed().hash


def test_the_hash_survives_being_written_and_read() -> None:
    run = composed("+experiment=phase_b/diverse")
    assert run_config(run.to_dict()).hash == run.hash
    assert run_config(yaml.safe_load(yaml.safe_dump(run.to_dict()))).hash == run.hash
    assert len(run.hash) == 16


def test_hashes_of_all_experiments_differ() -> None:
    hashes: dict[str, str] = {}
    for experiment in EXPERIMENTS:
        if experiment in ("phase_a_winner", "baseline"):
            continue  # other names of two in phase_a
        found = composed(f"+experiment={experiment}").hash
        assert found not in hashes, (experiment, hashes.get(found))
        hashes[found] = experiment
