"""Options: an idle one and a number that can do nothing are errors; one source for every default.

What a user reads, conf/ and docs/configuration.md, is what the sections of the code say.
"""

import copy
import functools
import json
import operator
import runpy
from collections.abc import Iterator
from dataclasses import MISSING, fields, replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from helpers import ROOT, composed
from omegaconf import OmegaConf

from phasegpt.attention import layer_class, names
from phasegpt.core.composition import CONF_DIR, compose, plain
from phasegpt.core.errors import ConfigError
from phasegpt.core.sections import Section
from phasegpt.data.config import DataConfig
from phasegpt.evaluate import EvaluateConfig
from phasegpt.export import ExportConfig
from phasegpt.generate import GenerateConfig
from phasegpt.interpret import InterpretConfig
from phasegpt.samplers import build_sampler
from phasegpt.training.config import RunConfig, run_config
from phasegpt.training.optimizer_config import OPTIMIZERS

REFERENCE = runpy.run_path(str(ROOT / "scripts" / "write_reference.py"))
COMMANDS = {
    "evaluate": EvaluateConfig,
    "generate": GenerateConfig,
    "interpret": InterpretConfig,
    "export": ExportConfig,
}


@functools.cache
def values_of(command: str, *groups: str) -> dict[str, Any]:
    return plain(compose(list(groups), config_name=command))


def of_command(words: str) -> Any:
    """The settings that `COMMAND key=value ...` gives; train's without a command."""
    command, *rest = words.split() if words.split()[0] in COMMANDS else ["config", *words.split()]
    groups = [w for w in rest if (CONF_DIR / w.partition("=")[0]).is_dir()]
    given = OmegaConf.from_dotlist([w for w in rest if w not in groups])
    values = plain(OmegaConf.merge(values_of(command, *groups), given))
    return checked(command, values)


def checked(command: str, values: dict[str, Any]) -> Any:
    if command == "config":
        return run_config(values)
    settings = COMMANDS[command].parse(values)
    if isinstance(settings, GenerateConfig):
        build_sampler(settings.sampler)
    return settings


# --- idle options ----------------------------------------------------------------------------

#: The last word of each does nothing beside the others.
IDLE = [
    "attention=softmax regularizer=band",
    "attention=softmax optimizer.oscillator_lr_factor=2",
    "attention=softmax callbacks.phase_monitor.band=[0.1,0.2]",
    "attention=softmax callbacks.collapse_guard.action=stop callbacks.collapse_guard.R_low=0.1",
    "attention.layers=[] regularizer=ceiling",
    "attention.layers=[] attention.coupling=0.5",
    "attention=fixed_query attention.layers=[] attention.p=3",
    "attention.steps=0 attention.dt=0.2",
    "attention.steps=0 attention.lag=0.3",
    "attention.steps=0 attention.integrator=rk4",
    "attention.steps=0 attention.noise_sigma=0.1",
    "attention=phase_sync attention.steps=0 attention.omega_spread=1",
    "attention=hybrid attention.steps=0 attention.frequency_jitter=0.1",
    "attention.coupling=0 attention.learn_coupling=false attention.lag=0.3",
    "attention.theta_init=gpt2 attention.theta_std=1",
    "attention.readout=gate attention.beta=2",
    "attention=hybrid attention.readout=gate attention.beta=2",
    "logger=csv logger.project=x",
    "logger=tensorboard logger.entity=x",
    "logger=csv logger.group=x",
    "logger=csv logger.offline=true",
    "data=shakespeare data.characters=10000",
    "data=synthetic data.val_fraction=0.2",
    "data=wikitext2 data.text_column=body",
    "data.tokenizer=byte data.vocab_size=300",
    "data.tokenizer=gpt2 data.tokenizer_path=x",
    "regularizer.target=0.3",
    "regularizer.weight=1",
    "regularizer.axis=heads",
    "regularizer.through=coupling",
    "regularizer=center regularizer.width=0.2",
    "regularizer=band regularizer.warmup_steps=5",
    "regularizer=band regularizer.schedule=adaptive regularizer.warmup_steps=5",
    "optimizer.schedule=constant optimizer.min_lr=1e-5",
    "optimizer.schedule=inverse_sqrt optimizer.min_lr=1e-5",
    "optimizer.schedule=linear optimizer.decay_steps=5",
    "optimizer=sgd optimizer.momentum=0 optimizer.nesterov=true",
    "callbacks.early_stopping.min_delta=0.1",
    "callbacks.collapse_guard.R_low=0.1",
    "callbacks.collapse_guard.patience=1",
    "callbacks.collapse_guard.action=stop callbacks.collapse_guard.max_rollbacks=1",
    "callbacks.collapse_guard.action=report callbacks.collapse_guard.coupling_factor=0.9",
    "callbacks.phase_monitor.every_n_steps=null callbacks.phase_monitor.band=[0.1,0.2]",
    "callbacks.sample_text.max_new_tokens=0 callbacks.sample_text.temperature=1",
    "callbacks.sample_text.max_new_tokens=0 callbacks.sample_text.prompt=x",
    "data=mqar callbacks.sample_text.prompt=x",
    "data=mqar callbacks.sample_text.max_new_tokens=7",
    "callbacks.early_stopping.accuracy=0.9",
    "model.mlp=none model.mlp_width=8",
    "generate burst_length=2",
    "generate burst_temperature=-2",
    "generate dry_base=2",
    "generate dry_breakers=x",
    "generate sampler=phase_slip sampler.angle=1 sampler.target_kl=1",
    "generate sampler=phase_slip sampler.angle=0 sampler.window=5",
    "generate sampler=phase_slip sampler.gate_R=0.9",
    "generate sampler=entropy_shock sampler.match=4",
    "generate sampler=entropy_shock sampler.noise_scale=0 sampler.target=keys",
    "interpret rows=5",
    "interpret repeat=x",
    "interpret text=x tokens=5",
    "interpret text=x cache_dir=y",
    "interpret vocabulary=true figures=false",
    "interpret vocabulary=true layers=[1]",
]


