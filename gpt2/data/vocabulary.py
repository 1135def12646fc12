"""How many ids each tokenizer has. Needs no other package, so that a configuration is checked without them."""

SIZES = {"gpt2": 50257, "bytes": 256}  # by the value of TOKENIZER
