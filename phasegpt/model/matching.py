"""`model.match_parameters`: the width of the MLPs at which two models are of one size.

Two models that differ in their attention differ in nothing but its layers and their link, so what
these have more than softmax is taken from the MLPs.

What is counted is what the model holds, whatever the strength of its coupling: a mechanism and its
coupling=0 have the same width, and with one seed the same initial weights. Their difference is
then the coupling's alone. Counted without the weights that coupling=0 leaves idle (of kope its
link, of torus its gates) the control's MLP would be wider than its partner's, and the pair would
differ in two things. Against softmax it is the mechanism that has an equal budget; its control has
fewer weights that act. For a control with a full MLP leave match_parameters out.
"""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING

import torch
from torch import nn

from phasegpt.attention import build, layer_class
from phasegpt.core.errors import ConfigError

if TYPE_CHECKING:
    from phasegpt.model.config import GPTConfig

_WITHIN = 0.01  # of the parameters in the blocks of the model with softmax, and so of all


def matched_width(config: GPTConfig) -> int:
    """The width at which a model of `config` has as many parameters as with softmax, within 1%.

    It is the one that model.mlp names less a multiple of 8, which fast matrix products want, or
    where that is not close enough the closest. ConfigError where there is none.
    """
    softmax, more = _counted(config)
    matrices = 3 if config.mlp == "swiglu" else 2
    column = config.n_layer * (matrices * config.n_embd + (matrices - 1) * config.bias)
    blocks = config.n_layer * softmax + config.named_width * column
    for step in (8, 1):
        less = step * round(more / (step * column))
        if config.named_width > less and abs(more - less * column) <= _WITHIN * blocks:
            return config.named_width - less
    raise ConfigError(
        f"model.match_parameters={config.match_parameters} finds no width of the MLP: "
        f"attention={config.attention} has {more:,} parameters more than softmax, one of width "
        f"{config.named_width} has {config.named_width * column:,}, and they change in steps of "
        f"{column:,}; make the attention smaller or model.n_embd={config.n_embd} larger, or leave "
        f"match_parameters out"
    )


def _counted(config: GPTConfig) -> tuple[int, int]:
    """Parameters of a softmax layer; what the mechanism's layers and their link have more."""
    with torch.device("meta"), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what a layer has to say it says when it is used
        softmax = _parameters(build("softmax", config, None, 0))
        more = -len(config.attention_layers) * softmax
        for layer in config.attention_layers:
            more += _parameters(build(config.attention, config, config.attention_options, layer))
        linking = layer_class(config.attention).link
        if config.attention_layers and linking is not None:
            more += _parameters(linking(config, config.attention_options))
    return softmax, more


def _parameters(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())
