"""From text and generated tasks to batches: tokenizers, windows, and what text compares with."""
