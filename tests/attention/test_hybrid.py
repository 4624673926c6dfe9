"""`hybrid`: a blend of 0 is softmax, a blend of 1 is the partner."""

from collections.abc import Callable

import pytest
import torch

from phasegpt.attention import layer_class
from phasegpt.core.composition import compose, plain
from phasegpt.core.errors import ConfigError
from phasegpt.model.config import AttentionSection
from phasegpt.model.gpt import GPT

PARTNERS = ["kuramoto", "phase_sync"]


def copied(source: GPT, part: str, target: GPT) -> GPT:
    """`target` with the weights of `source`, whose attention is the hybrid's `part`."""
    weights = {
        name.replace(f".attn.{part}.", ".attn."): value
        for name, value in source.state_dict().items()
    }
    own = target.state_dict()
    target.load_state_dict({name: weights[name] for name in own})
    return target


@pytest.mark.parametrize("partner", ["kuramoto", "phase_sync", "as_coded"])
def test_the_command_line_takes_every_partner_with_its_own_options(partner: str) -> None:
    words = ["attention.blend=0.25", "attention.coupling=0.5", f"attention.partner={partner}"]
    attention = plain(compose([*words[:2], "attention=hybrid", words[2]]))["attention"]
    found = AttentionSection.parse(attention)
    assert (found.name, found.options.partner, found.options.blend) == ("hybrid", partner, 0.25)
    assert type(found.options.partner_options) is layer_class(partner).Config
    assert found.options.partner_options.coupling == 0.5
    alone = plain(compose([f"attention={partner}"]))["attention"]
    assert attention.keys() == alone.keys() | {"partner", "blend", "learn_blend"}


def test_an_option_of_another_partner_is_refused_with_the_way() -> None:
    with pytest.raises(ConfigError, match="beta is no option of the partner phase_sync; name both"):
        AttentionSection.parse({"name": "hybrid", "partner": "phase_sync", "beta": 4.0})


@pytest.mark.parametrize("positions", ["learned", "rope"])
@pytest.mark.parametrize("partner", PARTNERS)
def test_blend_zero_is_softmax_bit_for_bit(
    partner: str, positions: str, make_model: Callable, text_ids: Callable, roughen: Callable
) -> None:
    hybrid = roughen(make_model("hybrid", partner=partner, blend=0.0, positions=positions))
    with torch.no_grad():
        for block in hybrid.blocks:
            block.attn.blend.zero_()
    softmax = copied(hybrid, "softmax", make_model("softmax", positions=positions))
    assert torch.equal(hybrid(text_ids(2, 30)).logits, softmax(text_ids(2, 30)).logits)


@pytest.mark.parametrize("positions", ["learned", "rope"])
@pytest.mark.parametrize("partner", PARTNERS)
def test_blend_one_is_the_partner(
    partner: str, positions: str, make_model: Callable, text_ids: Callable, roughen: Callable
) -> None:
    words = {"positions": positions, "dtype": torch.float64}
    hybrid = make_model("hybrid", partner=partner, blend=1.0, learn_blend=False, **words)
    roughen(hybrid)
    alone = copied(hybrid, "partner", make_model(partner, **words))
    a, b = (model(text_ids(2, 30), return_phase=True) for model in (hybrid, alone))
    torch.testing.assert_close(a.logits, b.logits, rtol=0, atol=1e-12)
    for layer in (0, 1):
        torch.testing.assert_close(a.phase[layer], b.phase[layer], rtol=0, atol=1e-12)


@pytest.mark.parametrize("partner", PARTNERS)
def test_between_them_the_layer_is_the_weighted_mean(partner: str, make_model: Callable) -> None:
    layer = make_model("hybrid", partner=partner, blend=0.3, dtype=torch.float64).blocks[0].attn
    x = torch.randn(2, 9, 16, dtype=torch.float64)
    assert layer.blend.item() == pytest.approx(0.3)
    expected = (1 - layer.blend) * layer.softmax(x).y + layer.blend * layer.partner(x).y
    torch.testing.assert_close(layer(x).y, expected, rtol=0, atol=1e-14)


def test_the_blend_is_learned_or_fixed(make_model: Callable, text_ids: Callable) -> None:
    learned = make_model("hybrid", layers=(1,))
    learned(text_ids(2, 20)).logits.square().sum().backward()
    assert learned.blocks[1].attn.blend.grad.abs() > 0
    fixed = make_model("hybrid", layers=(1,), learn_blend=False)
    names = [n for n, _ in learned.named_parameters()]
    assert [n for n in names if n not in dict(fixed.named_parameters())] == [
        "transformer.h.1.attn.blend"
    ]


def test_options_beside_the_blend_belong_to_the_partner(make_model: Callable) -> None:
    layer = make_model("hybrid", num_oscillators=7, coupling=2.5).blocks[0].attn
    assert layer.partner.options.num_oscillators == 7
    assert layer.partner.oscillators.coupling.tolist() == [2.5, 2.5]
    with pytest.raises(ConfigError, match=r"attention.couplng is unknown; did you mean .*coupling"):
        make_model("hybrid", couplng=1.0)
    with pytest.raises(ConfigError, match=r"partner='phase_snyc' is not allowed.*phase_sync"):
        make_model("hybrid", partner="phase_snyc")


def test_a_misspelt_blend_is_answered_with_blend(make_model: Callable) -> None:
    with pytest.raises(ConfigError, match=r"attention.blned is unknown; did you mean .*blend\?"):
        make_model("hybrid", blned=0.1)


def test_a_leaky_partner_makes_the_hybrid_leaky(make_model: Callable) -> None:
    with pytest.warns(UserWarning, match="sees the future"):
        model = make_model("hybrid", partner="as_coded", layers=(1,))
    assert model.leaky
    with pytest.raises(ConfigError, match="cannot decode"):
        model.new_cache()
