"""Runs nanoGPT, from a checkout of https://github.com/karpathy/nanoGPT.

Its files are copied to a scratch folder and run there. On a CPU, nanoGPT computes in float32 for every --dtype. For
bfloat16 we put torch.autocast around the program. Autocast's cache is off, because nothing would ever clear it.
"""

import re
import shutil
import tempfile
from pathlib import Path

import torch

from bench import documents, peer, process, whole
from bench.peer import Way
from bench.whole import Outcome, Shape

FILES = ("train.py", "model.py", "configurator.py", "data/shakespeare_char/prepare.py")
_AUTOCAST = (
    "import runpy, torch; torch.autocast('cpu', torch.bfloat16, cache_enabled=False).__enter__(); "
    "runpy.run_path('train.py', run_name='__main__')"
)
_META = b"(dVvocab_size\nI256\ns."  # {"vocab_size": 256} as a pickle; without it nanoGPT takes a vocabulary of 50,304
_NEVER = 1_000_000_000
_SETTINGS = {  # the same as in our runs, but nanoGPT always evaluates at the start
    "dropout": 0.0, "gradient_accumulation_steps": 1,
    "learning_rate": whole.LEARNING_RATE, "warmup_iters": 0, "decay_lr": False,
    "eval_iters": 1, "eval_interval": _NEVER, "log_interval": 1, "always_save_checkpoint": False,
}  # fmt: skip
_SHAKESPEARE = 1_115_394  # characters
_NOT_SHAKESPEARES = re.compile(r"[^\n !$&',.3:;?A-Za-z-]")  # the text has only these 65


class NanoGPT:
    """nanoGPT; as shipped, its model has no bias, and small models have the vocabulary of its Shakespeare."""

    name, eager = "nanoGPT", True

    def __init__(self, ref: Path):
        self.ref = ref

    def shipped(self, device: torch.device, dtype: str) -> Way:
        """By its README it neither compiles nor uses 16 bits on a CPU."""
        cuda = device.type == "cuda"
        return Way(dtype if cuda else "float32", compiled=cuda, shipped=True)

    def train(self, way: Way, shape: Shape, folder: Path, device: torch.device, variables: dict[str, str]) -> Outcome:
        """See Peer."""
        data = self._data(way, shape, folder)
        settings = _SETTINGS | shape.sizes | ({} if way.shipped else {"bias": True}) | {
            "dataset": data.name, "max_iters": shape.warmup + shape.steps - 1, "device": device.type,
            "dtype": way.dtype, "compile": way.compiled,
        }  # fmt: skip
        with tempfile.TemporaryDirectory(dir=folder) as made:
            here = Path(made)
            for name in FILES[:3]:
                shutil.copyfile(self.ref / name, here / name)
            (here / "data").symlink_to(data.parent)
            start = ["-c", _AUTOCAST] if device.type == "cpu" and way.dtype == "bfloat16" else ["train.py"]
            words = [*start, *(f"--{name}={value}" for name, value in settings.items())]
            done = process.run(words, here, device, **variables)
        return peer.outcome(done, shape, f"--ref {self.ref}")

    def _data(self, way: Way, shape: Shape, folder: Path) -> Path:
        """The folder with its bins, made at the first call: our tokens, or characters that its own program encoded."""
        characters = way.shipped and shape.tokenizer == "bytes"
        data = folder / "nanogpt" / (Path(FILES[3]).parent.name if characters else shape.tokenizer)
        if data.is_dir():
            return data
        if not characters:
            shutil.copytree(folder / shape.tokenizer, data)
            if shape.tokenizer == "bytes":
                (data / "meta.pkl").write_bytes(_META)
            return data
        data.mkdir(parents=True)
        shutil.copyfile(self.ref / FILES[3], data / "prepare.py")
        # It downloads Shakespeare only where there is no text yet.
        (data / "input.txt").write_text(_NOT_SHAKESPEARES.sub("", "".join(documents()))[:_SHAKESPEARE])
        process.run(["prepare.py"], data, torch.device("cpu"))
        return data