@pytest.mark.parametrize("words", IDLE)
def test_an_option_that_can_do_nothing_is_refused_by_name(words: str) -> None:
    *beside, idle = words.split()
    key = {"regularizer": "regularizer.mode"}.get(idle.split("=")[0], idle.split("=")[0])
    with pytest.raises(ConfigError, match="does nothing") as caught:
        of_command(words)
    assert str(caught.value).startswith(f"{key}=")
    if beside:
        of_command(" ".join(beside))  # sound without it


@pytest.mark.parametrize(
    "words",
    [
        "attention=softmax regularizer=none logger.project=phasegpt",
        "attention.steps=0 attention.coupling=0 attention.learn_coupling=false",
        "regularizer=band regularizer.weight=0 regularizer.width=0.2",
        "attention.coupling=0 attention.lag=0.3",
        "generate burst_length=1 dry_base=1.75",
    ],
)
def test_a_default_spelt_out_and_an_off_control_are_no_idle_options(words: str) -> None:
    of_command(words)


def test_an_adaptive_lambda_begins_where_it_can_stay() -> None:
    words = "regularizer=center regularizer.schedule=adaptive regularizer.weight="
    of_command(f"{words}1")
    with pytest.raises(
        ConfigError, match=r"regularizer\.weight=5\.0 is out of range .* at most 1,"
    ):
        of_command(f"{words}5")


def test_a_record_of_an_earlier_run_is_read_with_idle_options() -> None:
    values = composed("data=shakespeare").to_dict()
    values["data"]["characters"] = 20_000
    assert RunConfig.parse(values).data.characters == 20_000
    with pytest.raises(ConfigError, match=r"data\.characters=20000 does nothing"):
        run_config(values)


# --- numbers and types -----------------------------------------------------------------------

