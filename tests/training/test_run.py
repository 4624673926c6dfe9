"""Training through its public entry: what it leaves behind, and how it fails."""

import json
import subprocess
from pathlib import Path

import processes
import pytest
import torch
from omegaconf import OmegaConf

import phasegpt
from phasegpt.attention.kuramoto import Kuramoto
from phasegpt.core.errors import Collapsed, ConfigError
from phasegpt.model import checkpoint
from phasegpt.phase.steering import draw_perturbation
from phasegpt.training.config import RunConfig, run_config
from phasegpt.training.metrics_csv import MetricsCSV
from phasegpt.training.run import fit
from phasegpt.training.run_folder import read_metrics, read_record

TINY = [
    "attention.layers=[1]",
    "attention.num_oscillators=8",
    "model.n_layer=2",
    "model.n_head=2",
    "model.n_embd=16",
    "model.block_size=16",
    "data=text",
    "data.batch_size=6",
    "trainer=cpu",
    "trainer.max_steps=4",
    "trainer.val_check_interval=2",
    "trainer.log_every_n_steps=1",
    "callbacks.sample_text.max_new_tokens=5",
]


def run(folder: Path, text: list[str], *extra: str) -> dict:
    return fit(phasegpt.compose([*TINY, *text, *extra]), folder)


def shell(*words: str, cwd: Path) -> subprocess.CompletedProcess:
    return processes.run(processes.python("-m", "phasegpt.train", *words), cwd=cwd)


def losses(folder: Path) -> list[float]:
    return [row["train/loss"] for row in read_metrics(folder / "metrics.csv")]


def test_a_run_leaves_everything_a_reader_needs(tmp_path, text, capsys, picture):
    record = run(tmp_path, text)
    assert record == read_record(tmp_path)
    assert record["status"] == "ok" and record["step"] == 4 and record["leaky"] is False
    wanted = {"git", "versions", "hardware", "seed", "config_hash", "config", "command", "data"}
    wanted |= {"parameters", "wall_seconds", "tokens_per_s", "best", "final", "started", "finished"}
    assert wanted | {"preregistration"} <= record.keys()
    again = RunConfig.parse(OmegaConf.to_container(OmegaConf.load(tmp_path / "config.yaml")))
    assert again.hash == record["config_hash"]
    rows = read_metrics(tmp_path / "metrics.csv")
    assert [row["step"] for row in rows] == [1, 2, 3, 4]
    logged = {"train/loss", "phase/R/layer1", "phase/R/layer1/head0", "phase/R/layer1/head1"}
    assert logged | {"phase/R/mean", "perf/tokens_per_s"} <= rows[0].keys()
    assert {"val/loss", "val/ppl", "val/bpb"} <= rows[-1].keys()
    assert record["best"]["val/ppl"] == min(row["val/ppl"] for row in rows if "val/ppl" in row)
    assert (tmp_path / "curves.png").stat().st_size > 10_000
    for name in ("last.ckpt", "best.ckpt"):
        file = (tmp_path / "checkpoints" / name).resolve()
        assert file.with_name(file.name + ".sha256").is_file()
    printed = capsys.readouterr().out
    assert "trigram model" in printed and str(tmp_path / "curves.png") in printed


def test_validation_is_the_evaluation_of_the_saved_model(tmp_path, text):
    from phasegpt.data.corpus import prepare
    from phasegpt.model.scoring import score

    record = run(tmp_path, text)
    corpus = prepare(RunConfig.parse(record["config"]).data)
    model = phasegpt.load(tmp_path, which="last")
    result = score(model, corpus, "val", context=16, stride=16, batch_size=6)
    assert result.loss == record["final"]["val/loss"]
    assert result.bits_per_byte == pytest.approx(record["final"]["val/bpb"], rel=1e-12)


def test_accumulation_does_not_change_the_loss_nor_the_noise(tmp_path, text):
    noisy = ["attention.noise_sigma=0.3", "attention.frequency_jitter=0.3", "regularizer=ceiling"]
    noisy += ["trainer.precision=64-true"]
    run(tmp_path / "a", text, *noisy)
    run(tmp_path / "b", text, *noisy, "data.batch_size=2", "trainer.accumulate_grad_batches=3")
    assert losses(tmp_path / "a") == pytest.approx(losses(tmp_path / "b"), abs=1e-6)
    run(tmp_path / "c", text, *noisy, "attention.noise_sigma=0")
    assert losses(tmp_path / "a") != pytest.approx(losses(tmp_path / "c"), abs=1e-6)


def test_noise_switched_off_is_bit_identical_to_a_layer_without_it(tmp_path, text):
    run(tmp_path / "a", text)
    run(tmp_path / "b", text, "attention.noise_sigma=0.0", "attention.frequency_jitter=0.0")
    run(tmp_path / "c", text, "regularizer=ceiling", "regularizer.weight=0.0")
    assert losses(tmp_path / "a") == losses(tmp_path / "b") == losses(tmp_path / "c")


