"""A GPT from a configuration, a checkpoint or published weights, and how it is scored."""
