"""Names of arms for people say the mechanism and what sets an arm apart, and never two the same."""

from typing import Any

from phasegpt.analysis.names import arm_names


def named(**attention: dict[str, Any]) -> dict[str, str]:
    """The whole names of arms of these attention sections; `positions` is of the model."""
    arms = {
        arm: [
            {
                "config": {
                    "attention": {k: v for k, v in options.items() if k != "positions"},
                    "model": {"positions": options.get("positions", "learned")},
                }
            }
        ]
        for arm, options in attention.items()
    }
    return {arm: name.whole for arm, name in arm_names(arms).items()}


def test_softmax_says_its_positions_and_a_phase_arm_its_coupling():
    k1 = {"name": "kuramoto", "coupling": 1.0, "num_oscillators": 32, "layers": "all"}
    assert named(
        rope={"name": "softmax", "positions": "rope"},
        learned={"name": "softmax"},
        on=k1,
        off=k1 | {"coupling": 0},
        other={"name": "kope", "coupling": 0.05, "positions": "rope"},
    ) == {
        "rope": "softmax + RoPE",
        "learned": "softmax, learned positions",
        "on": "kuramoto, K 1",
        "off": "kuramoto, K 0",
        "other": "kope",
    }


def test_what_most_arms_have_is_not_said_but_layers_n_and_k_are():
    plain = {"name": "phase_sync", "coupling": 1.0, "steps": 10, "layers": [7], "noise_sigma": 0.0}
    assert named(
        a=plain,
        b=plain | {"layers": [6, 7], "steps": 20},
        c=plain | {"noise_sigma": 0.03, "learn_coupling": True},
        d=plain | {"coupling": 2.0, "theta_init": "gpt2"},
    ) == {
        "a": "phase_sync, layer 7, K 1",
        "b": "phase_sync, layers 6 and 7, K 1, S 20",
        "c": "phase_sync, layer 7, K 1 learned, noise 0.03",
        "d": "phase_sync, layer 7, K 2, clustered phases",
    }


def test_arms_that_are_alike_or_have_no_configuration_have_their_ids():
    same = {"name": "torus", "eta": 1.0}
    assert named(a=same, b=same) == {"a": "torus (a)", "b": "torus (b)"}
    assert arm_names({"mine": [{"seed": 1}]})["mine"].whole == "mine"
    old = arm_names({"x": [{"config": {"attention": {"name": "phase_sync", "as_coded": True}}}]})
    assert old["x"].mechanism == old["x"].whole == "as_coded"
