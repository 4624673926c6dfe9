"""An attention mechanism for PhaseGPT; it is in my_mechanism.layer."""
