"""From text to batches: corpora, downloads, tokenizers, windows, and what text is compared with."""
