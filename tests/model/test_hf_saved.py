"""What transformers and PEFT save of an exported model: read by phasegpt.load, bit for bit."""

import json
import shutil
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import Tensor
from transformers import (
    CONFIG_MAPPING,
    MODEL_FOR_CAUSAL_LM_MAPPING,
    AutoModelForCausalLM,
    AutoTokenizer,
    Trainer,
    TrainingArguments,
    dynamic_module_utils,
)
from transformers.modeling_utils import PreTrainedModel

import phasegpt
from phasegpt.core.errors import CheckpointError, ConfigError
from phasegpt.export import ExportConfig, export
from phasegpt.model import exported, loading
from phasegpt.model.huggingface import PhaseGPTConfig, PhaseGPTForCausalLM

PROJECTIONS = ["c_attn", "c_proj", "c_fc"]


@pytest.fixture(scope="module")
def folder(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("hf") / "model"
    export(ExportConfig(checkpoint=str(run), out=str(out)))
    return out


@pytest.fixture
def saved(folder: Path, tmp_path: Path) -> Path:
    AutoModelForCausalLM.from_pretrained(folder).save_pretrained(tmp_path / "saved")
    return tmp_path / "saved"


@pytest.fixture
def idx() -> Tensor:
    return torch.arange(24).view(2, 12) % 40


def same(model: Any, other: Any) -> None:
    states = model.state_dict(), other.state_dict()
    assert states[0].keys() == states[1].keys()
    assert all(torch.equal(value, states[1][name]) for name, value in states[0].items())


def test_load_reads_what_save_pretrained_wrote_bit_for_bit(folder: Path, saved: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model = phasegpt.load(saved)
    same(model, phasegpt.load(folder))
    assert model.config == phasegpt.load(folder).config
    assert model.tokenizer.fingerprint == phasegpt.load(folder).tokenizer.fingerprint
    assert loading.is_ours(saved)
    back = loading.load_run(saved)
    assert back.config is None  # whatever trained it since is not in the run's record
    # A tokenizer beside it, as transformers saves them, changes nothing; nor a second save.
    AutoTokenizer.from_pretrained(folder).save_pretrained(saved)
    same(phasegpt.load(saved), model)
    again = AutoModelForCausalLM.from_pretrained(saved)
    again.save_pretrained(saved)
    assert loading.load_run(saved).sha256 == back.sha256


def test_save_pretrained_into_an_export_leaves_a_whole_folder(folder: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(folder, tmp_path / "copy")
    model = AutoModelForCausalLM.from_pretrained(copy)
    with torch.no_grad():
        model.gpt.transformer["ln_f"].weight.mul_(2)
    with pytest.warns(UserWarning, match=r"run\.json and README\.md are of the weights before"):
        model.save_pretrained(copy)
    same(phasegpt.load(copy), model.gpt)


def test_changed_weights_are_not_exported_with_the_numbers_of_a_run(
    folder: Path, tmp_path: Path
) -> None:
    record = json.loads((folder / "run.json").read_text())
    record["best"] = {"step": 3, "val/loss": 1.234}
    files = {p.name: p.read_bytes() for p in folder.iterdir() if p.name != "SHA256SUMS"}
    first = exported.write_folder(
        tmp_path / "first", {**files, "run.json": json.dumps(record).encode()}
    )
    export(ExportConfig(checkpoint=str(first), out=str(tmp_path / "second")))
    assert "1.234" in (tmp_path / "second" / "README.md").read_text()  # the weights of that run
    with pytest.warns(UserWarning, match="was an export"):
        AutoModelForCausalLM.from_pretrained(first).save_pretrained(first)
    for form in ("hf", "phasegpt"):
        out = tmp_path / form
        export(ExportConfig(checkpoint=str(first), out=str(out), format=form))
        assert not (out / "run.json").exists()
    assert "1.234" not in (tmp_path / "hf" / "README.md").read_text()


def test_shards_are_read_too(folder: Path, tmp_path: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(folder)
    model.save_pretrained(tmp_path, max_shard_size="10KB")
    shards = sorted(tmp_path.glob("model-*.safetensors"))
    assert len(shards) > 1
    same(phasegpt.load(tmp_path), model.gpt)
    content = bytearray(shards[0].read_bytes())
    content[-3] ^= 1
    shards[0].write_bytes(content)
    with pytest.raises(CheckpointError, match=shards[0].name):
        phasegpt.load(tmp_path)


def test_without_sums_a_saved_folder_loads_with_a_warning(saved: Path) -> None:
    whole = phasegpt.load(saved)
    (saved / "SHA256SUMS").unlink()
    with pytest.warns(UserWarning, match="has no SHA256SUMS"):
        same(phasegpt.load(saved), whole)
    assert loading.is_ours(saved)
    weights = saved / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])  # that is seen without sums too
    with pytest.warns(UserWarning), pytest.raises(CheckpointError, match="is damaged"):
        phasegpt.load(saved)


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "phasegpt_tokenizer.json"])
def test_a_flipped_bit_of_a_saved_folder_is_found(saved: Path, name: str) -> None:
    content = bytearray((saved / name).read_bytes())
    content[len(content) // 2] ^= 1
    (saved / name).write_bytes(content)
    with pytest.raises(CheckpointError, match=name):
        phasegpt.load(saved)


def test_a_model_without_a_known_tokenizer_is_refused_with_the_remedy(tmp_path: Path) -> None:
    config = PhaseGPTConfig(n_layer=1, n_head=1, n_embd=8, block_size=8, vocab_size=5)
    PhaseGPTForCausalLM(config).save_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match=r"has no phasegpt_tokenizer\.json"):
        phasegpt.load(tmp_path)


