"""Show this machine as a run would use it: processor, rates, what other programs use, and the kernels for .config."""

import argparse
import os
import statistics
import sys
import time
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parents[1])

from lib.base import load, spinning
from lib.base.errors import run_program
from lib.config import command_line

_BEGAN = load.read()
_SIZE, _ROUNDS = 2048, 5  # of the matrix product that is timed


def _arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--again", action="store_true", help="measure the kernels again, also if they are known")


def main() -> int:
    """Measure and print; takes a few seconds."""
    schema, args = command_line.resolve(__doc__, sys.argv[1:], arguments=_arguments)
    spinning.choose(_BEGAN)
    busy = load.others(_BEGAN)
    import torch  # after the choice of spinning; it takes a second

    from gpt2 import kernels
    from gpt2.shape import ModelOptions
    from lib.engines import gpus
    from lib.machine import device
    from lib.terminal.console import say, table

    machine = device.choose(schema.bind(device.SystemOptions))
    dtypes = dict.fromkeys((torch.float32, machine.dtype))
    facts = {
        "machine": machine.use().words(),
        "processor": kernels.processor(),
        "GPUs": gpus.words(os.environ),
        "others": f"other programs use {busy:.1f} cores",
        "PyTorch": torch.__version__,
        "products": ", ".join(_rate(machine.device, dtype) for dtype in dtypes),
    }
    if machine.device.type == "cpu":
        options, shape = schema.bind(kernels.KernelOptions), schema.bind(ModelOptions)
        fixed = options.threads > 0
        chosen = kernels.measured(machine, shape, schema["BATCH_SIZE"], options.muon, fixed, args.again)
        facts["kernels"] = f"{chosen.kernels}, {chosen.threads} threads ({chosen.reason.removeprefix('auto: ')})"
        if chosen.rate:
            facts["a layer"] = f"{chosen.rate / 1e9:,.0f} GFLOP/s in {schema['MODEL_NAME']} without torch.compile"
        if options.kernels != "auto":
            facts["but"] = f"KERNELS={options.kernels} is what a run with this configuration takes"
        facts["kept in"] = kernels.place()
    say(table(facts))
    return 0


def _rate(device, dtype) -> str:
    """The rate of a matrix product, such as `float32 305 GFLOP/s`."""
    import torch

    a, b = (torch.randn(_SIZE, _SIZE, device=device).to(dtype) for _ in range(2))
    seconds = []
    for _ in range(_ROUNDS):
        began = time.perf_counter()
        float((a @ b)[0, 0])  # waits for a GPU
        seconds.append(time.perf_counter() - began)
    rate = 2 * _SIZE**3 / statistics.median(seconds) / 1e9
    return f"{str(dtype).removeprefix('torch.')} {rate:,.0f} GFLOP/s"


if __name__ == "__main__":
    run_program(main)
