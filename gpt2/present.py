"""What a new run would have on this machine: its data, first weights and arithmetic, for lib/compare/reuse.py."""

from lib.compare.reuse import Present
from lib.config.kconf import Schema

# The functions import torch, which takes seconds: most searches need none of them.


def present() -> Present:
    """The facts are found when they are asked for, and the data is read once."""
    known: dict[tuple[object, ...], str] = {}

    def data(schema: Schema) -> str:
        from gpt2.data import prepared, windows

        options = schema.bind(windows.DataOptions)
        key = options.folder, options.splits
        if key not in known:
            there = options.dataset == "bins" or prepared.read_meta(options.folder) is not None
            known[key] = windows.load(options).fingerprint if there else ""
        return known[key]

    return Present(data, _sha256, _dtype)


def _sha256(option: str, given: str, output_dir: str) -> str:
    from gpt2.weights import masks, source

    if option == "INIT_MASKS":
        return str(masks.read(given, output_dir)[1]["sha256"])
    return source.sha256(source.find(given, output_dir))


def _dtype(schema: Schema) -> str:
    from lib.machine import device

    return str(device.choose(schema.bind(device.SystemOptions)).dtype).removeprefix("torch.")
