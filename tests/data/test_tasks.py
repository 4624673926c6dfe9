"""What every generated task keeps to: examples by number, one order, positions that are scored."""

import functools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

from phasegpt.core.composition import CONF_DIR, compose, plain
from phasegpt.core.errors import ConfigError, DataError
from phasegpt.data import tasks
from phasegpt.data._draws import Draws
from phasegpt.data.config import TASKS, DataSection, task_class
from phasegpt.data.corpus import prepare
from phasegpt.data.task_batches import ScoredBatches, TaskBatches, TaskExamples
from phasegpt.data.windows import IGNORED

ROOT = Path(__file__).resolve().parents[2]
every_task = pytest.mark.parametrize("name", TASKS)


def task(name: str, **keys: Any) -> tasks.Task:
    """The small version of a task."""
    return task_class(name)(DataSection.parse(data_of(f"{name}_small") | keys))


@functools.cache
def data_of(name: str) -> dict[str, Any]:
    return plain(compose([f"data={name}"]).data)


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


# --- random numbers --------------------------------------------------------------------------


def draws(count: int = 4000, seed: int = 0) -> Draws:
    return Draws("test", seed, example_B=np.arange(count))


def test_an_example_draws_the_same_numbers_in_every_batch():
    whole, part = draws(50), Draws("test", 0, example_B=np.array([7, 3]))
    for _ in range(3):
        assert np.array_equal(whole.bits(5)[[7, 3]], part.bits(5))
    assert np.array_equal(whole.distinct(9, 2)[[7, 3]], part.distinct(9, 2))
    assert np.array_equal(whole.uniform(2)[[7, 3]], part.uniform(2))
    assert not np.array_equal(draws(50).bits(5), draws(50, seed=1).bits(5))


def test_numbers_below_n_are_uniform_and_independent():
    found = draws().below(5, 2)
    counts = np.histogram2d(*found.T, bins=5)[0]
    assert ((counts - 160) ** 2 / 160).sum() < 52  # chi square of 24, p = 0.001
    assert abs(draws().uniform(4).mean() - 0.5) < 0.01


@pytest.mark.parametrize(("n", "count"), [(4, 3), (30, 3)])  # by sorting, by drawing again
def test_distinct_numbers_differ_and_every_order_is_alike(n, count):
    found = draws(30_000).distinct(n, count)
    assert all(len(set(row)) == count for row in found.tolist())
    first = np.bincount(found[:, 0] * n + found[:, 1], minlength=n * n)
    first = first[[i * n + j for i in range(n) for j in range(n) if i != j]]
    mean = 30_000 / len(first)
    assert ((first - mean) ** 2 / mean).sum() < len(first) + 4.5 * (2 * len(first)) ** 0.5


def test_weighted_places_follow_their_weights_without_replacement():
    weights = np.array([1.0, 2.0, 5.0])
    first, second = draws(40_000).weighted(weights, 2).T
    assert np.allclose(np.bincount(first) / 40_000, weights / 8, atol=0.01)
    after = second[first == 2]
    assert np.allclose(np.bincount(after, minlength=3) / len(after), [1 / 3, 2 / 3, 0], atol=0.02)


# --- every task ------------------------------------------------------------------------------


@every_task
def test_examples_are_functions_of_their_number_and_split(name):
    t = task(name)
    whole = t.train(5, np.arange(20))
    for part in (np.array([3]), np.array([19, 0, 3])):
        for all_rows, rows in zip(whole, t.train(5, part), strict=True):
            assert np.array_equal(all_rows[part], rows)
    load = t.config.loads[0]
    val, test = (t.scored(split, np.arange(20), load) for split in ("val", "test"))
    assert not np.array_equal(val.idx, test.idx)
    assert not np.array_equal(whole.idx, t.train(6, np.arange(20)).idx)


@every_task
@pytest.mark.parametrize("version", ["", "_small"])
def test_tokens_and_targets_are_in_the_vocabulary(name, version):
    t = task_class(name)(DataSection.parse(data_of(name + version)))
    longest = t.config.loads[-1]
    found = [t.train(0, np.arange(8))]
    found += [t.scored("val", np.arange(8), n) for n in (t.config.loads[0], longest)]
    for rows in found:
        assert rows.idx.dtype == rows.targets.dtype == np.int64
        assert rows.idx.shape == rows.targets.shape
        assert rows.idx.min() >= 0 and rows.idx.max() < t.vocab_size
        scored = rows.targets != IGNORED
        assert scored.any(axis=1).all()
        assert rows.targets[scored].min() >= 0 and rows.targets.max() < t.vocab_size
    assert found[0].idx.shape[1] == t.config.time(t.config.trained)
    assert found[-1].idx.shape[1] == t.config.time(longest)
    assert 0 < t.chance < t.ceiling <= 1


