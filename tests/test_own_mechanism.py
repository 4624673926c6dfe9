"""A mechanism in another package: found, trained, read again, and run only on the user's word."""

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from helpers import ROOT, command, play
from hydra.core.config_store import ConfigStore
from transformers import (
    CONFIG_MAPPING,
    MODEL_FOR_CAUSAL_LM_MAPPING,
    AutoModelForCausalLM,
    dynamic_module_utils,
)

import phasegpt
from phasegpt import attention
from phasegpt.analysis.study import _histograms
from phasegpt.check import check
from phasegpt.core import modules
from phasegpt.core.errors import CheckpointError, ConfigError, NotImported
from phasegpt.model import checkpoint, loading
from phasegpt.model.huggingface import PhaseGPTConfig
from phasegpt.model.run_checkpoints import sha256_of
from phasegpt.training.config import RunConfig, run_config
from phasegpt.training.run import fit
from phasegpt.training.run_folder import read_record

TEMPLATE = ROOT / "examples" / "my_mechanism"
LAYER = (TEMPLATE / "my_mechanism" / "layer.py").read_text()
#: Two steps of two layers on characters; add text and an attention.
SMALL = [
    *("attention.layers=[1]", "model.n_layer=2", "model.n_head=2", "model.n_embd=16"),
    *("model.block_size=16", "data=text", "data.tokenizer=char", "data.batch_size=4"),
    *("trainer=cpu", "trainer.max_steps=2", "trainer.val_check_interval=2", "compile=false"),
    *("optimizer.warmup_steps=1", "callbacks.progress_bar=false"),
    *("callbacks.sample_text.max_new_tokens=0", "callbacks.phase_monitor.every_n_steps=null"),
]


class Lab:
    """A folder on sys.path with modules whose import leaves a mark."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        (folder / "lab").mkdir()

    def module(self, name: str, source: str = LAYER) -> str:
        """Write the module lab.NAME; its full name."""
        mark = self.folder / f"{name}.mark"
        line = f"open({str(mark)!r}, 'w').close()\n"
        (self.folder / "lab" / f"{name}.py").write_text(f"{source}\n{line}")
        return f"lab.{name}"

    def forget(self) -> None:
        """Be a process that has imported nothing of it."""
        for name in [n for n in sys.modules if n.partition(".")[0] in ("lab", "my_mechanism")]:
            del sys.modules[name]
        for mark in self.folder.glob("*.mark"):
            mark.unlink()

    def ran(self, name: str) -> bool:
        """Whether lab.NAME was imported since."""
        return (self.folder / f"{name}.mark").exists()


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    found = Lab(tmp_path_factory.mktemp("lab"))
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(found.folder)
        yield found
    found.forget()
    ConfigStore.instance().repo.pop("attention", None)  # what compose added


@pytest.fixture(autouse=True)
def _forget(lab: Lab) -> None:
    lab.forget()


@pytest.fixture(scope="module")
def words(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    return [*SMALL, *play(tmp_path_factory.mktemp("text"))]


@pytest.fixture(scope="module")
def run(lab: Lab, words: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of lab.own with K = 0.5."""
    folder = tmp_path_factory.mktemp("run") / "run"
    own = lab.module("own")
    fit(phasegpt.compose([f"attention={own}", "+attention.coupling=0.5", *words]), folder)
    return folder


