"""Training data: from corpora and files to shards of tokens, and the windows that a step reads."""
