"""Trains GPT2LMHeadModel with transformers' Trainer, to be compared with ours; prints steps as nanoGPT does."""

import argparse
import tempfile
import time

import numpy as np
import torch
from transformers import GPT2Config, GPT2LMHeadModel, Trainer, TrainerCallback, TrainingArguments, default_data_collator


class Windows(torch.utils.data.Dataset):
    """Windows of a bin, each at a random place, as the other trainers draw them."""

    def __init__(self, path: str, block_size: int, count: int):
        self.tokens, self.block_size = np.memmap(path, dtype="<u2", mode="r"), block_size
        self.places = np.random.default_rng(0).integers(len(self.tokens) - block_size, size=count)

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, number: int) -> dict[str, torch.Tensor]:
        place = self.places[number]
        # The model shifts the labels itself, so one token more gives as many targets as in the other trainers.
        tokens = torch.from_numpy(self.tokens[place : place + self.block_size].astype(np.int64))
        return {"input_ids": tokens, "labels": tokens}


class Printer(TrainerCallback):
    """Prints the loss and time of each step when they are logged."""

    def __init__(self):
        self.before = time.perf_counter()

    def on_log(self, args, state, control, logs=None, **kwargs):
        if "loss" not in logs:  # the summary at the end
            return
        now = time.perf_counter()
        print(f"iter {state.global_step - 1}: loss {logs['loss']:.4f}, time {(now - self.before) * 1e3:.2f}ms")
        self.before = now


def main() -> None:
    """Train."""
    parser = argparse.ArgumentParser()
    sizes = ("n_layer", "n_head", "n_embd", "block_size", "batch_size", "vocab_size", "max_steps", "compile")
    for name in sizes:
        parser.add_argument(f"--{name}", type=int, required=True)
    for name in ("bin", "device", "dtype"):
        parser.add_argument(f"--{name}", required=True)
    parser.add_argument("--learning_rate", type=float, required=True)
    given = parser.parse_args()
    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=given.vocab_size, n_positions=given.block_size, n_embd=given.n_embd, n_layer=given.n_layer,
        n_head=given.n_head, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, use_cache=False,
        bos_token_id=None, eos_token_id=None,
    )  # fmt: skip
    with tempfile.TemporaryDirectory() as output:
        arguments = TrainingArguments(
            output_dir=output, per_device_train_batch_size=given.batch_size, max_steps=given.max_steps,
            learning_rate=given.learning_rate, lr_scheduler_type="constant", logging_steps=1, save_strategy="no",
            report_to="none", disable_tqdm=True, bf16=given.dtype == "bfloat16", fp16=given.dtype == "float16",
            torch_compile=bool(given.compile), use_cpu=given.device == "cpu",
        )  # fmt: skip
        windows = Windows(given.bin, given.block_size, given.batch_size * given.max_steps)
        Trainer(
            GPT2LMHeadModel(config), arguments, train_dataset=windows, data_collator=default_data_collator,
            callbacks=[Printer()],
        ).train()  # fmt: skip


if __name__ == "__main__":
    main()
