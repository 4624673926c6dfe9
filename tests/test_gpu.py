"""What only a GPU can show; skipped by name where there is none."""

import pytest
import torch
from helpers import crash_at, play

import phasegpt
from phasegpt.training.run import fit
from phasegpt.training.run_folder import read_metrics

pytestmark = pytest.mark.gpu

WORDS = [
    "attention.layers=[1]",
    "model.n_layer=2",
    "model.n_head=2",
    "model.n_embd=64",
    "model.block_size=64",
    "data=text",
    "data.batch_size=8",
    "trainer=gpu",
    "trainer.max_steps=20",
    "trainer.val_check_interval=10",
    "trainer.log_every_n_steps=1",
    "optimizer.lr=3e-3",
    "optimizer.warmup_steps=2",
    "callbacks.sample_text.max_new_tokens=5",
]


@pytest.fixture
def run(tmp_path):
    text = play(tmp_path, 20_000)

    def start(name: str, *extra: str) -> list[float]:
        fit(phasegpt.compose([*WORDS, *text, *extra]), tmp_path / name)
        return [row["train/loss"] for row in read_metrics(tmp_path / name / "metrics.csv")]

    return start


@pytest.mark.parametrize(
    "attention", ["softmax", "kuramoto", "phase_sync", "hybrid", "fixed_query", "ssa"]
)
def test_bf16_training_on_a_gpu_follows_float32_on_the_cpu(run, attention):
    bf16 = run("gpu", f"attention={attention}", "attention.layers=[1]")
    cpu = run("cpu", f"attention={attention}", "attention.layers=[1]", "trainer=cpu")
    assert bf16 == pytest.approx(cpu, rel=0.03)
    assert bf16[-1] < bf16[0] - 0.5


def test_compiled_training_follows_eager_training(run):
    assert run("compiled", "compile=true") == pytest.approx(run("eager"), rel=0.02)


def test_resume_on_a_gpu_is_bit_identical(run):
    noisy = ["model.dropout=0.1", "attention.noise_sigma=0.05", "trainer.deterministic=true"]
    noisy.append("callbacks.checkpoint.every_n_train_steps=5")
    whole = run("whole", *noisy)
    with crash_at(13):
        run("cut", *noisy)
    assert run("cut", *noisy, "resume=true") == whole


def test_decoding_with_a_cache_equals_the_full_forward_on_a_gpu(make_model):
    model = make_model("kuramoto").cuda()
    ids = torch.randint(65, (2, 20), device="cuda")
    with torch.inference_mode():
        whole, cache = model(ids).logits, model.new_cache()
        parts = [model(ids[:, t : t + 1], cache=cache).logits for t in range(20)]
    assert torch.allclose(torch.cat(parts, 1), whole, atol=1e-4)