WRONG = {
    "optimizer.lr=1e-320": "float32",
    "optimizer.lr=1e-13": "trains nothing",
    "optimizer.lr=1e30": "<= 1000",
    "optimizer.min_lr=1e-320": "float32",
    "optimizer.eps=1e-50": "float32",
    "optimizer.weight_decay=true": "must be a number",
    "optimizer.betas=[0.9,0.95,0.99]": "two numbers",
    "optimizer.betas=[0.9,high]": "two numbers",
    "optimizer.betas=0.9": "two numbers",
    "attention.coupling=1e300": "<= 1000",
    "attention.theta_std=1e4": "<= 1000",
    "attention.coupling=1e-300": "float32",
    "attention.coupling=.nan": "finite",
    "attention.lag=1e30": "<= 1000",
    "attention.beta=-1e300": ">= -1000000",
    "attention.dt=1e-320": "float32",
    "attention.num_oscillators=99999999999999999999": "<= 65536",
    "attention.steps=10.0": "must be a whole number",
    "attention.learn_coupling=1": "must be true or false",
    "attention=hybrid attention.blend=1e300": "<= 1000000",
    "attention.layers=[true]": "a list such as [7]",
    "attention.layers=[0.5]": "a list such as [7]",
    "model.n_layer=99999999999999999999": "<= 10000",
    "model.n_embd=99999999999999999999": "<= 1048576",
    "model.vocab_size=true": "must be a whole number",
    "model.dropout=1e-320": "float32",
    "seed=99999999999999999999": "< 4294967296",
    "compile=1": "must be auto, true or false",
    "resume=1.5": "true, false, or a run folder",
    "trainer.max_steps=99999999999999999999": "<= 1000000000000",
    "trainer.val_check_interval=99999999999999999999": "64 bits",
    "trainer.gradient_clip_val=1e-60": "float32",
    "callbacks.phase_monitor.band=[a,b]": "two numbers in [0,1]",
    "callbacks.sample_text.prompt=''": "is empty",
    "name=[1]": "must be text",
    "generate sampler=phase_slip sampler.heads=[[0.5,0]]": "[[7,0],[7,3]]",
    "generate sampler=phase_slip sampler.heads=[[true,0]]": "[[7,0],[7,3]]",
    "generate sampler=phase_slip sampler.heads=[[1,2,3]]": "[[7,0],[7,3]]",
    "generate sampler=phase_slip sampler.angle=true": "must be a number",
    "generate seed=99999999999999999999": "64 bits",
    "generate max_new_tokens=99999999999999999999": "<= 100000000",
    "evaluate batch_size=99999999999999999999": "<= 1000000",
    "evaluate context=0": ">= 1",
    "interpret layers=[x]": "a list such as [7]",
    "interpret tokens=99999999999999999999": "<= 1000000000",
}


@pytest.mark.parametrize("words", WRONG)
def test_a_wrong_number_or_type_is_named_with_what_is_allowed(words: str) -> None:
    key = words.split()[-1].split("=")[0]
    with pytest.raises(ConfigError) as caught:
        of_command(words)
    message = str(caught.value)
    assert message.startswith(key)
    assert WRONG[words] in message
    assert len(message) < 400


HOSTILE = [
    *(None, True, 1, -1.5, float("nan"), float("-inf"), 10**400, 10**5000, 1e-320, 1e300),
    *("", "\ud800", "x" * 5000, "${nope}", [], [1], [[0.5, 0]], [None], {}, {"a": 1}, {1: 2}, 1j),
]


