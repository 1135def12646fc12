"""Show what is in the checkpoints of a run, and whether they are intact, without loading them."""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

sys.path[0] = str(Path(__file__).resolve().parents[1])

from lib.base.errors import run_program
from lib.record import checkpoint_file, run
from lib.record.checkpoint_file import CheckpointError
from lib.terminal.console import columns, say, table

# Entry of a header -> its explanation.
_FACTS = {
    "format": "version of the file format",
    "bytes": "size of the file without this header",
    "step": "last completed step",
    "torch": "version of PyTorch that wrote the file",
    "run_id": "other runs refuse the file",
    "project": "project of the run in trackers",
    "shapes": "digest of the weights' shapes",
    "compiled": "whether torch.compile was used",
    "train_seconds": "time of all steps, over all sessions",
    "total_seconds": "including evaluations and checkpoints",
    "best step": "lowest loss since the sparsity changed",
    "best val_loss": "nats per token",
    "best sparsity": "share of zeros in pruning's scope",
}
_PARTS = {
    "model": "weights",
    "optimizer": "moments and step counts of each weight",
    "pruner": "masks (a bit per weight), scores and counters",
    "scaler": "scale of the loss in float16",
    "kernels": "how a CPU computes",
    "random": "state of the random generators, for dropout",
}


def main() -> int:
    """Print a line per checkpoint and the content of one; returns 1 if any of them is damaged."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", nargs="?", help="folder of a run, its name, or one of its checkpoints [the latest run]")
    parser.add_argument("--checkpoint", metavar="newest|best|STEP", help="print the content of this one [newest]")
    args = parser.parse_args()
    named = run.named(args.run)
    folder, wanted = named.folder, named.chosen(args.checkpoint)
    run.Identity.load(folder)
    damaged = {one: problem(one) for one in checkpoint_file.find(folder / "checkpoints")}
    for one, words in damaged.items():
        print(f"{one.name}  {one.stat().st_size / 1e6:,.1f} MB  {words or 'intact: the checksum matches'}")
    path = checkpoint_file.chosen(folder, wanted)
    if not damaged[path]:
        say(f"\n{path}\n{details(checkpoint_file.header(path))}")
    return int(any(damaged.values()))


def problem(path: Path) -> str:
    """Read all of the checkpoint at `path`, and return what is wrong with it; empty if it is intact."""
    try:
        with path.open("rb") as file:
            checkpoint_file.verify(file, path)
    except OSError as error:
        return f"cannot be read: {error.strerror}"
    except CheckpointError as error:
        return str(error).removeprefix(f"{path}: the checkpoint ")
    return ""


def details(header: dict[str, Any]) -> str:
    """The content of a header: facts in lines, then the parts of the state."""
    facts = {name: value for name, value in header.items() if name not in ("values", "sections", "best")}
    best = {f"best {name}": value for name, value in header["best"].items()}
    lines = {name: plain(value) for name, value in (facts | header["values"] | best).items()}
    width = max(map(len, lines.values()))
    lines = {name: f"{value:<{width}}  {_FACTS.get(name, '')}".rstrip() for name, value in lines.items()}
    rows = [("part", "tensors", "numbers", "MB")]
    for name, part in header["sections"].items():
        rows.append((name, f"{part['tensors']:,}", f"{part['numbers']:,}", f"{part['bytes'] / 1e6:,.3f}"))
    words = ["", *(_PARTS.get(name, "") for name in header["sections"])]
    parts = "\n".join(f"{line}  {text}".rstrip() for line, text in zip(columns(rows).split("\n"), words, strict=True))
    return f"{table(lines)}\n\n{parts}"


def plain(value: Any) -> str:
    """A value for the terminal, without control characters."""
    return json.dumps(value).strip('"') if not isinstance(value, int) or isinstance(value, bool) else f"{value:,}"


if __name__ == "__main__":
    run_program(main, only_prints=True)
