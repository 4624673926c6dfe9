"""For trust_remote_code; the model is in the package: pip install "phasegpt[hf]"."""

from phasegpt.model.huggingface import PhaseGPTConfig, PhaseGPTForCausalLM  # noqa: F401
