"""Secrets given as command-line words reach no record and no logger."""

import sys
from typing import Any

import pytest

from phasegpt.core.secrets import masked, masked_arguments


@pytest.mark.parametrize(
    "word",
    [
        "+secret=hunter2",
        "++logger.api_key=hunter2",
        "WANDB_API_KEY=hunter2",
        "hydra.job.env_set.HF_TOKEN=hunter2",
        "hydra.job.env_set={A:1,WANDB_API_KEY:hunter2,B:2}",
        "hydra.job.env_set={'WANDB_API_KEY': 'hunter2'}",
        "my-password='hunter2'",
        "secret.value=hunter2",
        "data.name=https://me:hunter2@host/x",
    ],
)
def test_a_secret_is_masked(word: str) -> None:
    (found,) = masked([word])
    assert "hunter2" not in found
    assert "***" in found


@pytest.mark.parametrize(
    "word",
    [
        *("data.tokenizer=char", "callbacks.sample_text.max_new_tokens=5", "monkey=1", "-m"),
        *("callbacks.sample_text.prompt=The door", "attention.coupling=0.5", "seed=1,2"),
        *("data.path=keys/a.txt", "trainer.max_steps=3", "author=x"),
    ],
)
def test_other_words_stay_as_they_are(word: str) -> None:
    assert masked([word]) == [word]


def test_a_known_secret_of_the_environment_is_masked_wherever_it_stands(monkeypatch: Any) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_0123456789abcdef")
    assert masked(["name=run-hf_0123456789abcdef"]) == ["name=run-***"]
    monkeypatch.setattr(sys, "argv", ["train", "+secret=hunter2"])
    with masked_arguments():
        assert sys.argv == ["train", "+secret=***"]
    assert sys.argv == ["train", "+secret=hunter2"]
