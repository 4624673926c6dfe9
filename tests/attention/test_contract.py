"""The contract of an attention layer, over every YAML of conf/attention and both positions.

The checks are the package's (phasegpt.model.contract), which `python -m phasegpt.check` runs too. A
new mechanism is tested here as soon as its YAML exists; add the names of its tensors to STATE_DICT.
"""

import functools
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from phasegpt.attention import Attention, layer_class
from phasegpt.core.composition import CONF_DIR, compose, plain
from phasegpt.core.errors import ConfigError
from phasegpt.model import contract, contract_state, contract_training
from phasegpt.model.contract import NotApplicable, Subject
from phasegpt.model.contract_training import NOISE, attention_modules

STEMS = sorted(path.stem for path in (CONF_DIR / "attention").glob("*.yaml"))
#: Named controls that see the future: the contract expects them to leak, and to refuse a cache.
LEAKY = ("as_coded",)
CASES = [
    (stem, positions)
    for stem in STEMS
    for positions in ("learned", "rope")
    if stem not in LEAKY or positions == "learned"
]
pytestmark = pytest.mark.filterwarnings("ignore:.*sees the future")

LINEAR = ("weight", "bias")
SOFTMAX = [f"{m}.{p}" for m in ("c_attn", "c_proj") for p in LINEAR]
OSCILLATORS = [f"oscillators.{p}" for p in ("coupling", "omega", "phase.bias", "phase.weight")]
KURAMOTO = ["beta", *SOFTMAX, *OSCILLATORS]
PHASE_SYNC = [*(f"c_proj.{p}" for p in LINEAR), *OSCILLATORS]
VALUES = [f"{m}.{p}" for m in ("c_v", "c_proj") for p in LINEAR]
TORUS = [
    *(f"{m}.{p}" for m in ("c_gate", "c_proj") for p in LINEAR),
    *("oscillators.coupling", "phase.weight", "tau"),
]
SSA = ["bandwidth", "frequency.weight", *OSCILLATORS[::3], *VALUES]
#: Names of a layer's tensors: a checkpoint's promise. Changing one breaks every saved run.
STATE_DICT = {
    "kope": ["mixing", "oscillators.coupling", *SOFTMAX],
    "selective_rope": ["down.weight", "kernel", "up.weight", *SOFTMAX],
    "softmax": SOFTMAX,
    "kuramoto": KURAMOTO,
    "phase_sync": PHASE_SYNC,
    "as_coded": PHASE_SYNC,
    "fixed_query": ["anchors", "p", *SOFTMAX],
    "torus": TORUS,
    "fsn": [*TORUS, "kernel"],
    "token_shift": [*SOFTMAX, "next_c_proj.weight"],
    "ssa": SSA,
    "ssa_as_published": SSA,
    "hybrid": [
        *("blend", *(f"softmax.{n}" for n in SOFTMAX)),
        *(f"partner.{n}" for n in KURAMOTO),
    ],
    "hybrid_phase_sync": [
        *("blend", *(f"softmax.{n}" for n in SOFTMAX)),
        *(f"partner.{n}" for n in PHASE_SYNC),
    ],
    "lohe": [
        *("omega", *(f"c_{m}.weight" for m in ("start", "couple", "join"))),
        *(f"c_{m}.{p}" for m in ("read", "proj") for p in LINEAR),
    ],
    "uniform": VALUES,
    "no_mixing": VALUES,
}


@functools.cache
def _attention(stem: str) -> dict[str, Any]:
    return plain(compose([f"attention={stem}"]))["attention"]


def yaml_options(stem: str) -> dict[str, Any]:
    """The mechanism's own options as the YAML has them."""
    return {k: v for k, v in _attention(stem).items() if k not in ("name", "layers")}


def subject(stem: str, positions: str = "learned") -> Subject:
    """The mechanism at its YAML's defaults."""
    return Subject(_attention(stem)["name"], yaml_options(stem), positions)


NOISY = [s for s in STEMS if NOISE.keys() <= yaml_options(s).keys()]
noisy_yaml = pytest.mark.parametrize("stem", NOISY)

every_case = pytest.mark.parametrize(("stem", "positions"), CASES)
causal_case = pytest.mark.parametrize(
    ("stem", "positions"), [case for case in CASES if case[0] not in LEAKY]
)
every_yaml = pytest.mark.parametrize("stem", STEMS)


