"""Training data: from corpora and files to shards of tokens, and to the windows of tokens that a step reads."""