def test_a_saved_folder_needs_no_import_of_ours(
    folder: Path, saved: Path, tmp_path: Path, idx: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    # As in a process that has not imported our module.
    monkeypatch.delitem(CONFIG_MAPPING._extra_content, "phasegpt")
    monkeypatch.delitem(MODEL_FOR_CAUSAL_LM_MAPPING._extra_content, PhaseGPTConfig)
    monkeypatch.setattr(dynamic_module_utils, "HF_MODULES_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(sys, "path", list(sys.path))
    remote = AutoModelForCausalLM.from_pretrained(saved, trust_remote_code=True)
    remote.save_pretrained(tmp_path / "again")
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "again", trust_remote_code=True)
    assert not (tmp_path / "again" / "huggingface.py").exists()
    with torch.no_grad():
        assert torch.equal(again(idx).logits, phasegpt.load(folder)(idx).logits)


def test_push_to_hub_of_the_model_uploads_a_folder_that_load_reads(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers.utils import hub

    class Hub:
        def create_repo(self, name: str, **_: Any) -> Any:
            return type("Repo", (), {"repo_id": name})

    def upload(_: Any, files: str, repo: str, **__: Any) -> None:
        shutil.copytree(files, tmp_path / repo)

    monkeypatch.setattr(hub, "hf_api", Hub)
    monkeypatch.setattr(PreTrainedModel, "_upload_modified_files", upload)
    card = type("Card", (), {"save": lambda _, path: Path(path).write_text("card")})
    monkeypatch.setattr(hub, "create_and_tag_model_card", lambda *_, **__: card())
    model = AutoModelForCausalLM.from_pretrained(folder)
    model.push_to_hub("me/mine")
    same(phasegpt.load(tmp_path / "me" / "mine"), model.gpt)
    with pytest.raises(ConfigError, match=r"call model\.push_to_hub"):
        model.save_pretrained(tmp_path / "other", push_to_hub=True)


def test_what_the_trainer_of_transformers_saves_is_loaded(
    folder: Path, tmp_path: Path, idx: Tensor
) -> None:
    model = AutoModelForCausalLM.from_pretrained(folder)
    words = {"max_steps": 2, "per_device_train_batch_size": 2, "report_to": [], "use_cpu": True}
    trainer = Trainer(
        model,
        TrainingArguments(str(tmp_path / "runs"), save_steps=2, disable_tqdm=True, **words),
        train_dataset=[{"input_ids": row, "labels": row} for row in idx],
    )
    trainer.train()
    trained = phasegpt.load(tmp_path / "runs" / "checkpoint-2")
    same(trained, model.gpt)
    with pytest.raises(AssertionError):
        same(trained, phasegpt.load(folder))


# --- PEFT ------------------------------------------------------------------------------------


def adapted(folder: Path, targets: Any) -> Any:
    torch.manual_seed(0)
    config = LoraConfig(task_type="CAUSAL_LM", r=4, lora_alpha=16, target_modules=targets)
    return get_peft_model(AutoModelForCausalLM.from_pretrained(folder), config)


def trained(model: Any, idx: Tensor) -> list[float]:
    """Losses of a few steps on one batch."""
    learned = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(learned, lr=0.02)
    losses = []
    for _ in range(8):
        loss = model(input_ids=idx, labels=idx).loss
        loss.backward()
        assert all(p.grad is not None for p in learned)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return losses


@pytest.mark.parametrize("targets", [PROJECTIONS, "all-linear"], ids=["projections", "all"])
@pytest.mark.filterwarnings("ignore:Could not find a config file")  # PEFT asks for the base's
def test_lora_trains_leaves_the_model_as_it_was_and_merges(
    folder: Path, tmp_path: Path, idx: Tensor, targets: Any
) -> None:
    plain = phasegpt.load(folder)
    model = adapted(folder, targets)
    names = {name.rsplit(".", 3)[0] for name, _ in model.named_parameters() if "lora_A" in name}
    oscillators = [name for name in names if name.endswith("oscillators.phase")]
    assert len(oscillators) == (targets == "all-linear")
    assert not any("lm_head" in name for name in names)  # it is the embedding
    losses = trained(model, idx)
    assert losses[-1] < 0.9 * losses[0]
    model.eval()
    with torch.no_grad():
        with model.disable_adapter():
            assert torch.equal(model(input_ids=idx).logits, plain(idx).logits)
        on = model(input_ids=idx).logits
        assert (on - plain(idx).logits).abs().max() > 0.1
        model.save_pretrained(tmp_path / "adapter")
        with pytest.raises(CheckpointError, match="an adapter of PEFT alone; merge it"):
            phasegpt.load(tmp_path / "adapter")
        again = PeftModel.from_pretrained(
            AutoModelForCausalLM.from_pretrained(folder), tmp_path / "adapter"
        ).eval()
        assert torch.equal(again(input_ids=idx).logits, on)
        merged = again.merge_and_unload()
        torch.testing.assert_close(merged(idx).logits, on, atol=1e-4, rtol=1e-4)
        merged.save_pretrained(tmp_path / "merged")
        assert torch.equal(phasegpt.load(tmp_path / "merged")(idx).logits, merged(idx).logits)
    assert json.loads((tmp_path / "merged" / "config.json").read_text())["model_type"] == "phasegpt"


def test_lora_on_the_oscillators_alone_acts_on_the_phases(folder: Path, idx: Tensor) -> None:
    model = adapted(folder, ["phase"])
    before = model.base_model.model.gpt(idx, return_phase=True).phase[1].theta
    trained(model, idx)
    after = model.base_model.model.gpt(idx, return_phase="coupling").phase[1].theta
    assert (after - before).abs().max() > 0.01


@pytest.mark.filterwarnings("ignore:oscillators are integrated in plain PyTorch")
def test_a_lora_model_generates_with_its_cache_as_without(folder: Path, idx: Tensor) -> None:
    model = adapted(folder, PROJECTIONS)
    trained(model, idx)
    model.eval().double()  # where no CPU rounds to another token
    words = {"input_ids": idx, "max_new_tokens": 8, "do_sample": False}
    assert torch.equal(model.generate(**words), model.generate(use_cache=False, **words))