# --- shapes ----------------------------------------------------------------------------------


@every_case
def test_shapes_of_logits_and_phases(stem: str, positions: str) -> None:
    contract.shapes(subject(stem, positions))


@every_case
def test_phases_of_a_float32_model_are_float32(stem: str, positions: str) -> None:
    contract.float32_phases(subject(stem, positions))


@every_case
def test_asking_for_phases_does_not_change_the_logits(stem: str, positions: str) -> None:
    contract.same_logits_with_phases(subject(stem, positions))


# --- causality -------------------------------------------------------------------------------


@causal_case
def test_outputs_before_t_are_bit_identical_when_tokens_from_t_on_change(
    stem: str, positions: str
) -> None:
    contract.causality(subject(stem, positions))


@pytest.mark.parametrize("stem", LEAKY)
def test_a_leaky_control_sees_the_future_and_says_so(stem: str) -> None:
    contract.leak(subject(stem))
    with pytest.raises(ConfigError, match=f"attention={stem}.*cannot decode with a cache"):
        subject(stem).gpt().new_cache()
    with pytest.raises(ConfigError, match="positions=learned only"):
        subject(stem, "rope").gpt()


@causal_case
def test_a_causal_mechanism_is_not_marked_leaky(stem: str, positions: str) -> None:
    contract.not_leaky(subject(stem, positions))


@causal_case
def test_the_layer_mixes_tokens_at_all(stem: str, positions: str) -> None:
    contract.mixing(subject(stem, positions))


@pytest.mark.parametrize("stem", [stem for stem in STEMS if stem not in LEAKY])
def test_with_rotary_positions_the_layer_knows_the_order_of_tokens(stem: str) -> None:
    contract.order(subject(stem, "rope"))


@every_case
def test_the_off_control_equals_what_it_says(stem: str, positions: str) -> None:
    off = layer_class(_attention(stem)["name"]).off
    if off is None:
        assert stem in ("softmax", "token_shift", "uniform", "no_mixing"), "what others are off"
    elif off.equals == "own":
        own = "def test_without_locking_it_is_attention_by_a_gaussian_of_the_distance("
        assert stem.startswith("ssa") and own in (Path(__file__).parent / "test_ssa.py").read_text()
    if off is None or off.equals == "own" or off.positions not in (None, positions):
        with pytest.raises(NotApplicable, match="off control"):
            contract.off_control(subject(stem, positions))
        return
    contract.off_control(subject(stem, positions))


@pytest.mark.parametrize("stem", [stem for stem in STEMS if stem not in LEAKY])
def test_stated_flops_are_those_that_torch_counts(stem: str) -> None:
    contract.flops(subject(stem))


# --- decode ----------------------------------------------------------------------------------


@causal_case
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_decoding_with_the_cache_equals_the_full_forward(
    stem: str, positions: str, dtype: torch.dtype
) -> None:
    contract_state.decoding(subject(stem, positions), dtype)


@causal_case
def test_rows_of_the_cache_are_chosen_and_cut_for_beams_and_drafts(
    stem: str, positions: str
) -> None:
    contract_state.rows_of_the_cache(subject(stem, positions))


@causal_case
def test_phases_while_decoding_are_the_full_forwards_or_refused(stem: str, positions: str) -> None:
    contract_state.phases_while_decoding(subject(stem, positions))


#: Options that make a mechanism compute otherwise.
OTHER = {
    "fixed_query": [{"free_anchors": True}, {"learn_p": True}],
    "fsn": [{"delay": False}, {"step": False}, {"harmonics": 1}],
    "kope": [{"mix": False}, {"rotate_values": False}],
    "kuramoto": [{"readout": "gate"}],
    "lohe": [{"group": 2}],
    "phase_sync": [{"forget": 0.9}],
    "selective_rope": [{"drift": False}],
    "ssa": [{"locking": False}],
    "token_shift": [{"tied": True}],
    "torus": [{"readout": "mean"}],
}