@pytest.fixture(scope="module")
def exported(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    import lab.own  # type: ignore[import-not-found] # noqa: F401

    from phasegpt.export import ExportConfig, export

    folder = tmp_path_factory.mktemp("export") / "model"
    export(ExportConfig(checkpoint=str(run), out=str(folder)))
    return folder


# --- found -----------------------------------------------------------------------------------


def test_a_module_trains_and_is_recorded_with_its_hash(run: Path, lab: Lab) -> None:
    record = read_record(run)
    assert record["config"]["attention"]["name"] == "lab.own"
    assert record["config"]["attention"]["coupling"] == 0.5
    assert record["config"]["attention"]["num_oscillators"] == 16  # the Config's default
    code = record["attention_code"]
    assert code["module"] == "lab.own"
    assert (code["distribution"], code["version"]) == (None, None)
    assert code["sha256"] == sha256_of(lab.folder / "lab" / "own.py")


def test_mechanisms_of_the_package_have_no_code_recorded() -> None:
    assert attention.origin("kuramoto") is None


def test_a_config_dir_makes_a_mechanism_an_option(
    lab: Lab, words: list[str], tmp_path: Path
) -> None:
    own = lab.module("own")
    folder = tmp_path / "my ${conf}, 'mine'"
    (folder / "attention").mkdir(parents=True)
    (folder / "attention" / "mine.yaml").write_text(f"name: {own}\nlayers: all\ncoupling: 0.25\n")

    cfg = phasegpt.compose(["attention=mine", *words], config_dir=folder)
    assert not lab.ran("own")  # composing runs nothing
    assert run_config(cfg).attention.options.to_dict()["coupling"] == 0.25
    with pytest.raises(ConfigError, match=r"did you mean attention\.coupling\?"):
        phasegpt.compose(["attention=mine", "attention.couplin=1"], config_dir=folder)
    with pytest.raises(ConfigError, match="is no folder"):
        phasegpt.compose(config_dir=tmp_path / "nowhere")
    (folder / "attention" / "softmax.yaml").write_text("name: softmax\n")
    with pytest.raises(ConfigError, match="has the name of an option of PhaseGPT's own"):
        phasegpt.compose(config_dir=folder)


def test_the_command_line_takes_a_config_dir(
    lab: Lab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "attention").mkdir()
    (tmp_path / "attention" / "mine.yaml").write_text(
        "name: lab.own\nlayers: all\ncoupling: 0.25\n"
    )
    words = ("--config-dir", tmp_path, "--cfg", "job", "attention=mine")
    command(monkeypatch, "train", *words, "attention.coupling=0.5")
    printed = yaml.safe_load(capsys.readouterr().out)
    assert printed["attention"] == {"name": "lab.own", "layers": "all", "coupling": 0.5}
    with pytest.raises(SystemExit):
        command(monkeypatch, "train", *words, "attention.couplin=0.5")
    assert "did you mean attention.coupling?" in capsys.readouterr().err
    (tmp_path / "attention" / "softmax.yaml").write_text("name: softmax\n")
    with pytest.raises(SystemExit) as end:
        command(monkeypatch, "train", *words)
    assert end.value.code == 2
    assert "has the name of an option of PhaseGPT's own" in capsys.readouterr().err


BAD = {
    "missing": (None, "cannot be imported (ModuleNotFoundError: No module named 'lab.missing')"),
    "wrong": ("1 / 0", "cannot be imported (ZeroDivisionError: division by zero)"),
    "empty": ("x = 1", "must define one subclass of phasegpt.attention.Attention"),
    "two": (f"{LAYER}\nclass Other(MyMechanism):\n    pass", "it has MyMechanism, Other"),
    "abstract": (
        "from phasegpt.attention import Attention\nclass Half(Attention):\n    pass",
        "with all of its abstract methods, and it has none",
    ),
    "config": (LAYER.replace("Config = MyConfig", "Config = dict"), "Config must be a subclass of"),
}


@pytest.mark.parametrize("name", BAD)
def test_what_is_no_mechanism_is_one_line(name: str, lab: Lab, words: list[str]) -> None:
    source, says = BAD[name]
    if source is not None:
        lab.module(name, source)
    with pytest.raises(ConfigError) as error:
        run_config(phasegpt.compose([f"attention=lab.{name}", *words]))
    assert says in str(error.value) and f"lab.{name}" in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("given", "says"),
    [
        (["attention=softmax", "attention.name=kuramotto"], "did you mean attention=kuramoto?"),
        (["attention=phasegpt.attention.kuramoto"], "write attention=kuramoto"),
        (["attention.name=lab.own"], "attention=lab.own begins without options"),
        (["attention=lab.own", "+attention.steps=3"], "attention.steps is unknown"),
        (["attention=lab.own", "regularizer=ceiling"], "does nothing without oscillators"),
        (["attention=lab.plain", "optimizer.oscillator_lr_factor=2"], "without oscillators"),
    ],
    ids=str,
)
def test_a_wrong_name_or_key_says_what_to_write(
    given: list[str], says: str, lab: Lab, words: list[str]
) -> None:
    lab.module("own")
    lab.module("plain", re.sub(r" +lr_factors = .*\n", "", LAYER))
    with pytest.raises(ConfigError) as error:
        run_config(phasegpt.compose([*given, *words]))
    assert says in str(error.value)