def test_an_attention_that_draws_its_own_noise_is_asked_for_it(tmp_path, text, monkeypatch):
    run(tmp_path / "optioned", text, "attention.noise_sigma=0.3")

    def draws(self, key, time, device):
        shape = {"steps": self.options.steps, "time": time, "heads": 2, "oscillators": 8}
        noise = {"noise_sigma": 0.3, "frequency_jitter": 0.0, "device": device}
        return draw_perturbation(key, self.layer, **shape, **noise)

    monkeypatch.setattr(Kuramoto, "draw_perturbation", draws)
    run(tmp_path / "own", text)
    assert losses(tmp_path / "own") == losses(tmp_path / "optioned")


def test_training_noise_is_keyed_by_seed_step_and_samples(tmp_path, text, monkeypatch):
    asked, real = [], phasegpt.GPT.draw_perturbations

    def keeps(self, key, time):
        asked.append(key)
        return real(self, key, time)

    monkeypatch.setattr(phasegpt.GPT, "draw_perturbations", keeps)
    for seed in (1, 2):
        run(tmp_path / str(seed), text, "attention.noise_sigma=0.3", f"seed={seed}")
    assert [(key.seed, key.step) for key in asked] == [
        (s, step) for s in (1, 2) for step in range(4)
    ]
    for first in (0, 4):
        samples = [sample for key in asked[first : first + 4] for sample in key.sample_B]
        assert len(set(samples)) == len(samples) == 4 * 6


def test_what_keys_noise_stays_on_the_cpu(text):
    from phasegpt.training.lit import LitGPT

    lit = LitGPT(run_config(phasegpt.compose([*TINY, *text])).to_dict(), {}, 65)
    batch = {name: torch.zeros(1, dtype=torch.int64) for name in ("idx", "targets", "sample")}
    moved = lit.transfer_batch_to_device(batch, torch.device("meta"), 0)
    assert [moved[name].device.type for name in batch] == ["meta", "meta", "cpu"]


def test_the_same_command_twice_gives_the_same_bytes(tmp_path, text):
    for name in ("a", "b"):
        run(tmp_path / name, text, "model.dropout=0.1")
    a, b = (checkpoint.read(tmp_path / n / "checkpoints" / "last.ckpt") for n in ("a", "b"))
    assert all(torch.equal(v, b["state_dict"][k]) for k, v in a["state_dict"].items())


def test_the_loss_of_an_unchanged_config_stays_what_it_was(tmp_path, text):
    """A refactor must not move these numbers; a change that does must say so in CHANGELOG.md."""
    run(tmp_path, text, "trainer.precision=64-true", "model.dropout=0.1", "data.tokenizer=char")
    assert losses(tmp_path) == pytest.approx(GOLDEN, abs=1e-6)


GOLDEN = [3.9657023213565394, 3.9615843232238603, 3.9444677522475153, 3.9497080247687726]


def test_the_ceiling_regularizer_reaches_the_loss_and_is_logged(tmp_path, text):
    run(tmp_path, text, "regularizer=ceiling", "regularizer.target=0.1", "regularizer.weight=1.0")
    rows = read_metrics(tmp_path / "metrics.csv")
    assert all(row["reg/coherence"] > 0 for row in rows)


def test_early_stopping_ends_the_run_and_says_so(tmp_path, text):
    # A learning rate of nearly zero never improves by a whole unit of perplexity.
    patience = ["callbacks.early_stopping.patience=1", "callbacks.early_stopping.min_delta=1.0"]
    record = run(tmp_path, text, *patience, "optimizer.lr=1e-9", "trainer.max_steps=50")
    assert record["stopped"] == "early_stopping" and record["step"] == 4
    link = tmp_path / "checkpoints" / "last.ckpt"
    assert checkpoint.read(link)["global_step"] == 4


def test_collapse_names_step_layer_R_and_keeps_the_last_good_weights(tmp_path, text):
    from phasegpt.training.lit import LitGPT

    real = LitGPT.training_step

    def poisons(self, batch, batch_idx):
        if batch_idx == 3:
            with torch.no_grad():
                self.model.blocks[1].attn.c_proj.weight.fill_(float("nan"))
        return real(self, batch, batch_idx)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(LitGPT, "training_step", poisons)
        with pytest.raises(Collapsed, match=r"step 3: .* layer 1 in the forward pass; R is layer"):
            run(tmp_path, text)
    assert read_record(tmp_path)["status"] == "collapsed"
    assert checkpoint.read(tmp_path / "checkpoints" / "last.ckpt")["global_step"] == 2
    assert all(p.isfinite().all() for p in phasegpt.load(tmp_path).parameters())
    before = (tmp_path / "run.json").read_bytes()
    with pytest.raises(Collapsed, match="left unchanged: step 3"):
        run(tmp_path, text, "resume=true")
    assert (tmp_path / "run.json").read_bytes() == before