@pytest.mark.filterwarnings("ignore:oscillators are integrated in plain PyTorch")
@pytest.mark.parametrize(("stem", "options"), [(s, o) for s in OTHER for o in OTHER[s]])
def test_with_other_options_it_is_causal_and_decodes(stem: str, options: dict[str, Any]) -> None:
    found = subject(stem, "rope")
    found = replace(found, options={**found.options, **options})
    contract.causality(found)
    contract_state.decoding(found, torch.float64)
    contract_state.rows_of_the_cache(found)
    contract_state.phases_while_decoding(found)


# --- phases ----------------------------------------------------------------------------------

PHASED = [case for case in CASES if layer_class(_attention(case[0])["name"]).has_phases]
phased_case = pytest.mark.parametrize(("stem", "positions"), PHASED)


@pytest.mark.parametrize(("stem", "positions"), [*PHASED, ("lohe", "rope")])
def test_R_of_forward_is_the_layers_order_parameter(stem: str, positions: str) -> None:
    found = subject(stem, positions)
    if stem == "lohe":  # whose oscillators have phases where they are pairs
        found = replace(found, options={**found.options, "group": 2})
    contract_state.order_parameter(found)
    with torch.no_grad():
        theta, R = contract.roughen(found.layer())(torch.randn(2, 40, 16), return_phase=True).phase
    z = torch.polar(torch.ones_like(theta), theta)
    prefix = z.cumsum(1) / torch.arange(1, 41).view(-1, 1, 1)
    of_all = prefix if found.layer().coupled_axis == "prefix" else z.mean(-1)
    torch.testing.assert_close(of_all.abs(), R, atol=1e-5, rtol=0)


@pytest.mark.parametrize(("stem", "positions"), [c for c in PHASED if c[0] not in LEAKY])
def test_the_trajectory_leads_to_the_phases_and_R_of_forward(stem: str, positions: str) -> None:
    contract_state.trajectory(subject(stem, positions))


# --- gradients -------------------------------------------------------------------------------


@every_case
def test_gradients_of_every_parameter_and_the_input_are_exact(stem: str, positions: str) -> None:
    contract_training.gradients(subject(stem, positions))


@every_case
def test_every_parameter_of_the_mechanism_is_alive_at_init_on_real_text(
    stem: str, positions: str, text_ids: Callable
) -> None:
    contract_training.alive(subject(stem, positions), text_ids(4, 129))


@causal_case
def test_a_fresh_model_hears_its_prefix(stem: str, positions: str) -> None:
    if not layer_class(_attention(stem)["name"]).mixes or stem == "ssa_as_published":
        with pytest.raises(NotApplicable, match="no token is heard"):
            contract_training.heard(subject(stem, positions))
        return
    contract_training.heard(subject(stem, positions))


@every_yaml
def test_every_parameter_is_alive_at_init_at_the_width_of_gpt2(
    stem: str, text_ids: Callable
) -> None:
    contract_training.alive(subject(stem), text_ids(1, 129), width=768)


@every_yaml
def test_every_oscillator_parameter_is_named_in_lr_factors(stem: str) -> None:
    # Those names are what keeps weight decay away from phases, frequencies and couplings.
    for layer in attention_modules(subject(stem).gpt().blocks[1]).values():
        children = [n for n, m in layer.named_children() if isinstance(m, Attention)]
        for name, _ in layer.named_parameters():
            # c_attn, c_proj and their like are GPT-2's plain matrices.
            if not name.startswith(("c_", "next_c_")) and name.split(".")[0] not in children:
                assert name in layer.lr_factors


# --- numerics --------------------------------------------------------------------------------


@every_case
def test_bf16_autocast_is_finite_over_1024_tokens(stem: str, positions: str) -> None:
    contract_training.autocast(subject(stem, positions))


@phased_case
def test_phases_keep_float32_precision_under_bf16_autocast(stem: str, positions: str) -> None:
    contract_training.precise_phases(subject(stem, positions))


# A second is spent on each: rotary positions have all that learned ones have.
@pytest.mark.parametrize(
    ("stem", "positions"),
    [
        pytest.param(
            *case, marks=[pytest.mark.slow] * (case[1] == "learned" and case[0] not in LEAKY)
        )
        for case in CASES
    ],
)
def test_one_compiled_graph_equals_eager(stem: str, positions: str) -> None:
    contract_training.compiled(subject(stem, positions))