def key_paths(node: dict[str, Any], path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    for key, value in node.items():
        yield (*path, key)
        if isinstance(value, dict):
            yield from key_paths(value, (*path, key))


@pytest.mark.parametrize("words", ["attention=hybrid regularizer=band", "interpret", "evaluate",
                                   "generate sampler=phase_slip"])  # fmt: skip
def test_any_value_of_any_key_is_taken_or_refused_in_one_short_line(words: str) -> None:
    command, *groups = words.split() if words.split()[0] in COMMANDS else ["config", *words.split()]
    base = values_of(command, *groups)
    for path in key_paths(base):
        for value in HOSTILE:
            values = copy.deepcopy(base)
            functools.reduce(operator.getitem, path[:-1], values)[path[-1]] = value
            try:
                checked(command, values)
            except ConfigError as error:
                assert len(str(error)) < 400, path
                str(error).encode()


def test_sections_are_frozen_compared_by_value_and_copied_with_checks() -> None:
    run = composed("+experiment=quickstart")
    assert replace(run, seed=run.seed) == run
    assert replace(run, seed=7).hash != run.hash
    assert replace(run.optimizer, lr=1) == replace(run.optimizer, lr=1.0)
    with pytest.raises(ConfigError, match=r"optimizer\.lr=0\.0 is out of range"):
        replace(run.optimizer, lr=0)
    with pytest.raises(AttributeError):
        run.seed = 3  # type: ignore[misc]


def test_the_attention_is_parsed_once_and_typed_down_to_the_layer() -> None:
    from phasegpt.model.gpt import GPT

    run = composed("attention=hybrid_phase_sync", "attention.layers=[1]", "attention.forget=0.5")
    assert run_config(run) is run
    layer = GPT(run.gpt(), seed=0).blocks[1].attn
    assert layer.options is run.attention.options
    assert layer.partner.options is run.attention.options.partner_options
    assert layer.partner.options.forget == 0.5
    written = json.dumps(run.to_dict()["attention"])
    assert written.endswith('"name": "hybrid", "layers": [1]}')
    assert run_config(json.loads(json.dumps(run.to_dict()))) == run


# --- one source ------------------------------------------------------------------------------


def test_the_reference_and_the_comments_of_conf_are_what_the_code_says() -> None:
    for path, text in REFERENCE["files"]().items():
        assert path.read_text() == text, f"{path}: run python scripts/write_reference.py"


@pytest.mark.parametrize("file", REFERENCE["defaults"]())
def test_a_file_of_conf_has_the_defaults_of_its_section(file: str) -> None:
    written = yaml.safe_load((ROOT / "conf" / file).read_text())
    if "partner" in written:  # its other keys are those of the partner's file
        written |= yaml.safe_load((ROOT / f"conf/attention/{written['partner']}.yaml").read_text())
    for section in REFERENCE["defaults"]()[file]:
        for name in REFERENCE["options"](section):
            default = section.__dataclass_fields__[name].default
            key = REFERENCE["key_of"](section, name)
            assert key in written or key == "*", f"{file} lacks {key}"
            if default is not MISSING and (file, name) != ("config.yaml", "name"):
                expected = list(default) if isinstance(default, tuple) else default
                assert written[key] == expected, f"{file}: {name}"


def test_nested_callbacks_have_the_defaults_of_their_sections() -> None:
    written = yaml.safe_load((ROOT / "conf/callbacks/default.yaml").read_text())
    from phasegpt.training.callback_config import CallbacksConfig

    assert written == CallbacksConfig().to_dict()


@pytest.mark.parametrize(
    "section", [RunConfig, DataConfig, *OPTIMIZERS.values(), *COMMANDS.values()]
)
def test_every_option_has_a_meaning(section: type[Section]) -> None:
    for f in fields(section):
        inner = REFERENCE["_inner"](section, f) or f.name == "sampler"
        assert inner or f.metadata["meaning"], f.name


@pytest.mark.parametrize("name", names())
def test_the_docstring_of_a_layers_config_lists_every_option(name: str) -> None:
    config = layer_class(name).Config
    for option in REFERENCE["options"](config):
        assert f"\n{option}: " in config.__doc__
        assert REFERENCE["meaning"](config, option) in config.__doc__


def test_the_page_has_a_row_for_every_key_that_can_be_set() -> None:
    page = Path(REFERENCE["PAGE"]).read_text()

    def keys(node: Any, prefix: str = "") -> list[str]:
        if not isinstance(node, dict):
            return [prefix]
        return [k for name in node for k in keys(node[name], f"{prefix}.{name}".strip("."))]

    train = [k for name in names() for k in keys(plain(compose([f"attention={name}"])))]
    others = [k for name in COMMANDS for k in keys(plain(compose([], config_name=name)))]
    for key in {*train, *others} - {"sampler.name"}:
        assert f"| `{key}` |" in page, key


@pytest.mark.parametrize(("name", "acts"), [("kope", True), ("kuramoto", False)])
def test_the_rotary_base_may_be_set_where_a_layer_turns_by_it(name: str, acts: bool) -> None:
    cfg = compose([f"attention={name}", "model.rope_theta=20"])
    if acts:
        assert run_config(cfg).gpt().rope_theta == 20
    else:
        with pytest.raises(ConfigError, match=r"rope_theta=20.0 does nothing while"):
            run_config(cfg)


def test_processes_that_weigh_places_otherwise_have_another_hash() -> None:
    for data, same in (("synthetic", True), ("copying_small", False)):
        words = [f"data={data}", "model=small", "model.dropout=0"]
        one = run_config(compose([*words, "data.batch_size=16"]))
        two = run_config(compose([*words, "data.batch_size=8", "trainer.devices=2"]))
        assert (one.hash == two.hash) == same
