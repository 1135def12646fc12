"""GPUs of AMD and Intel, as the Linux kernel shows them in /sys, which needs none of their libraries.

The installed build of PyTorch says whose GPUs a run can use. So a graphics chip of AMD in a laptop is no GPU for a
PyTorch that computes on NVIDIA's, or on none. Tested on copies of the kernel's files, never on a GPU.

Sources: the kernel's pages on amdgpu (mem_info_vram_used, gpu_busy_percent, hwmon) and on
sysfs-driver-intel-{i915,xe}-hwmon; and amd_filter_device.cpp of AMD's ROCR-Runtime. By that file ROCm numbers GPUs in
the order of KFD's nodes, and knows them by unique ids.
"""

import contextlib
import functools
import importlib.util
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

SYS = Path("/sys/class")
MAKERS = {"hip": "AMD", "xpu": "Intel"}  # what torch/version.py calls a build -> whose GPUs it uses
_INTEL = ("i915", "xe")  # drivers, and the names of the hwmon folders for a whole card


@functools.cache
def maker() -> str:
    """Whose GPUs the installed PyTorch computes on: AMD, Intel or NVIDIA; also NVIDIA if it computes on no GPU.

    Reads torch/version.py, because to import torch takes a second.
    """
    found = importlib.util.find_spec("torch")
    text = Path(found.origin).with_name("version.py").read_text(encoding="utf-8")
    built = re.findall(r"^(\w+)\b.*= '.+'$", text, re.MULTILINE)
    return next((name for build, name in MAKERS.items() if build in built), "NVIDIA")


class Amd(NamedTuple):
    """A GPU of AMD."""

    name: str  # a value for ROCR_VISIBLE_DEVICES that means this GPU: its unique id, or its number if it has none
    device: Path  # its folder

    @property
    def memory(self) -> tuple[int, int]:
        """The bytes of its memory that are used, and all; raises OSError if the driver does not tell."""
        return _number(self.device / "mem_info_vram_used"), _number(self.device / "mem_info_vram_total")

    def utilization(self) -> float:
        """In percent."""
        return _number(self.device / "gpu_busy_percent")

    def power(self) -> float:
        """In watts: the average, or what newer drivers have in its place."""
        return _first(_sensors(self.device, ("amdgpu",)), "power1_average", "power1_input") / 1e6

    def temperature(self) -> float:
        """In degrees Celsius, of the hottest place (junction); of the edge if the driver knows only that."""
        return _first(_sensors(self.device, ("amdgpu",)), "temp2_input", "temp1_input") / 1e3


def amd(sys: Path = SYS) -> list[Amd]:
    """The GPUs that ROCm finds, in its order. A container does not see the nodes of GPUs that it may not use.

    A node of an old kernel, which does not tell the folder of its GPU, is left out.
    """
    nodes = sys / "kfd/kfd/topology/nodes"
    found: list[Amd] = []
    for node in sorted(nodes.glob("[0-9]*"), key=lambda path: int(path.name)):
        with contextlib.suppress(OSError, ValueError, KeyError):
            if _number(node / "gpu_id"):  # 0: a processor
                about = dict(line.split() for line in (node / "properties").read_text().splitlines())
                unique = int(about.get("unique_id", 0))
                name = f"GPU-{unique:016x}" if unique else str(len(found))
                found.append(Amd(name, sys / f"drm/renderD{about['drm_render_minor']}/device"))
    return found


class Intel:
    """A GPU of Intel. The kernel tells neither how much of its memory is used nor how busy it is."""

    def __init__(self, device: Path):
        self.device = device
        self.before: tuple[float, int] | None = None  # when its energy was read, and how many microjoules it had used

    def power(self) -> float:
        """In watts, on average since the last call; raises ValueError in the first one."""
        now = time.monotonic(), _first(_sensors(self.device, _INTEL), "energy1_input", "energy2_input")
        before, self.before = self.before, now
        if before is None or now[1] < before[1]:  # the counter has begun again
            raise ValueError("nothing to compare with")
        return (now[1] - before[1]) / 1e6 / (now[0] - before[0])

    def temperature(self) -> float:
        """In degrees Celsius, of the package."""
        return _first(_sensors(self.device, _INTEL), "temp2_input", "temp1_input") / 1e3


def intel(sys: Path = SYS) -> list[Intel]:
    """The cards of Intel. A graphics chip that is a part of a processor has no sensors of its own, and is left out."""
    return [Intel(device) for device in _devices(sys) if any(_found(device, _INTEL))]


def _devices(sys: Path) -> Iterator[Path]:
    for card in sorted(sys.glob("drm/renderD*"), key=lambda path: int(path.name.removeprefix("renderD"))):
        yield card / "device"


def _found(device: Path, names: tuple[str, ...]) -> Iterator[Path]:
    """Its folders with sensors. i915 has more for parts of a card, with names such as i915_gt0."""
    for folder in sorted(device.glob("hwmon/hwmon*")):
        with contextlib.suppress(OSError):
            if (folder / "name").read_text().strip() in names:
                yield folder


def _sensors(device: Path, names: tuple[str, ...]) -> Path:
    folder = next(_found(device, names), None)
    if folder is None:
        raise FileNotFoundError(f"{device}: has no sensors")
    return folder


def _first(folder: Path, *files: str) -> int:
    """The number in the first of these files that the driver has."""
    there = next((folder / name for name in files if (folder / name).exists()), folder / files[-1])
    return _number(there)


def _number(path: Path) -> int:
    return int(path.read_text())