@every_yaml
def test_activation_checkpointing_gives_the_same_loss_and_gradients(stem: str) -> None:
    contract_training.activation_checkpointing(subject(stem))


@every_yaml
def test_copies_and_state_dicts_give_the_same_logits(stem: str) -> None:
    contract_state.copies(subject(stem))


# --- training noise --------------------------------------------------------------------------


@noisy_yaml
def test_noise_of_a_sample_does_not_depend_on_its_batch(stem: str) -> None:
    contract_training.noise_of_a_sample(subject(stem))


@noisy_yaml
def test_noise_changes_with_seed_step_sample_and_layer(stem: str) -> None:
    contract_training.noise_of_its_key(subject(stem))


@noisy_yaml
def test_noise_neither_reads_nor_moves_the_global_generator(stem: str) -> None:
    contract_training.noise_of_its_own_stream(subject(stem))


@noisy_yaml
def test_noise_has_the_size_that_was_asked_for(stem: str) -> None:
    contract_training.noise_size(subject(stem))


@every_yaml
def test_no_noise_is_an_empty_dict_and_leaves_the_outputs_bit_identical(stem: str) -> None:
    contract_training.no_noise(subject(stem))


@noisy_yaml
def test_noise_alone_or_jitter_alone_changes_the_outputs(stem: str) -> None:
    contract_training.noise_acts(subject(stem))


# --- names and defaults ----------------------------------------------------------------------


@every_yaml
def test_options_come_back_from_json_and_unknown_ones_are_refused(stem: str) -> None:
    contract_state.options_round_trip(subject(stem))


@every_yaml
@pytest.mark.filterwarnings("ignore:oscillators are integrated in plain PyTorch")
def test_every_option_changes_something_or_is_refused(stem: str) -> None:
    contract_state.options_act(subject(stem))


LEARNED = {
    "fixed_query": {"learn_p": True},
    "kope": {"learn_coupling": True},
    "phase_sync": {"forget": 0.9},
}


@every_yaml
@pytest.mark.filterwarnings("ignore:oscillators are integrated in plain PyTorch")
def test_every_option_that_is_a_start_alone_is_named_in_starts(stem: str) -> None:
    contract_state.starts(subject(stem))
    if stem in LEARNED:
        found = subject(stem)
        contract_state.starts(replace(found, options={**found.options, **LEARNED[stem]}))


@every_yaml
def test_parameters_that_belong_to_positions_are_said_to(stem: str) -> None:
    contract_state.per_position(subject(stem))


FORGETFUL = [(stem, {"forget": 0.9}) for stem in STEMS if "forget" in yaml_options(stem)]


@pytest.mark.parametrize(("stem", "more"), [*((stem, {}) for stem in STEMS), *FORGETFUL])
def test_a_model_can_be_built_without_memory(stem: str, more: dict[str, Any]) -> None:
    """As transformers and the check of a sweep build it."""
    with torch.device("meta"):
        model = subject(stem).gpt(**more)
    assert all(p.is_meta for p in model.parameters())


@every_yaml
def test_names_of_saved_tensors_are_the_promised_ones(stem: str) -> None:
    found = sorted(subject(stem).gpt().blocks[1].attn.state_dict())
    assert stem in STATE_DICT, f"add to STATE_DICT: {stem!r}: {found}"
    assert found == sorted(STATE_DICT[stem])


@every_yaml
def test_a_fixed_parameter_is_saved_under_the_same_name_as_a_learned_one(stem: str) -> None:
    switches = [k for k in yaml_options(stem) if k.startswith("learn_")]
    whole, model = (subject(stem).gpt(**dict.fromkeys(switches, on)) for on in (True, False))
    assert model.state_dict().keys() == whole.state_dict().keys()
    fewer = len(list(whole.parameters())) - len(list(model.parameters()))
    assert fewer == len(switches)


@every_yaml
def test_the_yaml_and_the_config_have_one_set_of_defaults(stem: str) -> None:
    cls, written = layer_class(_attention(stem)["name"]).Config, yaml_options(stem)
    assert written == cls(**{k: v for k, v in written.items() if k == "partner"}).to_dict()


def test_every_mechanism_has_a_yaml() -> None:
    from phasegpt.attention import names

    assert {_attention(stem)["name"] for stem in STEMS} == set(names())
