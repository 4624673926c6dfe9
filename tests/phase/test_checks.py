"""Functions of phases answer arguments that do not fit by one error that names them."""

import inspect
from collections.abc import Callable
from typing import Any

import pytest
import torch

from phasegpt import phase
from phasegpt.core.errors import ConfigError

THETA = torch.randn(2, 3, 2, 4, generator=torch.Generator().manual_seed(0))
WEIGHTS = torch.eye(3).expand(2, 2, 3, 3)
FUNCTIONS = [f for f in vars(phase).values() if inspect.isfunction(f)]


@pytest.mark.parametrize("function", FUNCTIONS, ids=lambda f: f.__name__)
def test_every_function_checks_every_argument(function: Callable[..., Any]) -> None:
    assert {f.__name__ for f in FUNCTIONS} == set(phase.__all__) - {"Band", "SHORTEST_PREFIX"}
    parameters = inspect.signature(function).parameters
    given = {name: "x" for name, p in parameters.items() if p.default is p.empty}
    with pytest.raises(ConfigError, match=f"^{next(iter(given))}"):
        function(**given)


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: phase.order_parameter([0.1, 0.2]), "theta is a list"),  # type: ignore[arg-type]
        (lambda: phase.order_parameter(THETA > 0), "theta is a tensor of torch.bool"),
        (lambda: phase.ppc(THETA.to(torch.complex64)), "theta is a tensor of torch.complex64"),
        (lambda: phase.order_parameter(THETA, 4), "dim=4 is no axis of a tensor of 4"),
        (lambda: phase.order_parameter(THETA, True), "dim=True must be a whole number"),
        (lambda: phase.mean_phase(THETA[:0]), r"theta has shape \(0, 3, 2, 4\)"),
        (lambda: phase.daido_harmonics(THETA, 0), "harmonics=0 is out of range"),
        (lambda: phase.null_order_parameter(-1), "n=-1.0 is out of range"),
        (lambda: phase.null_order_parameter_quantile(4, 1), "q=1.0 is out of range"),
        (lambda: phase.null_band_fraction(4, 0.8, 0.2), "high=0.2 is out of range"),
        (lambda: phase.band_statistics(THETA, 0.8, 0.2), "low=0.8 is above high=0.2"),
        (lambda: phase.effective_frequency(THETA, THETA, 0), "duration=0.0 is out of range"),
        (lambda: phase.attention_force(THETA, WEIGHTS[:1]), "attention_BHTT has shape .* B is 2"),
        (lambda: phase.attention_force(THETA[0], WEIGHTS), "theta_BTHN has shape"),
        (lambda: phase.attention_energy(THETA, WEIGHTS.to("meta")), "attention_BHTT is on meta"),
        (lambda: phase.permute_within_prefix(WEIGHTS, 3), "must be a torch.Generator"),  # type: ignore[arg-type]
        (lambda: phase.uncoupled_phases(THETA, THETA[0, 0, 0, :3], steps=1, dt=0.1),
         r"uncoupled_phases cannot take the shapes .*'omega': \[3\]"),
        (lambda: phase.metastability(THETA[0, 0], time=0, community=0), "metastability cannot"),
        (lambda: phase.locking_clusters(THETA[0, 0], 0.5), "locking_clusters cannot take"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_named(call: Callable[[], Any], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        call()


def test_a_compiled_graph_is_not_checked_and_gives_the_same() -> None:
    compiled = torch.compile(phase.order_parameter, backend="eager", fullgraph=True)
    assert torch.equal(compiled(THETA, -2), phase.order_parameter(THETA, -2))
