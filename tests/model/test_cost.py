"""What a model costs: parameters, which the MLPs' width can match to softmax's, FLOPs, memory."""

import functools
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import TWO_STEPS, composed
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

import phasegpt
from phasegpt.attention import Flops
from phasegpt.core.composition import CONF_DIR, compose, plain
from phasegpt.core.errors import ConfigError
from phasegpt.model import loading, matching
from phasegpt.model.config import AttentionSection, GPTConfig, ModelSection
from phasegpt.model.gpt import GPT
from phasegpt.model.growth import check_shape
from phasegpt.training.run import fit
from phasegpt.training.size import decode_bytes

STEMS = sorted(path.stem for path in (CONF_DIR / "attention").glob("*.yaml"))
pytestmark = pytest.mark.filterwarnings("ignore:.*sees the future")
every_yaml = pytest.mark.parametrize("stem", STEMS)

SIZES: dict[str, Any] = {"n_layer": 3, "n_head": 4, "n_embd": 96, "block_size": 40}
#: What changes how many parameters a model has, beside its attention.
BODIES: dict[str, dict[str, Any]] = {
    "gelu": {},
    "swiglu": {"mlp": "swiglu", "tie_embeddings": False, "norm": "rmsnorm", "bias": False},
    "shared keys": {"layers": (0, 2), "n_kv_head": 2},
    "rope": {"positions": "rope"},
}


@functools.cache
def _attention(stem: str) -> dict[str, Any]:
    return plain(compose([f"attention={stem}"]))["attention"]


def shape(stem: str, *, layers: Any = "all", **sizes: Any) -> GPTConfig:
    attention = AttentionSection.parse({**_attention(stem), "layers": layers})
    return GPTConfig.from_sections(ModelSection(**{**SIZES, **sizes}), attention, 65)


@functools.cache
def parameters(config: GPTConfig) -> int:
    with torch.device("meta"):
        return GPT(config, seed=0).num_parameters(non_embedding=False)


def of_softmax(config: GPTConfig) -> int:
    """Parameters of the same model with softmax in all layers, counted in the model itself."""
    plain: dict[str, Any] = {"attention": "softmax", "attention_options": {}}
    plain |= {"attention_layers": (), "mlp_width": None, "match_parameters": None}
    return parameters(replace(config, **plain))


# --- parameters ------------------------------------------------------------------------------


@every_yaml
@pytest.mark.parametrize("body", BODIES)
def test_matched_models_have_softmaxs_parameters_within_1_percent(stem: str, body: str) -> None:
    try:
        config = shape(stem, **BODIES[body], match_parameters="softmax")
        found, wanted = parameters(config), of_softmax(config)
    except ConfigError as error:  # it knows no rope, or no heads of keys
        assert body in ("rope", "shared keys") and "finds no width" not in str(error)
        return
    assert abs(found - wanted) <= 0.01 * wanted
    # Of the widths that are a multiple of 8 off the named one none is closer.
    assert (config.inner_width - config.named_width) % 8 == 0
    way = 8 if found < wanted else -8
    other = parameters(replace(config, mlp_width=config.inner_width + way))
    assert abs(found - wanted) <= abs(other - wanted)


@pytest.mark.parametrize("stem", ["kope", "torus", "phase_sync", "kuramoto"])
def test_a_mechanism_and_its_control_have_one_width_and_first_weights(stem: str) -> None:
    def model(coupling: float) -> GPT:
        attention = {**_attention(stem), "coupling": coupling, "learn_coupling": False}
        section = AttentionSection.parse({**attention, "layers": "all"})
        sizes = {**SIZES, "n_layer": 6, "match_parameters": "softmax"}
        return GPT(GPTConfig.from_sections(ModelSection(**sizes), section, 65), seed=1)

    on, off = model(0.5), model(0.0)
    wanted = of_softmax(on.config)
    for found in (on, off):
        assert abs(found.num_parameters(non_embedding=False) - wanted) <= 0.01 * wanted
    assert on.config.inner_width == off.config.inner_width
    weights = dict(off.named_parameters())
    assert all(torch.equal(p, weights[name]) for name, p in on.named_parameters())


