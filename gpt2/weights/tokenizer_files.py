"""The files from which transformers' AutoTokenizer makes our tokenizers: the same ids for the same text."""

import json
from pathlib import Path
from typing import Any

from gpt2.data.tokenizer import BYTE_LETTERS, END_OF_TEXT, read_table
from lib.base import files


def write(folder: Path, name: str, block_size: int) -> None:
    """Write tokenizer.json and tokenizer_config.json of the tokenizer `name` (gpt2 or bytes); raises UserError."""
    end = END_OF_TEXT if name == "gpt2" else BYTE_LETTERS[0]
    files.write_json(folder / "tokenizer.json", _tokenizer(name))
    files.write_json(
        folder / "tokenizer_config.json",
        {
            # This class reads tokenizer.json as it is. GPT2Tokenizer would add <|endoftext|> to the 256 bytes.
            "tokenizer_class": "PreTrainedTokenizerFast",
            "bos_token": end,
            "eos_token": end,
            # In a text, the end-of-text token is text like any other, as in training.
            "split_special_tokens": True,
            "add_prefix_space": False,
            "clean_up_tokenization_spaces": False,
            "model_max_length": block_size,
        },
    )


def _tokenizer(name: str) -> dict[str, Any]:
    """The content of tokenizer.json: byte-level BPE. The tokenizer of bytes has no merges.

    The end-of-text token is no added token here: the package tokenizers would find it in texts.
    """
    if name == "gpt2":
        vocabulary = json.loads(read_table("encoder.json"))
        merges = read_table("vocab.bpe").decode().split("\n")[1:-1]  # the first line is the version
    else:
        vocabulary, merges = {letter: byte for byte, letter in enumerate(BYTE_LETTERS)}, []
    level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": name == "gpt2"}
    model = {
        "type": "BPE",
        "dropout": None,
        "unk_token": None,
        "continuing_subword_prefix": "",
        "end_of_word_suffix": "",
        "fuse_unk": False,
        "byte_fallback": False,
        "vocab": vocabulary,
        "merges": merges,
    }
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [],
        "normalizer": None,
        "pre_tokenizer": level,
        "post_processor": level,
        "decoder": level,
        "model": model,
    }
