"""Forks the programs that the benchmark measures, from a process with torch imported, before that has used threads."""

import functools
import multiprocessing
import os
import tempfile
import time
from multiprocessing.connection import Connection
from pathlib import Path

import torch

from lib.base.errors import UserError
from lib.config.command_line import unconfigured
from tests import forking
from tests.training import ROOT

SMALL = {  # in place of the model and the data of a preset
    "MODEL_NAME": "custom", "N_LAYER": 1, "N_HEAD": 2, "N_EMBD": 32, "BLOCK_SIZE": 16, "BATCH_SIZE": 2,
    "GRADIENT_ACCUMULATION": 1, "EVAL_SAMPLES": 4, "DATASET": "files", "DATASET_SOURCE": ROOT / "README.md",
    "TOKENIZER": "bytes",
}  # fmt: skip


def programs() -> None:
    """A `prepare` for bench/run.py: `process.ours` asks for a fork in place of a new process. All use one thread."""
    from bench import process

    torch.set_num_threads(1)
    asks, serves = multiprocessing.Pipe()
    if not os.fork():
        asks.close()
        _serve(serves)
    serves.close()
    process.ours = functools.partial(_ours, asks)


def _serve(requests: Connection) -> None:
    """Run one program after the other until the benchmark has ended."""
    while True:
        try:
            words, folder, environment, output = requests.recv()
        except EOFError:
            os._exit(0)
        pid = os.fork()
        if not pid:
            file = os.open(output, os.O_WRONLY)
            forking.become(words, folder, environment, (-1, file, file), True, -1)
        _, status, used = os.wait4(pid, 0)
        requests.send((os.waitstatus_to_exitcode(status), used.ru_maxrss * 1024))


def _ours(requests: Connection, program: str, options: dict, folder: Path, device: object, *flags: str, **variables):
    """What `process.ours` does."""
    from bench import process

    options = {**options, **(SMALL if "--config" in flags else {})}
    words = [str(ROOT / "gpt2" / program), *flags, *(f"{name}={value}" for name, value in options.items())]
    with tempfile.NamedTemporaryFile("r") as output:
        began = time.time()
        requests.send((words, folder, unconfigured(os.environ) | variables, output.name))
        code, peak = requests.recv()
        seconds, printed = time.time() - began, output.read()
    if code:
        raise UserError(printed)
    return process.Finished([(seconds, line) for line in printed.splitlines()], began, seconds, peak)