def test_weights_bad_after_the_last_update_fail_the_last_validation(tmp_path, text):
    from phasegpt.training.lit import LitGPT

    real = LitGPT.on_validation_epoch_start

    def poisons(self):
        if self.global_step == 4:
            with torch.no_grad():
                self.model.blocks[1].mlp.c_fc.weight.fill_(float("nan"))
        return real(self)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(LitGPT, "on_validation_epoch_start", poisons)
        with pytest.raises(Collapsed, match=r"step 4: .* layer 1 in the forward pass"):
            run(tmp_path, text)
    assert read_record(tmp_path)["status"] == "collapsed"
    assert checkpoint.read(tmp_path / "checkpoints" / "last.ckpt")["global_step"] == 2


def test_divergence_ends_the_command_with_its_status_and_no_traceback(tmp_path, text):
    done = shell(
        *TINY, *text, "optimizer.lr=1000", "optimizer.weight_decay=1000",  # weights times -1e6
        "trainer.max_steps=50", f"hydra.run.dir={tmp_path}/run",
        cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == Collapsed.exit_code
    assert "Traceback" not in done.stderr and "layer" in done.stderr
    assert read_record(tmp_path / "run")["status"] == "collapsed"


@pytest.mark.parametrize(
    ("word", "says"),
    [
        ("seed=abc", "seed='abc' must be a whole number"),
        ("optimizer.lr=-1", "must be > 0"),
        ("model.n_head=3", "choose n_head from"),
        ("attention=nope", "kuramoto"),
        ("attention.couplng=2", "couplng"),
        ("+attention.couplng=2", "did you mean attention.coupling?"),
        ("experiment=quickstart", "+experiment=quickstart"),
        ("+experiment=nope", "quickstart"),
        ("data.batch_size", "data.batch_size"),
        ("trainer.accelerator=cuda", "trainer=cpu"),
    ],
)
def test_bad_input_is_answered_in_a_few_lines_before_data_is_prepared(tmp_path, word, says):
    if word == "trainer.accelerator=cuda" and torch.cuda.is_available():
        pytest.skip("this machine has a GPU, so asking for it is no mistake")
    done = shell(word, f"data.cache_dir={tmp_path / 'cache'}", cwd=tmp_path)
    assert done.returncode != 0
    assert says in done.stderr, done.stderr
    assert "Traceback" not in done.stderr and len(done.stderr.splitlines()) <= 40
    assert not (tmp_path / "cache").exists()
    assert not list(tmp_path.rglob("run.json"))


def test_debug_shows_the_traceback(tmp_path):
    done = shell("debug=true", "optimizer.lr=-1", cwd=tmp_path)
    assert done.returncode == ConfigError("").exit_code and "Traceback" in done.stderr


def test_a_leaky_run_is_marked_and_warns(tmp_path, text):
    words = ["attention=as_coded", "attention.theta_init=gpt2"]
    with pytest.warns(UserWarning, match="sees the future"):
        record = run(tmp_path, text, *words)
    assert record["leaky"] is True


def test_metrics_csv_cut_within_a_line_is_read_and_mended(tmp_path):
    csv = MetricsCSV(tmp_path / "metrics.csv")
    for step in (1, 2, 12):
        csv.log_metrics({"a": step / 7}, step=step)
    csv.log_metrics({"b": 3.0}, step=12)
    csv.write()
    whole = (tmp_path / "metrics.csv").read_text()
    (tmp_path / "metrics.csv").write_text(whole + "1")  # of a row "13,..."
    again = MetricsCSV(tmp_path / "metrics.csv")
    again.cut(2)
    assert read_metrics(tmp_path / "metrics.csv") == [
        {"step": 1, "a": 1 / 7},
        {"step": 2, "a": 2 / 7},
    ]
    again.log_metrics({"a": 12 / 7, "b": 3.0}, step=12)
    again.write()
    assert (tmp_path / "metrics.csv").read_text() == whole


def test_two_processes_cannot_write_one_run(tmp_path):
    from phasegpt.core.errors import CheckpointError
    from phasegpt.training.run_folder import RunFolder

    held = RunFolder(tmp_path)
    with pytest.raises(CheckpointError, match="another process"):
        RunFolder(tmp_path)
    held.close()
    RunFolder(tmp_path).close()


def test_run_json_is_valid_json_without_machine_names(tmp_path, text):
    import socket

    run(tmp_path, text)
    raw = (tmp_path / "run.json").read_text()
    assert json.loads(raw) and socket.gethostname() not in raw.replace(str(tmp_path), "")