def test_the_hash_of_a_run_has_the_name_of_the_module_alone(lab: Lab, words: list[str]) -> None:
    cfg = phasegpt.compose([f"attention={lab.module('one')}", *words])
    first = run_config(cfg).hash
    lab.module("one", LAYER + "\n# another version")
    lab.forget()
    assert run_config(cfg).hash == first
    other = phasegpt.compose([f"attention={lab.module('other')}", *words])
    assert run_config(other).hash != first


# --- read ------------------------------------------------------------------------------------


def test_a_run_and_its_export_load_once_the_module_is_imported(run: Path, exported: Path) -> None:
    import lab.own  # noqa: F401

    idx = torch.arange(12)[None]
    with torch.no_grad():
        ours = phasegpt.load(run)(idx).logits
        assert torch.equal(phasegpt.load(exported)(idx).logits, ours)
        assert torch.equal(AutoModelForCausalLM.from_pretrained(exported)(idx).logits, ours)


READERS: dict[str, Callable[[Path, Path], object]] = {
    "load": lambda run, exported: phasegpt.load(run),
    "load a file": lambda run, exported: phasegpt.load(checkpoint.find(run, "last")),
    "load an export": lambda run, exported: phasegpt.load(exported),
    "AutoModel": lambda run, exported: AutoModelForCausalLM.from_pretrained(exported),
    "a configuration of transformers": lambda run, exported: PhaseGPTConfig.from_pretrained(
        exported
    ),
    "the record": lambda run, exported: RunConfig.parse(read_record(run)["config"]),
    "export": lambda run, exported: loading.export(run, run.parent / "never"),
}


@pytest.mark.parametrize("reader", READERS)
def test_reading_runs_no_code_that_a_file_names(
    reader: str, run: Path, exported: Path, lab: Lab
) -> None:
    lab.forget()
    with pytest.raises(CheckpointError, match=r"`import lab\.own` first") as error:
        READERS[reader](run, exported)
    assert isinstance(error.value, NotImported)
    assert "\n" not in str(error.value) and "Copy the file again" not in str(error.value)
    assert not lab.ran("own") and "lab.own" not in sys.modules


def test_weights_to_begin_with_do_not_bring_their_code(
    run: Path, words: list[str], lab: Lab, tmp_path: Path
) -> None:
    cfg = phasegpt.compose(["attention=softmax", "attention.layers=all", *words[1:]])
    cfg.init_from = str(run)
    with pytest.raises(NotImported):
        fit(cfg, tmp_path / "run")
    assert not lab.ran("own")