def test_softmax_itself_keeps_its_width() -> None:
    for sizes in ({}, {"mlp": "swiglu"}, {"n_embd": 52}):
        assert shape("softmax", match_parameters="softmax", **sizes).inner_width == (
            shape("softmax", **sizes).inner_width
        )


def test_a_small_model_is_matched_to_the_nearest_width() -> None:
    config = GPTConfig(n_layer=1, n_head=1, n_embd=12, vocab_size=9, attention_layers=(0,),
                       attention="kuramoto", attention_options={"num_oscillators": 4},
                       match_parameters="softmax")  # fmt: skip
    # phase 48 + 4, omega 4, coupling, beta: 58 more, and an MLP one wider has 25 more.
    assert config.inner_width == 48 - 2


def test_where_no_width_fits_the_error_says_by_how_much() -> None:
    words = ["attention=kuramoto", "model=nano", "attention.num_oscillators=512"]
    with pytest.raises(ConfigError, match=r"finds no width.* has 1,\d{3},\d{3} parameters more"):
        composed(*words, "model.match_parameters=softmax")
    with pytest.raises(ConfigError, match=r"finds no width.* change in steps of 9;"):
        GPTConfig(n_layer=1, n_head=1, n_embd=4, vocab_size=9, attention="kuramoto",
                  attention_layers=(0,), match_parameters="softmax",
                  attention_options={"num_oscillators": 2})  # fmt: skip


def test_a_width_of_ones_own_beside_it_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"mlp_width=64 does nothing while .*match_param"):
        composed("model.match_parameters=softmax", "model.mlp_width=64")


def test_matching_is_hashed_and_not_matching_is_not() -> None:
    assert composed("model.match_parameters=null").hash == composed().hash
    assert composed("model.match_parameters=softmax").hash != composed().hash


def test_counting_draws_no_random_number() -> None:
    before = torch.get_rng_state()
    shape("hybrid", match_parameters="softmax")
    assert torch.equal(torch.get_rng_state(), before)


def test_widths_that_are_equal_are_one_shape_however_they_were_given() -> None:
    config = shape("kuramoto", match_parameters="softmax")
    given = replace(config, match_parameters=None)
    check_shape("run", config, given)
    check_shape("run", shape("softmax"), shape("softmax", mlp_width=4 * SIZES["n_embd"]))
    with pytest.raises(ConfigError, match=rf"set model.mlp_width={config.mlp_width}"):
        check_shape("run", config, replace(given, mlp_width=8))


@pytest.fixture(scope="module")
def matched_run(tmp_path_factory: pytest.TempPathFactory, text: list[str]) -> tuple[Path, Any]:
    """A run of TWO_STEPS that was matched, and its configuration."""
    sizes = [w for w in TWO_STEPS if not w.startswith(("model.n_embd", "attention.layers"))]
    words = [*sizes, *text, "attention=kuramoto", "model.n_embd=24", "attention.layers=[1]"]
    config = compose([*words, "model.match_parameters=softmax", "model.vocab_size=64"])
    folder = tmp_path_factory.mktemp("cost") / "run"
    fit(config, folder)
    return folder, config


