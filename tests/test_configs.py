"""conf/ is whole: every option composes, validates and builds.

Bad values are answered by one short ConfigError with the value and the fix.
"""

import pytest
import torch
import yaml
from helpers import at, composed, model_of

from phasegpt.core.composition import CONF_DIR, compose, plain
from phasegpt.core.errors import ConfigError
from phasegpt.data.config import TASKS
from phasegpt.model import gpt as gpt
from phasegpt.training.config import RunConfig, build, run_config

# Those that set one section each; the others set values of the whole configuration, and `sampler`
# is of another command (tests/samplers/test_commands.py).
_GLOBAL = {"experiment", "sweep", "scale", "launcher", "sampler", "task"}
GROUPS = sorted(p.name for p in CONF_DIR.iterdir() if p.is_dir() and p.name not in _GLOBAL)
OPTIONS = [
    f"{group}={path.stem}" for group in GROUPS for path in sorted((CONF_DIR / group).glob("*.yaml"))
]
ATTENTIONS = [option for option in OPTIONS if option.startswith("attention=")]


# --- groups ----------------------------------------------------------------------------------


def test_the_groups_are_the_promised_ones() -> None:
    promised = {"attention", "callbacks", "data", "logger", "model", "optimizer", "regularizer"}
    assert promised | {"trainer"} <= set(GROUPS)
    known = {option.split("=")[1] for option in OPTIONS if option.startswith("data=")}
    texts = {"shakespeare", "wikitext2", "text", "hub", "synthetic", "enwik8", "tinystories"}
    assert known == texts | {f"{task}{size}" for task in TASKS for size in ("", "_small")}
    sizes = {option.split("=")[1] for option in OPTIONS if option.startswith("model=")}
    assert sizes >= {"nano", "small", "gpt2", "gpt2_medium", "gpt2_large"}


@pytest.mark.parametrize("option", OPTIONS)
def test_every_option_composes_and_validates(option: str) -> None:
    group, name = option.split("=")
    own = ["optimizer._target_=torch.optim.RAdam"] if option == "optimizer=own" else []
    if name.removesuffix("_small") in TASKS:
        own = ["model.block_size=1026"]  # of copying, which is the longest
    run = composed(option, *own)
    written = yaml.safe_load((CONF_DIR / group / f"{name}.yaml").read_text())
    written.pop("defaults", None)
    found = at(run.to_dict(), group)
    if group == "optimizer":  # at rest these are left out, as records had it before them
        found = {"name": run.optimizer.name, "decay_steps": None, **found}
    given = {"_target_": "torch.optim.RAdam"} if option == "optimizer=own" else {}
    assert {k: found[k] for k in written} == written | given
    assert RunConfig.parse(run.to_dict()) == run


def test_the_default_configuration_is_valid_and_small() -> None:
    run = composed()
    assert (run.seed, run.resume, run.debug, run.compile) == (42, False, False, "auto")
    assert run.name == "kuramoto-synthetic"
    assert (run.model.n_layer, run.model.n_embd) == (12, 64)


@pytest.mark.parametrize("option", ATTENTIONS)
@pytest.mark.parametrize("positions", ["learned", "rope"])
@pytest.mark.filterwarnings("ignore:.*sees the future")
def test_every_attention_builds_at_nano_size(option: str, positions: str) -> None:
    run = composed(option, "model=nano", f"model.positions={positions}")
    if option == "attention=as_coded" and positions == "rope":
        with pytest.raises(ConfigError, match="positions=learned only"):
            gpt.GPT(model_of(run), seed=run.seed)
        return
    model = gpt.GPT(model_of(run), seed=run.seed)
    assert model(torch.zeros(1, 2, dtype=torch.long)).logits.shape == (1, 2, 65)
    assert model.leaky is (option == "attention=as_coded")


@pytest.mark.parametrize("option", [o for o in OPTIONS if o.startswith("model=")])
def test_every_model_builds_and_has_its_size(option: str) -> None:
    run = composed(option, "attention=softmax")
    with torch.device("meta"):
        model = gpt.GPT(model_of(run, 50257), seed=0)
    found = model.num_parameters(non_embedding=False)
    # GPT-2's published sizes; `gpt2` has the seeds' context of 512 instead of 1024.
    sizes = {
        "model=nano": 12 * (12 * 64**2 + 13 * 64) + 2 * 64 + (50257 + 128) * 64,
        "model=mini": 4 * (12 * 64**2 + 13 * 64) + 2 * 64 + (50257 + 128) * 64,
        "model=mini_rope": 4 * (12 * 64**2 + 13 * 64) + 2 * 64 + 50257 * 64,
        "model=small": 4 * (12 * 128**2 + 13 * 128) + 2 * 128 + (50257 + 128) * 128,
        "model=zoology": 2 * (4 * 64**2 + 6 * 64) + 2 * 64 + (50257 + 64) * 64,
        "model=small_rope": 4 * (12 * 128**2 + 13 * 128) + 2 * 128 + 50257 * 128,
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
    again = gpt.GPT(run.gpt(), seed=7)
    assert torch.equal(model.lm_head.weight, again.lm_head.weight)


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
    "attention.omega_std=200000": ["attention.omega_std=200000", "above 100000", "attention.steps"],
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
    *("regularizer=band regularizer.through=coupling", "attention.omega_spread=1"),
    *("regularizer=band regularizer.schedule=adaptive", "logger=wandb attention.steps=3"),
    "callbacks.collapse_guard.action=rollback",
    *("trainer.fast_dev_run=true", "trainer.limit_val_batches=2", "trainer.overfit_batches=2"),
    *("callbacks.extra=[{_target_:a.B}]", "optimizer._target_=torch.optim.RAdam"),
    "optimizer.schedule={_target_:a.B}",
]
SAME = [
    *(
        "resume=true",
        "resume=some/folder",
        "debug=true",
        "logger=wandb",
        "logger=wandb logger.group=x",
    ),
    *("logger=tensorboard", "data.num_workers=2", "data.cache_dir=/tmp/x", "name=other"),
    *("callbacks.progress_bar=false", "callbacks.checkpoint.every_n_train_steps=7"),
    *("callbacks.sample_text.max_new_tokens=1", "trainer.profiler=simple"),
    *("logger=[csv,tensorboard]", "logger.extra=[{_target_:a.B}]"),
]


@pytest.mark.parametrize("override", CHANGES)
def test_what_changes_the_result_changes_the_hash(override: str) -> None:
    assert composed(*override.split()).hash != composed().hash


@pytest.mark.parametrize("override", SAME)
def test_what_does_not_change_the_result_keeps_the_hash(override: str) -> None:
    assert composed(*override.split()).hash == composed().hash


@pytest.mark.parametrize("override", ["attention.coupling=1", "optimizer.weight_decay=1e-1"])
def test_another_way_to_write_the_same_number_keeps_the_hash(override: str) -> None:
    assert composed(*override.split()).hash == composed().hash


def test_the_hash_survives_being_written_and_read() -> None:
    run = composed("+experiment=phase_b/diverse")
    assert run_config(run.to_dict()).hash == run.hash
    assert run_config(yaml.safe_load(yaml.safe_dump(run.to_dict()))).hash == run.hash
    assert len(run.hash) == 16
