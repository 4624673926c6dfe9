"""init_from: a training that begins with given weights says what it took, and resumes without."""

import os
import pickle
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import SIX_STEPS, crash_at, make_run, outcome, payload, play
from pytorch_lightning.callbacks import Callback

import phasegpt
from phasegpt.core.errors import CheckpointError, ConfigError, UserError
from phasegpt.data.corpus import prepare
from phasegpt.data.windows import EvalWindows
from phasegpt.model import checkpoint, loading
from phasegpt.model.run_checkpoints import sha256_of
from phasegpt.model.scoring import nats, score
from phasegpt.training.config import build, run_config
from phasegpt.training.run import fit
from phasegpt.training.run_folder import read_record

needs_vocabulary = pytest.mark.skipif(
    not os.environ.get("PHASEGPT_DATA_DIR"), reason="PHASEGPT_DATA_DIR is not set"
)
SIZES = [w for w in SIX_STEPS if w.startswith(("model.", "data", "trainer"))]
BYTES = [*SIX_STEPS, "callbacks.sample_text.max_new_tokens=0", "compile=false"]


class AtStart(Callback):
    """The weights before the first step."""

    weights: dict[str, torch.Tensor]

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        self.weights = {k: x.clone() for k, x in pl_module.model.state_dict().items()}


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory, text: list[str]) -> Path:
    """A softmax run of the sizes in SIX_STEPS, with twice the positions, and its export."""
    folder = tmp_path_factory.mktemp("source")
    words = ["attention=softmax", "attention.layers=all", "model.block_size=32"]
    run = run_config(phasegpt.compose([*SIZES, *text, *words]))
    file = folder / "run/checkpoints/step-00000010.ckpt"
    checkpoint.save(payload(run), file)
    checkpoint.link(file, "best.ckpt")
    loading.export(folder / "run", folder / "export")
    return folder


def config(source: Path | str, text: list[str], *words: str) -> Any:
    return phasegpt.compose([*BYTES, *text, f"init_from={source}", *words])