def test_build_run_checkpoint_and_export_agree_on_the_width(
    matched_run: tuple[Path, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, config = matched_run
    built, record = phasegpt.build(config), json.loads((run / "run.json").read_text())
    width = built.config.mlp_width
    assert width is not None and width < built.config.named_width
    assert record["mlp_width"] == width
    counts = record["parameters"]
    assert counts["all"] == built.num_parameters(non_embedding=False)
    assert counts["softmax"] == of_softmax(built.config)
    assert abs(counts["all"] - counts["softmax"]) <= 0.01 * counts["softmax"]
    said = record["config"]["model"]
    assert (said["match_parameters"], said["mlp_width"]) == ("softmax", None)
    # What was saved is read as it is, whatever the mechanism has become.
    monkeypatch.setattr(matching, "matched_width", lambda config: 1 / 0)
    for model in (
        phasegpt.load(run),
        phasegpt.load(loading.export(run, tmp_path / "export")),
    ):
        assert model.config.mlp_width == width
        assert model.config.match_parameters == "softmax"


def test_a_run_says_the_width_and_both_counts(
    matched_run: tuple[Path, Any], tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    fit(matched_run[1], tmp_path)
    record = json.loads((tmp_path / "run.json").read_text())
    head = capsys.readouterr().err
    assert f"parameters matched: MLPs {record['mlp_width']} wide" in head
    assert f"{record['parameters']['softmax']:,} of softmax" in head
    assert f"{record['parameters']['all']:,} parameters" in head


# --- FLOPs -----------------------------------------------------------------------------------


def counted(model: GPT, time: int, *, backward: bool) -> float:
    """FLOPs of one of `time` tokens, counted where every product runs."""
    idx = torch.arange(2 * time).view(2, time) % 65
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as count:
        logits = model(idx).logits
        if backward:
            logits.sum().backward()
    return count.get_total_flops() / (2 * time)


@every_yaml
@pytest.mark.parametrize("body", ["gelu", "swiglu"])
def test_flops_of_a_model_are_those_that_torch_counts(stem: str, body: str) -> None:
    model = GPT(shape(stem, dropout=0.0, **BODIES[body]), seed=0)
    for backward in (False, True):
        stated = model.flops(40, backward=backward)
        assert stated.products == pytest.approx(counted(model, 40, backward=backward), rel=0.02)
        assert stated.causal_products <= stated.products


def test_flops_of_softmax_are_12_D_squared_and_the_head() -> None:
    D, L, T = SIZES["n_embd"], SIZES["n_layer"], 30
    flops = GPT(shape("softmax"), seed=0).flops(T)
    weights = 2 * (12 * D * D * L + D * 65)
    assert flops == Flops(weights, 4 * D * T * L, 2 * D * (T + 1) * L, 0.0)
    assert (flops.products, flops.causal_products) == (
        weights + 4 * D * T * L,
        weights + 2 * D * (T + 1) * L,
    )


def test_run_json_has_the_flops_of_training_a_token(matched_run: tuple[Path, Any]) -> None:
    record = json.loads((matched_run[0] / "run.json").read_text())
    model = phasegpt.load(matched_run[0])
    flops = model.flops(model.config.block_size)
    assert record["flops_per_token"] == {
        "full": round(3 * flops.products),
        "causal": round(3 * flops.causal_products),
        "elementwise": round(3 * flops.elementwise),
    }


# --- What decoding remembers -------------------------------------------------------------------


@every_yaml
def test_decode_bytes_are_what_a_cache_holds_after_any_length(stem: str) -> None:
    model = GPT(shape(stem), seed=0)
    told = decode_bytes(model)
    assert model.training
    if model.leaky:
        assert told is None
        return
    assert told is not None
    cache = model.eval().new_cache()
    idx = torch.arange(23).view(1, 23) % 65
    with torch.no_grad():
        for tokens in (idx[:, :9], *idx[:, 9:].split(1, dim=1)):
            model(tokens, cache=cache)
    held = [x for layer in cache.layers for part in layer.parts() for x in (part.keys, part.values)]
    assert cache.nbytes == told["constant"] + 23 * told["token"]
    assert cache.nbytes >= sum(x.nbytes for x in held if x is not None)


def test_a_model_of_one_token_has_no_decode_bytes() -> None:
    assert decode_bytes(GPT(shape("softmax", block_size=1), seed=0)) is None


@pytest.mark.parametrize(
    ("stem", "token", "constant"),
    [
        ("softmax", 2, 0),
        ("token_shift", 2, 0),
        ("torus", 1, 0),
        ("uniform", 0, 1),
        ("no_mixing", 0, 0),
    ],
)
def test_decode_bytes_are_those_of_the_mechanisms_table(
    stem: str, token: int, constant: int
) -> None:
    a_layer = 4 * SIZES["n_embd"] * SIZES["n_layer"]
    told = {"token": token * a_layer, "constant": constant * a_layer}
    assert decode_bytes(GPT(shape(stem), seed=0)) == told


def test_run_json_has_the_bytes_that_decoding_remembers(matched_run: tuple[Path, Any]) -> None:
    record = json.loads((matched_run[0] / "run.json").read_text())
    assert record["decode_bytes"] == decode_bytes(phasegpt.load(matched_run[0]))
