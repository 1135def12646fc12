"""One-shot pruning of finished models, block by block."""
