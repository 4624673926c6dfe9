"""When a model is compiled, and what a compiled one is given."""

import pytest
import torch
from helpers import TWO_STEPS

import phasegpt
from phasegpt.core.errors import ConfigError
from phasegpt.model.gpt import GPT
from phasegpt.training.assemble import _products, check_device, compiles, lightning
from phasegpt.training.config import run_config
from phasegpt.training.gpus import COMPILE_S, compile_gain, peak_flops


@pytest.mark.parametrize(
    ("name", "teraflops"),
    [
        ("NVIDIA H200", 989),
        ("NVIDIA H100 80GB HBM3", 989),
        ("NVIDIA H100 PCIe", 756),
        ("NVIDIA A100-SXM4-80GB", 312),
        ("NVIDIA A10", 125),
        ("NVIDIA L40S", 362),
        ("NVIDIA L40", 181),
        ("NVIDIA L4", 121),
        ("NVIDIA GeForce RTX 4090", 165.2),
        ("NVIDIA GeForce RTX 3090 Ti", 80),
        ("NVIDIA GeForce RTX 4090 Laptop GPU", None),
        ("NVIDIA GeForce RTX 4090 D", None),
        ("NVIDIA A10G", None),
        ("Some GPU", None),
    ],
)
def test_a_gpu_is_known_by_its_whole_name(name, teraflops) -> None:
    found = peak_flops(name)
    assert (found and found / 1e12) == teraflops


def test_compiling_is_worth_what_it_saves_less_its_own_time() -> None:
    flops = 1e17  # at 25% of 989e12 in 404 s, at 45% in 225 s
    assert compile_gain("NVIDIA H200", flops) == pytest.approx(404.4 - 224.7 - COMPILE_S, abs=0.2)
    assert compile_gain("Some GPU", 0) == -COMPILE_S


def test_auto_compiles_where_it_gains_time(text) -> None:
    def decides(*words: str, flops: float = 1e15, gpu: str | None = "NVIDIA H200") -> bool:
        return compiles(run_config(phasegpt.compose([*TWO_STEPS, *text, *words])), flops, gpu)

    auto, long = ["compile=auto"], "trainer.max_steps=100"
    assert decides(*auto, long) and not decides(*auto, "trainer.max_steps=10")
    assert decides(*auto, "trainer.max_steps=10", gpu="NVIDIA L4")  # which is slower
    assert not decides(*auto, long, gpu=None) and decides("compile=true", gpu=None)
    assert not decides(*auto, long, "data.documents=true") and not decides("compile=false", long)


def test_a_compiled_model_is_validated_on_as_many_rows_as_it_has_seen(text) -> None:
    lit, data = lightning(phasegpt.compose([*TWO_STEPS, *text, "trainer.precision=64-true"]))
    lit.double()
    *_, last = data.val_dataloader()
    rows = len(last["idx"])
    assert 0 < rows < lit.run.data.batch_size
    plain, shapes = lit._of_all_rows(last), []

    def compiled(idx_BT: torch.Tensor, **words):
        shapes.append(len(idx_BT))
        return GPT.forward(lit.model, idx_BT, **words)

    lit.model._compiled_call_impl = compiled
    out = lit._of_all_rows(last)
    assert shapes == [lit.run.data.batch_size]
    torch.testing.assert_close(out, plain, rtol=1e-12, atol=1e-12)


def test_tf32_is_for_one_training_on_a_gpu_and_refused_elsewhere(text, monkeypatch) -> None:
    torch.set_float32_matmul_precision("highest")
    with pytest.raises(KeyError), _products(True):
        assert torch.get_float32_matmul_precision() == "high"
        raise KeyError
    with _products(False):
        assert torch.get_float32_matmul_precision() == "highest"
    words = [*TWO_STEPS, *text, "trainer.tf32=true"]
    with pytest.raises(ConfigError, match=r"does nothing with trainer\.accelerator=cpu"):
        run_config(phasegpt.compose(words))
    run = run_config(phasegpt.compose([*words, "trainer.accelerator=auto"]))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ConfigError, match="is for GPUs"):
        check_device(run)