# --- what is taken ---------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["run", "export", "run/checkpoints/best.ckpt"])
def test_a_run_begins_with_the_weights_and_records_them(
    kind: str, source: Path, text: list[str], tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    start = AtStart()
    record = fit(config(source / kind, text), tmp_path / "new", callbacks=[start])
    theirs = loading.load(source / "run").state_dict()
    weights = dict(start.weights)
    assert torch.equal(weights["transformer.wpe.weight"], theirs["transformer.wpe.weight"][:16])
    del theirs["transformer.wpe.weight"]
    assert all(torch.equal(weights[name], x) for name, x in theirs.items())
    said = record["init_from"]
    file = "export/model.safetensors" if kind == "export" else "run/checkpoints/best.ckpt"
    assert (said["path"], said["sha256"]) == (str(source / kind), sha256_of(source / file))
    own = [
        "beta",
        *(f"oscillators.{x}" for x in ("coupling", "omega", "phase.bias", "phase.weight")),
    ]
    assert sorted(said["new"]) == [f"transformer.h.1.attn.{name}" for name in own]
    assert (said["left_over"], said["positions"]) == ([], [16, 32])
    (line,) = [x for x in capsys.readouterr().err.splitlines() if x.startswith("begins with")]
    for part in (
        said["sha256"][:16],
        "attn.beta",
        "left over: nothing",
        "first 16 of 32 positions",
    ):
        assert part in line
    assert record == read_record(tmp_path / "new")


def test_what_is_new_is_what_the_seed_gives_a_fresh_model(
    source: Path, text: list[str], tmp_path: Path
) -> None:
    start = AtStart()
    made = config(source / "run", text)
    record = fit(made, tmp_path / "new", callbacks=[start])
    made["init_from"] = None
    fresh = build(made).state_dict()
    assert all(torch.equal(start.weights[x], fresh[x]) for x in record["init_from"]["new"])


def test_build_begins_with_the_same_weights(source: Path, text: list[str]) -> None:
    model = build(config(source / "run", text))
    theirs = loading.load(source / "run").state_dict()
    assert torch.equal(model.state_dict()["lm_head.weight"], theirs["lm_head.weight"])


# --- resume ----------------------------------------------------------------------------------


def test_a_resumed_run_reads_its_checkpoint_and_not_the_source(
    source: Path, text: list[str], tmp_path: Path
) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(source / "export", copy)
    fit(config(copy, text), tmp_path / "whole")
    with crash_at(4):
        fit(config(copy, text), tmp_path / "cut")
    shutil.rmtree(copy)
    fit(config(copy, text, "resume=true"), tmp_path / "cut")
    (_, a, _, rows_a), (_, b, _, rows_b) = outcome(tmp_path / "whole"), outcome(tmp_path / "cut")
    assert all(torch.equal(a[name], b[name]) for name in a)
    assert rows_a == rows_b
    whole, cut = (read_record(tmp_path / name) for name in ("whole", "cut"))
    assert whole["init_from"] == cut["init_from"]


def test_other_weights_under_the_name_are_refused_where_nothing_was_saved(
    source: Path, text: list[str], tmp_path: Path
) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(source / "export", copy)
    with crash_at(0):
        fit(config(copy, text), tmp_path / "cut")
    shutil.rmtree(copy)
    other = run_config(config("null", text, "seed=1"))
    file = tmp_path / "other/checkpoints/step-00000010.ckpt"
    checkpoint.save(payload(other), file)
    loading.export(file, copy)
    with pytest.raises(CheckpointError, match=r"changed since .* began; put the old ones back"):
        fit(config(copy, text, "resume=true"), tmp_path / "cut")


# --- what is refused -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "error", "says"),
    [
        (["model.n_embd=32"], ConfigError, r"n_embd is 32.*set model\.n_embd=16"),
        (["model.block_size=64"], ConfigError, r"set model\.block_size=32, or less"),
        (["data.tokenizer=char"], ConfigError, r"set data\.tokenizer=byte"),
        (["init_from=/nowhere/x"], CheckpointError, "neither a folder nor a model"),
    ],
    ids=lambda x: x[0] if isinstance(x, list) else "",
)
def test_a_source_that_does_not_fit_is_refused_before_anything_is_written(
    words: list[str],
    error: type[UserError],
    says: str,
    source: Path,
    text: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(error, match=says):
        fit(config(source / "run", text, *words), tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_characters_of_another_text_are_refused(
    source: Path, text: list[str], tmp_path: Path
) -> None:
    other = tmp_path / "other.txt"
    other.write_text("abc" * 500)
    run = make_run(
        tmp_path / "run",
        *("data=text", "data.tokenizer=char", f"data.path={other}"),
        f"data.cache_dir={tmp_path}",
    )
    with pytest.raises(ConfigError, match="a text of the same characters"):
        fit(config(run, text, "data.tokenizer=char"), tmp_path / "new")


class Bomb:
    def __reduce__(self) -> Any:
        return (os.mkdir, ("exploded",))


def test_a_source_with_code_in_it_is_refused_and_not_run(
    text: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    file = tmp_path / "bomb.ckpt"
    file.write_bytes(pickle.dumps({"state_dict": Bomb()}))
    (tmp_path / "bomb.ckpt.sha256").write_text(f"{sha256_of(file)}  bomb.ckpt\n")
    with pytest.raises(CheckpointError, match=r"bomb\.ckpt is refused"):
        fit(config(file, text), tmp_path / "new")
    assert not (tmp_path / "exploded").exists()


def test_init_from_is_hashed_where_it_is_set(text: list[str]) -> None:
    plain = run_config(phasegpt.compose([*BYTES, *text]))
    assert run_config(config("a", text)).hash != plain.hash
    assert run_config(config("a", text)).hash != run_config(config("b", text)).hash
    assert run_config(config("null", text)).hash == plain.hash


# --- GPT-2 -----------------------------------------------------------------------------------


@needs_vocabulary
def test_finetune_gpt2_begins_with_the_loss_of_hugging_faces_model(tmp_path: Path) -> None:
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    sizes = {"n_layer": 2, "n_head": 2, "n_embd": 16, "n_positions": 32}
    theirs = GPT2LMHeadModel(GPT2Config(**sizes, initializer_range=0.5)).eval()
    theirs.save_pretrained(tmp_path / "gpt2")
    made = phasegpt.compose(
        [
            *("+experiment=finetune_gpt2", f"init_from={tmp_path / 'gpt2'}", "data=text"),
            *("data.tokenizer=gpt2", *play(tmp_path), "attention.layers=[1]", "trainer=cpu"),
            *("model.n_layer=2", "model.n_head=2", "model.n_embd=16", "model.block_size=32"),
            *("trainer.max_steps=3", "trainer.val_check_interval=3", "optimizer.warmup_steps=1"),
            *("callbacks.progress_bar=false", "callbacks.sample_text.max_new_tokens=0"),
        ]
    )
    corpus = prepare(run_config(made).data)
    losses = []

    class Scores(Callback):
        def on_train_start(self, trainer: Any, pl_module: Any) -> None:
            found = score(pl_module.model, corpus, "val", context=32, stride=32, batch_size=4)
            losses.append(found.loss)

    record = fit(made, tmp_path / "run", callbacks=[Scores()])
    windows = EvalWindows(corpus.split("val"), context=32, stride=32)
    with torch.no_grad():
        pairs = [nats(theirs(x["idx"][None]).logits, x["targets"][None]) for x in windows]
    total, tokens = (sum(column) for column in zip(*pairs, strict=True))
    assert losses == [pytest.approx((total / tokens).item(), abs=1e-5)]
    assert losses[0] > 11  # not the loss of a model that knows nothing: ln 50257 = 10.8
    assert record["status"] == "ok"
    assert record["final"]["val/loss"] != pytest.approx(losses[0], abs=1e-6)
    assert record["init_from"]["left_over"] == []
    beta = loading.load(tmp_path / "run", "last").blocks[1].attn.beta
    assert (beta != 0).all()
    refused = phasegpt.compose(["+experiment=finetune_gpt2", f"init_from={tmp_path / 'gpt2'}"])
    with pytest.raises(ConfigError, match=r"set model\.n_layer=2 model\.n_head=2 model\.n_embd=16"):
        build(refused)
