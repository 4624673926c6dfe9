"""An exported folder as phasegpt.load, AutoModelForCausalLM and AutoTokenizer read it."""

import json
import os
import shutil
import sys
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import torch
from helpers import TEXT, command, make_run, text_data
from transformers import (
    CONFIG_MAPPING,
    MODEL_FOR_CAUSAL_LM_MAPPING,
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    dynamic_module_utils,
)

import phasegpt
from phasegpt.core.errors import CheckpointError, ConfigError, OutputError, UserError
from phasegpt.data import hf_tokenizers
from phasegpt.data.tokenizers import Tokenizer, build
from phasegpt.export import ExportConfig, export
from phasegpt.model import loading
from phasegpt.model.hf_folder import card
from phasegpt.model.huggingface import PhaseGPTConfig, PhaseGPTForCausalLM
from phasegpt.model.huggingface import load as load_hf
from phasegpt.model.loaded import Loaded

ALPHABET = "\n !',.abcdefghijklmnopqrstuvwxyzS\u00e9\u6f22\U0001f600"


def exported(run: Path, folder: Path, **words: Any) -> Path:
    export(ExportConfig(checkpoint=str(run), out=str(folder), **words))
    return folder


@pytest.fixture(scope="module")
def folder(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return exported(run, tmp_path_factory.mktemp("hf") / "model")


@pytest.fixture
def idx() -> torch.Tensor:
    return torch.arange(24).view(2, 12) % 40


def test_every_reader_of_the_folder_has_the_logits_of_the_run(
    run: Path, folder: Path, idx: torch.Tensor
) -> None:
    with torch.no_grad():
        ours = phasegpt.load(run)(idx).logits
        assert torch.equal(phasegpt.load(folder)(idx).logits, ours)
        assert torch.equal(AutoModelForCausalLM.from_pretrained(folder)(idx).logits, ours)
        assert torch.equal(load_hf(folder)[0](idx).logits, ours)


def test_which_checkpoint_is_exported_is_the_users_choice(
    run: Path, tmp_path: Path, idx: torch.Tensor
) -> None:
    last = exported(run, tmp_path / "last", which="last")
    with torch.no_grad():
        assert torch.equal(phasegpt.load(last)(idx).logits, phasegpt.load(run, "last")(idx).logits)


def test_the_folder_is_whole_and_says_so(folder: Path) -> None:
    back = loading.load_run(folder)
    assert back.config is not None
    sums = (folder / "SHA256SUMS").read_text()
    unsigned = {"SHA256SUMS", "README.md"}
    assert {file.name for file in folder.iterdir() if file.name not in sums} == unsigned
    assert loading.is_ours(folder)


def test_a_card_may_be_edited(folder: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(folder, tmp_path / "copy")
    (copy / "README.md").write_text("# Mine")
    phasegpt.load(copy)


def test_an_export_of_an_export_is_the_same_model(
    folder: Path, tmp_path: Path, idx: torch.Tensor
) -> None:
    again = exported(folder, tmp_path / "again")
    plain = exported(folder, tmp_path / "plain", format="phasegpt")
    assert not (plain / "README.md").exists()
    for other in (again, plain):
        weights = (other / "model.safetensors").read_bytes()
        assert weights == (folder / "model.safetensors").read_bytes()
        tokenizer = phasegpt.load(other).tokenizer
        assert tokenizer.fingerprint == phasegpt.load(folder).tokenizer.fingerprint


def test_save_pretrained_gives_back_every_bit(folder: Path, tmp_path: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(folder)
    model.save_pretrained(tmp_path)
    again = PhaseGPTForCausalLM.from_pretrained(tmp_path)
    assert again.config.gpt() == model.config.gpt()
    states = (model.state_dict(), again.state_dict())
    assert states[0].keys() == states[1].keys()
    assert all(torch.equal(value, states[1][name]) for name, value in states[0].items())
    assert again.gpt.lm_head.weight is again.gpt.transformer["wte"].weight


def test_weights_that_are_not_those_of_the_model_are_an_error(folder: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    for file in folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    weights = load_file(tmp_path / "model.safetensors")
    for change in ({"transformer.h.1.attn.beta": None}, {"another": torch.zeros(1)}):
        changed = {k: v for k, v in {**weights, **change}.items() if v is not None}
        save_file(changed, tmp_path / "model.safetensors", metadata={"format": "pt"})
        with pytest.raises(CheckpointError, match=r"beta|another"):
            AutoModelForCausalLM.from_pretrained(tmp_path)


def test_configurations_go_through_our_checks(folder: Path) -> None:
    config = AutoConfig.from_pretrained(folder)
    assert (config.hidden_size, config.num_hidden_layers) == (config.n_embd, config.n_layer)
    assert config.max_position_embeddings == config.block_size
    with pytest.raises(ConfigError, match="n_head"):
        type(config)(n_embd=16, n_head=3)
    with pytest.raises(ConfigError, match="tie_word_embeddings"):
        type(config)(tie_word_embeddings=False)


def test_trust_remote_code_needs_no_import_of_ours(
    folder: Path, tmp_path: Path, idx: torch.Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    # As in a process that has not imported our module.
    monkeypatch.delitem(CONFIG_MAPPING._extra_content, "phasegpt")
    monkeypatch.delitem(MODEL_FOR_CAUSAL_LM_MAPPING._extra_content, PhaseGPTConfig)
    monkeypatch.setattr(dynamic_module_utils, "HF_MODULES_CACHE", str(tmp_path))
    monkeypatch.setattr(sys, "path", list(sys.path))
    with pytest.raises(ValueError, match="trust_remote_code"):
        AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=False)
    model = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True)
    with torch.no_grad():
        assert torch.equal(model(idx).logits, phasegpt.load(folder)(idx).logits)


# --- tokenizers ------------------------------------------------------------------------------


def theirs(tokenizer: Tokenizer, folder: Path) -> Any:
    """AutoTokenizer's, from the files that an export writes."""
    (folder / "tokenizer.json").write_text(hf_tokenizers.tokenizer_json(tokenizer))
    config = hf_tokenizers.tokenizer_config(tokenizer, 32)
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return AutoTokenizer.from_pretrained(folder)


@pytest.mark.parametrize(
    "name",
    [
        "char",
        "byte",
        pytest.param(
            "gpt2",
            marks=pytest.mark.skipif(
                not os.environ.get("PHASEGPT_DATA_DIR"), reason="PHASEGPT_DATA_DIR is not set"
            ),
        ),
    ],
)
def test_ids_and_texts_of_autotokenizer_are_ours(name: str, tmp_path: Path) -> None:
    ours = build(name, alphabet=ALPHABET)
    hf = theirs(ours, tmp_path)
    texts = ["", "\n", "  a  \n\n b ", "don't  'll\n", "\u00e9\u6f22\U0001f600 x.", " Shall"]
    if name != "char":
        texts += [TEXT, "<|endoftext|> 12345\t\r\n\u200b", "".join(map(chr, range(1, 700)))]
    for text in texts:
        ids = ours.encode(text).tolist()
        assert hf(text)["input_ids"] == ids
        assert hf.decode(ids) == text
    generator = torch.Generator().manual_seed(0)
    for ids in torch.randint(ours.vocab_size, (20, 12), generator=generator).tolist():
        assert hf.decode(ids) == ours.decode(ids)  # bytes that are no text too
    assert len(hf) == ours.vocab_size
    # GPT-2's end of text is known as such; in a text it is text.
    assert hf.eos_token_id == (50256 if name == "gpt2" else None)


def test_a_character_without_a_token_is_an_error_for_both(tmp_path: Path) -> None:
    ours = build("char", alphabet=ALPHABET)
    hf = theirs(ours, tmp_path)
    with pytest.raises(UserError, match="not among the"):
        ours.encode("a?")
    with pytest.raises(Exception, match="Missing"):
        hf("a?")


def test_without_the_extra_the_command_says_what_to_install(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    with pytest.raises(ConfigError, match=r"pip install 'phasegpt\[hf\]'"):
        exported(run, tmp_path / "hf")
    assert not (tmp_path / "hf").exists()
    exported(run, tmp_path / "ours", format="phasegpt")


def test_a_folder_of_bytes_is_read_by_all(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", *text_data(tmp_path, TEXT, "byte"), "model.vocab_size=300")
    folder = exported(run, tmp_path / "hf")
    model, tokenizer = load_hf(folder)
    assert phasegpt.load(folder).tokenizer.name == "byte"
    ids = tokenizer("thee", return_tensors="pt")
    out = model.generate(**ids, max_new_tokens=20, do_sample=True, temperature=100.0)
    assert int(out.max()) < 256  # the model has 300 rows, 44 of them without a byte


# --- the card, the command, the hub ----------------------------------------------------------


def test_the_card_has_the_numbers_of_the_run(run: Path, tmp_path: Path) -> None:
    for file in run.rglob("*"):
        if file.is_file():
            (tmp_path / "run" / file.relative_to(run)).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / "run" / file.relative_to(run)).write_bytes(file.read_bytes())
    record = {
        "seed": 7,
        "step": 20,
        "best": {"step": 10, "val/loss": 1.234, "val/ppl": 3.435, "val/bpb": 1.78},
        "final": {"phase/R/layer1": 0.5678, "phase/val/dR/layer1": 0.0123,
                  "phase/val/dR_se/layer1": 0.0004},
        "data": {"corpus": "text", "fingerprint": "0123456789abcdef"},
    }  # fmt: skip
    (tmp_path / "run" / "run.json").write_text(json.dumps(record))
    card = (
        exported(tmp_path / "run", tmp_path / "hf", license="cc0-1.0") / "README.md"
    ).read_text()
    assert card.startswith("---\nlicense: cc0-1.0\n")
    for said in (
        *("kuramoto in layers [1]", "| seed | 7 |", "1.234", "3.435", "1.78", "0123456789abcdef"),
        *("R of layer 1 at the end of the run", "0.5678", "0.0123", "0.0004", "with random phases"),
        *("version = {" + phasegpt.__version__, "Licence: cc0-1.0", "import phasegpt.model.hugg"),
        "trust_remote_code=True,prefix_token_id=0",
    ):
        assert said in card


def test_a_configuration_of_before_is_read_as_phasegpt_reads_it() -> None:
    old = {"attention": "phase_sync", "attention_options": {"as_coded": False}}
    assert PhaseGPTConfig(vocab_size=65, **old).gpt().attention == "phase_sync"


def test_the_card_has_the_R_that_its_dR_is_of(run: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(run, tmp_path / "run")
    final = {"phase/R/layer1": 0.9, "phase/val/R_end/layer1": 0.25, "phase/val/dR/layer1": 0.1}
    record = {"seed": 7, "step": 20, "best": {"step": 10, "val/loss": 1.2}, "final": final}
    (copy / "run.json").write_text(json.dumps(record))
    card = (exported(copy, tmp_path / "hf") / "README.md").read_text()
    assert "0.25 |" in card and "0.9 |" not in card


@pytest.mark.parametrize(
    ("name", "layers", "says"),
    [
        ("kuramoto", (0,), "kuramoto attention, which has phase oscillators."),
        ("softmax", (0,), "softmax attention."),
        ("token_shift", (0,), "token_shift attention."),
        ("kuramoto", (), "softmax attention."),
    ],
)
def test_the_card_names_oscillators_where_there_are_some(
    name: str, layers: tuple[int, ...], says: str, make_model: Any
) -> None:
    model = make_model(name, layers=layers, vocab_size=256)
    said = card(Loaded(model, build("byte"), None, Path("x"), "0"), {}, "mit")
    assert f"A GPT-2 with {says}\n" in said
    assert ("scillator" in said) == ("scillator" in says)
    assert f"tags: [phasegpt, {says.split()[0]}]" in said
    assert f"| attention | {says.split()[0]}" in said


def test_the_card_of_a_model_that_sees_the_future_says_so(tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match="sees the future"):
        run = make_run(tmp_path / "run", *text_data(tmp_path, TEXT), "attention=as_coded")
        folder = exported(run, tmp_path / "hf")
        model, _ = load_hf(folder)
    assert "LEAKY" in (folder / "README.md").read_text()
    assert model.generation_config.use_cache is False


def test_the_command_tells_what_it_wrote(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    command(monkeypatch, "export", f"checkpoint={run}", f"out={tmp_path / 'a=b, c'}")
    assert f"written to {tmp_path / 'a=b, c'}: README.md" in capsys.readouterr().out
    phasegpt.load(tmp_path / "a=b, c")


def test_what_cannot_be_exported_is_refused_before_the_work(
    run: Path, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loading, "load_run", lambda *_: pytest.fail("the work began"))
    for error, match, words in (
        (ConfigError, "checkpoint is not set", {"checkpoint": None}),
        (ConfigError, "out is not set", {"out": None}),
        (CheckpointError, "not empty", {"out": str(folder)}),
        (ConfigError, "folder of the export", {"out": "/dev/null/x"}),
        (ConfigError, "OWNER/NAME", {"push_to_hub": "mine"}),
        (ConfigError, "license", {"license": "my own\nlicence"}),
        (ConfigError, "does nothing", {"license": "other", "format": "phasegpt"}),
    ):
        given = {"checkpoint": str(run), "out": str(tmp_path / "new"), **words}
        with pytest.raises(error, match=match):
            export(ExportConfig(**given))
    assert not (tmp_path / "new").exists()


class Hub:
    """A hub that writes down what it is asked."""

    calls: list[tuple[str, Any]]
    fails = False

    def create_repo(self, name: str, *, private: bool, exist_ok: bool) -> str:
        if Hub.fails:
            raise ConnectionError("no network")
        Hub.calls.append(("create", (name, private, exist_ok)))
        return f"https://hub/{name}"

    def upload_folder(self, *, repo_id: str, folder_path: Path, commit_message: str) -> None:
        Hub.calls.append(("upload", (repo_id, sorted(p.name for p in folder_path.iterdir()))))


def test_the_hub_gets_the_folder_if_asked_and_only_then(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(huggingface_hub, "HfApi", Hub)
    monkeypatch.setattr(Hub, "calls", [], raising=False)
    exported(run, tmp_path / "quiet")
    assert Hub.calls == []
    settings = ExportConfig(checkpoint=str(run), out=str(tmp_path / "a"), push_to_hub="me/mine")
    assert export(settings)[-1] == "uploaded to https://hub/me/mine"
    names = sorted(file.name for file in (tmp_path / "a").iterdir())
    assert Hub.calls == [("create", ("me/mine", True, True)), ("upload", ("me/mine", names))]
    monkeypatch.setattr(Hub, "fails", True)
    with pytest.raises(OutputError, match=r"is written, but .* no network"):
        exported(run, tmp_path / "b", push_to_hub="me/mine")
    phasegpt.load(tmp_path / "b")