@every_task
def test_chance_is_the_accuracy_of_the_commonest_answer(name):
    t = task(name)
    rows = t.scored("val", np.arange(2000), t.config.loads[0])
    answers = rows.targets[rows.targets != IGNORED]
    commonest = np.bincount(answers).max() / len(answers)
    assert abs(commonest - t.chance) < 0.02 + 3 * (t.chance / len(answers)) ** 0.5


@every_task
def test_the_files_of_a_task_hold_the_defaults_and_a_smaller_version(name):
    written = yaml.safe_load((CONF_DIR / "data" / f"{name}.yaml").read_text())
    config, small = task_class(name).Config, task(name).config
    assert written == config(corpus=name, batch_size=written["batch_size"]).to_dict()
    assert small.corpus == name and small != config(corpus=name, batch_size=small.batch_size)


@every_task
def test_the_page_of_tasks_has_a_row_of_each(name):
    assert f"| `{name}` |" in (ROOT / "docs" / "tasks.md").read_text()


# --- batches ---------------------------------------------------------------------------------


def batches(**keys: Any) -> TaskBatches:
    shared = {"batch_size": 6, "seed": 1} | keys
    return TaskBatches(task("mqar", examples=20), **shared)


def test_batch_k_is_a_pure_function_of_seed_and_k():
    one, other = batches(), batches()
    expected = [one[k] for k in range(12)]
    for k in (11, 0, 7, 3, 4, 11):
        assert same(other[k], expected[k])
    assert not torch.equal(batches(seed=2)[0]["idx"], expected[0]["idx"])
    assert expected[2]["sample"].tolist() == list(range(12, 18))


def test_ranks_together_make_the_batch_of_one_process():
    parts = [batches(batch_size=2, rank=r, world_size=3) for r in range(3)]
    whole = batches()
    for k in range(10):
        for key, value in whole[k].items():
            assert torch.equal(value, torch.cat([part[k][key] for part in parts]))


def test_an_epoch_is_every_example_once_in_a_new_order():
    rows = [row.tolist() for k in range(10) for row in batches(batch_size=4)[k]["idx"]]
    first, second = rows[:20], rows[20:]
    assert first != second and sorted(first) == sorted(second)
    assert len({tuple(row) for row in first}) == 20


def test_a_stream_without_end_repeats_nothing():
    endless = TaskBatches(task("mqar"), batch_size=10, seed=1)
    rows = {tuple(row.tolist()) for k in range(20) for row in endless[k]["idx"]}
    assert len(rows) == 200


def test_validation_goes_through_all_examples_load_by_load():
    t = task("mqar", val_examples=5)
    found = list(ScoredBatches(t, "val", 3, (4,)))
    assert [len(batch["idx"]) for batch in found] == [3, 2]
    assert [int(batch["load"]) for batch in found] == [4, 4]
    single = TaskExamples(t, "val", 4)
    assert len(single) == 5
    assert torch.equal(found[1]["idx"][1], single[4]["idx"])
    with pytest.raises(ConfigError, match="choose from val, test"):
        ScoredBatches(t, "train", 3, (4,))


# --- a corpus without a text -------------------------------------------------------------------


def test_a_task_has_no_text_and_says_so():
    corpus = prepare(task("mqar").config)
    with pytest.raises(ConfigError, match="data=mqar is a generated task: it has no text"):
        corpus.split("train")
    with pytest.raises(DataError, match="tokens are numbers"):
        corpus.tokenizer.encode("x")
    assert corpus.tokenizer.decode([3, 1]) == "3 1 "
    other = prepare(task("mqar", pairs=5).config)
    assert corpus.fingerprint == prepare(task("mqar").config).fingerprint != other.fingerprint


@pytest.mark.parametrize("word", ["data.tokenizer=byte", "data.path=x", "data.documents=true"])
def test_options_of_a_text_are_unknown_to_a_task(word):
    with pytest.raises(ConfigError, match=word.partition("=")[0]):
        compose(["data=mqar", word])