@pytest.mark.parametrize(
    "line",
    [
        ("evaluate", "split=val", "output={}/scores.json"),
        ("generate", "max_new_tokens=2"),
        ("export", "out={}/model"),
    ],
    ids=lambda line: line[0],
)
def test_a_command_imports_what_its_user_names(
    line: tuple[str, ...],
    run: Path,
    lab: Lab,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    name, *rest = (word.format(tmp_path) for word in line)
    with pytest.raises(SystemExit) as end:
        command(monkeypatch, name, f"checkpoint={run}", *rest)
    assert end.value.code == 2
    assert "imports=lab.own" in capsys.readouterr().err
    assert not lab.ran("own")
    command(monkeypatch, name, f"checkpoint={run}", *rest, "imports=lab.own")
    assert lab.ran("own")
    with pytest.raises(SystemExit) as end:
        command(monkeypatch, name, f"checkpoint={run}", *rest, "imports=lab.nowhere")
    assert "imports=lab.nowhere cannot be imported" in capsys.readouterr().err


def test_an_exported_folder_imports_it_only_where_its_code_is_trusted(
    exported: Path, lab: Lab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "import lab.own" in (exported / "README.md").read_text()
    lab.forget()
    # As in a process that has not imported our module.
    monkeypatch.delitem(CONFIG_MAPPING._extra_content, "phasegpt")
    monkeypatch.delitem(MODEL_FOR_CAUSAL_LM_MAPPING._extra_content, PhaseGPTConfig)
    monkeypatch.setattr(dynamic_module_utils, "HF_MODULES_CACHE", str(tmp_path))
    monkeypatch.setattr(sys, "path", list(sys.path))
    with pytest.raises(ValueError, match="trust_remote_code"):
        AutoModelForCausalLM.from_pretrained(exported, trust_remote_code=False)
    assert not lab.ran("own")
    model = AutoModelForCausalLM.from_pretrained(exported, trust_remote_code=True)
    assert lab.ran("own")
    assert model.gpt.config.attention == "lab.own"


def test_a_study_counts_the_phases_of_a_mechanism_that_is_not_here(tmp_path: Path) -> None:
    R_HT = np.zeros((2, 40))  # over prefixes those count from the 32nd token on
    (tmp_path / "phase").mkdir()
    np.savez(tmp_path / "phase" / "step-00000002.npz", **{"layer0/R_HT": R_HT})
    record = {"config": {"attention": {"name": "lab.own"}}}
    for axis, counted in (("prefix", 2 * 9), ("oscillators", 2 * 40)):
        found = _histograms(tmp_path, {**record, "attention_code": {"coupled_axis": axis}})
        assert sum(found["layer0"]) == counted


# --- changed ---------------------------------------------------------------------------------


def test_changed_code_is_said_by_readers_and_refused_by_resume(
    run: Path, lab: Lab, words: list[str], tmp_path: Path
) -> None:
    cfg = phasegpt.compose(["attention=lab.own", "+attention.coupling=0.5", *words])
    folder = shutil.copytree(run, tmp_path / "run")
    lab.module("own", LAYER + "\n# another version")
    try:
        run_config(cfg)
        told = r"the code of attention=lab\.own is not that of the training"
        with pytest.warns(UserWarning, match=told):
            phasegpt.load(folder)
        record = json.loads((folder / "run.json").read_text())
        for status, resume in (("ok", False), ("interrupted", True)):
            (folder / "run.json").write_text(json.dumps({**record, "status": status}))
            cfg.resume = resume
            with pytest.raises(CheckpointError, match=rf"{told}.*a new folder.*init_from="):
                fit(cfg, folder)
    finally:
        lab.module("own")


# --- installed -------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The template as pip installs it, on sys.path."""
    source = tmp_path_factory.mktemp("source") / "my_mechanism"
    shutil.copytree(TEMPLATE, source, ignore=shutil.ignore_patterns("__pycache__"))
    site = tmp_path_factory.mktemp("site")
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index"]
    pip += ["--no-build-isolation", "--target", str(site), str(source)]
    done = subprocess.run(pip, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(site)
        yield site


def test_an_installed_mechanism_trains_loads_and_exports_by_its_name(
    installed: Path,
    lab: Lab,
    words: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert "my_mechanism" in attention.names()
    options = ["attention.coupling=0.5", "optimizer.oscillator_lr_factor=2"]
    cfg = phasegpt.compose(["attention=my_mechanism", *options, *words])
    assert cfg.attention.focus == 4.0  # of its own YAML
    assert "my_mechanism.layer" not in sys.modules
    record = fit(cfg, tmp_path / "run")
    code = record["attention_code"]
    assert code["module"] == "my_mechanism.layer"
    assert (code["distribution"], code["version"]) == ("my-mechanism", "0.1.0")
    lab.forget()
    model = phasegpt.load(tmp_path / "run")  # what is installed may run
    assert model.blocks[1].attn.coupling.shape == (2,)
    folder = loading.export(tmp_path / "run", tmp_path / "model")
    idx = torch.arange(12)[None]
    assert torch.equal(phasegpt.load(folder)(idx).logits, model(idx).logits)
    lab.forget()
    monkeypatch.setattr(sys, "path", [p for p in sys.path if p != str(installed)])
    with pytest.raises(CheckpointError, match=r"attention=my_mechanism.*must be installed"):
        phasegpt.load(folder)


def test_the_template_as_installed_keeps_the_whole_contract(installed: Path) -> None:
    findings = check("my_mechanism")
    assert [f for f in findings if f.status == "BROKEN"] == []
    assert sum(f.status == "ok" for f in findings) > 15


def test_the_yaml_of_the_template_has_the_defaults_of_its_config(installed: Path) -> None:
    cfg = phasegpt.compose(["attention=my_mechanism"]).attention
    own = {k: v for k, v in cfg.items() if k not in ("name", "layers")}
    assert own == attention.layer_class("my_mechanism").Config().to_dict()


def test_two_mechanisms_of_one_name_are_refused(
    installed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (point,) = modules.entry_points(attention.GROUP)["my_mechanism"]
    twice = {"kuramoto": [point], "my_mechanism": [point, point]}
    monkeypatch.setattr(modules, "entry_points", lambda group: twice)
    for name in twice:
        with pytest.raises(ConfigError, match=r"several mechanisms.*my_mechanism\.layer"):
            attention.layer_class(name)
