"""Experiments hold the seeds' numbers, differ by their treatment alone, and train."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from helpers import ROOT, TEXT, at, composed, model_of

from phasegpt.core.composition import CONF_DIR, compose
from phasegpt.data.config import TASKS
from phasegpt.model import gpt as gpt
from phasegpt.training.lit import LitGPT

EXPERIMENT_FILES = sorted(
    p for p in (CONF_DIR / "experiment").rglob("*.yaml") if "_shared" not in p.parts
)
EXPERIMENTS = [
    p.relative_to(CONF_DIR / "experiment").with_suffix("").as_posix() for p in EXPERIMENT_FILES
]
every_experiment = pytest.mark.parametrize("experiment", EXPERIMENTS)

#: Hashes of configurations as commit 03d8df4 computed them; a run is resumed by its hash.
HASHES = json.loads((ROOT / "tests" / "fixtures" / "hashes.json").read_text())

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


#: The numbers of the original PhaseGPT.
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
    *("phase_a_controls/n16_beta4", "phase_a_controls/n64_beta4", "finetune_gpt2"),
    *("reproductions/mqar_softmax", "phase_a_late/softmax", "phase_a_late/learned"),
}


def test_experiments_of_one_mechanism_have_no_oscillators_or_a_beta() -> None:
    attention = {e: composed(f"+experiment={e}").attention.to_dict() for e in EXPERIMENTS}
    none = {e for e, a in attention.items() if a["name"] == "softmax"}
    found = none | {e for e, a in attention.items() if a.get("beta") is not None}
    assert found == OF_ONE_MECHANISM


@pytest.mark.parametrize("experiment", [e for e in EXPERIMENTS if e not in OF_ONE_MECHANISM])
def test_the_mechanism_is_a_switch_on_every_phase_experiment(experiment: str) -> None:
    before = composed(f"+experiment={experiment}")
    after = composed(f"+experiment={experiment}", "attention=phase_sync")
    with torch.device("meta"):
        model = gpt.GPT(model_of(after), seed=0)
    assert model.config.attention == "phase_sync"
    assert model.config.attention_layers == model_of(before).attention_layers
    assert after.attention.options.coupling == before.attention.options.coupling


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
    phases = run.attention.layers if run.attention.name != "softmax" else ()
    assert set(step["R"]) == set(phases)
    assert (step["penalty"] is not None) == (run.regularizer.mode != "none")


def test_hashes_of_all_experiments_differ() -> None:
    hashes: dict[str, str] = {}
    for experiment in EXPERIMENTS:
        if experiment in ("phase_a_winner", "baseline"):
            continue  # other names of two in phase_a
        found = composed(f"+experiment={experiment}").hash
        assert found not in hashes, (experiment, hashes.get(found))
        hashes[found] = experiment


# --- two steps of one experiment of each kind through the training entry -----------------------

#: One for each attention, regularizer and corpus; the others differ from it in numbers.
TRAINED = [
    *("phase_a/baseline", "phase_a/l7_n32_k1", "phase_a_controls/phase_sync_k0", "quickstart"),
    *("phase_b/baseline", "phase_b/mid", "phase_b/diverse"),
]


def kind(experiment: str) -> tuple[str, str, str]:
    run = composed(f"+experiment={experiment}")
    return run.attention.name, run.regularizer.mode, run.data.corpus


def test_one_experiment_of_each_kind_is_trained() -> None:
    # A generated task is trained in tests/training/test_tasks.py.
    texts = [e for e in EXPERIMENTS if kind(e)[2] not in TASKS]
    assert sorted(map(kind, TRAINED)) == sorted(set(map(kind, texts)))


def train_two_steps(experiment: str, tmp_path: Path, text: str) -> dict[str, Any]:
    """run.json of two optimizer steps at nano size, on a small text so that validation is short."""
    from phasegpt.training.run import fit

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
    return fit(config, tmp_path / "run")


@pytest.mark.parametrize("experiment", TRAINED)
def test_an_experiment_of_each_kind_trains_two_steps_at_nano_size(
    experiment: str, tmp_path: Path
) -> None:
    record = train_two_steps(experiment, tmp_path, TEXT)
    assert (record["status"], record["step"]) == ("ok", 2)
    assert 0 < record["final"]["val/loss"] < 10
    for name in ("config.yaml", "metrics.csv", "run.json"):
        assert (tmp_path / "run" / name).is_file()
    phases = [key for key in record["final"] if key.startswith("phase/R/")]
    assert bool(phases) == (record["config"]["attention"]["name"] != "softmax")
    assert ("reg/coherence" in record["final"]) == experiment.endswith("diverse")


@pytest.mark.parametrize("words", HASHES)
def test_a_configuration_keeps_its_hash(words: str) -> None:
    assert composed(*words.split()).hash == HASHES[words]


def test_every_experiment_of_that_time_has_its_hash_kept() -> None:
    first = {words.removeprefix("+experiment=") for words in HASHES if " " not in words}
    assert first <= set(EXPERIMENTS)
    assert len(first) >= 26
