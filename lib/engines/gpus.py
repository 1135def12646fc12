"""Which GPUs of this machine are free, and how the runs of a sweep share them."""

import contextlib
from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple

import pynvml

from lib.base.errors import UserError
from lib.engines.engine import each_run
from lib.machine import graphics

VISIBLE = "CUDA_VISIBLE_DEVICES"
VISIBLE_AMD = "ROCR_VISIBLE_DEVICES"  # is read first, and those below count from 0 among what it leaves
_COUNTED_AMD = ("HIP_VISIBLE_DEVICES", VISIBLE)  # the first of them that is set is what PyTorch takes
_FREE = 0.8  # a GPU with this share of its memory unused is free: a desktop or an idle driver takes less than the rest
_GIB = 2**30


class Gpu(NamedTuple):
    """A GPU that CUDA or ROCm can use."""

    name: str  # a value for CUDA_VISIBLE_DEVICES, or ROCR_VISIBLE_DEVICES, that means this GPU in whatever order
    used: int  # bytes of its memory
    total: int

    @property
    def free(self) -> bool:
        """Whether nobody computes on it, as far as its memory tells."""
        return self.total - self.used >= _FREE * self.total


def environments(
    jobs: int | None, per_run: str, env: Mapping[str, str], say: Callable[[str], object]
) -> list[dict[str, str]]:
    """The variables that show each run its GPUs, for each that can be trained at the same time; see `places`.

    Of NVIDIA's GPUs, or of AMD's if the installed PyTorch computes on those.
    """
    if graphics.maker() != "AMD":
        return [{VISIBLE: place} for place in places(jobs, per_run, env, say)]
    names = places(jobs, per_run, env, say, found_amd(env), "AMD")
    return [
        {VISIBLE_AMD: name} | dict.fromkeys(_COUNTED_AMD, ",".join(map(str, range(name.count(",") + 1))))
        for name in names
    ]


def places(
    jobs: int | None,
    per_run: str,
    env: Mapping[str, str],
    say: Callable[[str], object],
    there: list[Gpu] | None = None,
    maker: str = "NVIDIA",
    together: bool = False,
) -> list[str]:
    """A value of CUDA_VISIBLE_DEVICES for each run that can be trained at the same time; says which GPUs they are.

    `there` are the GPUs of this machine if the caller knows them; otherwise NVIDIA's. Empty without a GPU, and with
    GPUS_PER_RUN=0: then the runs are not given GPUs, and see all. Raises UserError if there are fewer free ones than
    `jobs` need; `together`: these are the processes of one run.
    """
    each, there = each_run(per_run), found(env) if there is None else there
    if each == 0 or not there:
        if each:
            raise UserError(f"GPUS_PER_RUN={per_run}: this machine shows no {maker} GPU; leave it out")
        return []
    free = [gpu.name for gpu in there if gpu.free]
    made = shared(free, each or 1)
    used = _in_use(there)
    if len(made) < (jobs or 1):
        wanted = f"{'NPROC' if together else 'JOBS'}={jobs} needs" if jobs else "a run needs"
        advice = "give fewer JOBS, let runs share with GPUS_PER_RUN=0.5, or let each see all GPUs with GPUS_PER_RUN=0"
        advice = "or give a smaller NPROC" if together else advice
        raise UserError(
            f"{wanted} {(jobs or 1) * (each or 1):g} free GPUs, and {len(free)} of {len(there)} are free"
            f"{f' ({used})' if used else ''}; wait for one, {advice}"
        )
    made = made[:jobs]
    one = "process" if together else "run"
    shares = f"{each or 1:g} for each {one}" if (each or 1) != 1 else f"one for each {one}"
    say(f"GPUs: {len(free)} of {len(there)} are free, {shares}, {len(made)} at a time{f'; {used}' if used else ''}")
    return made


def words(env: Mapping[str, str]) -> str:
    """Which GPUs a run could use here: `2 of NVIDIA, 1 free (GPU 1 has 40.0 of 80.0 GiB in use)`."""
    maker = graphics.maker()
    if maker == "Intel":
        return f"{len(graphics.intel())} of Intel, whose figures are recorded; runs do not compute on them"
    if not (there := found_amd(env) if maker == "AMD" else found(env)):
        return f"none of {maker}"
    used = _in_use(there)
    return f"{len(there)} of {maker}, {sum(gpu.free for gpu in there)} free{f' ({used})' if used else ''}"


def _in_use(there: list[Gpu]) -> str:
    return ", ".join(
        f"GPU {n} has {gpu.used / _GIB:.1f} of {gpu.total / _GIB:.1f} GiB in use"
        for n, gpu in enumerate(there)
        if not gpu.free
    )


def shared(free: list[str], each: float) -> list[str]:
    """The values of CUDA_VISIBLE_DEVICES when each run gets so many of the free GPUs, or this share of one."""
    if each < 1:
        return free * round(1 / each)
    size = int(each)
    return [",".join(free[n : n + size]) for n in range(0, len(free) - size + 1, size)]


def found(env: Mapping[str, str]) -> list[Gpu]:
    """The NVIDIA GPUs of this machine that CUDA_VISIBLE_DEVICES lets programs see."""
    with _nvml() as is_there:
        if not is_there:
            return []
        handles = [_handle(name) for name in _visible(env)]
        return [_gpu(handle) for handle in handles if handle is not None]


def found_amd(env: Mapping[str, str]) -> list[Gpu]:
    """The GPUs of AMD that the environment lets programs see, in the order in which they see them."""
    there = graphics.amd()
    if VISIBLE_AMD in env:
        there = _chosen(there, env[VISIBLE_AMD])
    for name in _COUNTED_AMD:
        if name in env:
            there = _chosen(there, env[name])
            break
    gpus = []
    for gpu in there:
        try:
            gpus.append(Gpu(gpu.name, *gpu.memory))
        except (OSError, ValueError):  # its driver does not tell, so nothing says that it is in use
            gpus.append(Gpu(gpu.name, 0, 0))
    return gpus


def _chosen(there: list[graphics.Amd], text: str) -> list[graphics.Amd]:
    """Those that a list of numbers and unique ids names. As ROCm does, it ends at the first that names none."""
    chosen: list[graphics.Amd] = []
    for word in (part.strip().lower() for part in text.split(",")):
        if word.isdigit():
            named = there[int(word) : int(word) + 1]
        else:
            named = [gpu for gpu in there if word.startswith("gpu-") and gpu.name.lower().startswith(word)]
        if len(named) != 1 or named[0] in chosen:
            break
        chosen += named
    return chosen


def _visible(env: Mapping[str, str]) -> list[str]:
    if VISIBLE in env:
        return [name.strip() for name in env[VISIBLE].split(",") if name.strip() not in ("", "-1", "NoDevFiles")]
    return [str(number) for number in range(pynvml.nvmlDeviceGetCount())]


def _handle(name: str) -> object | None:
    """NVML's handle of a GPU, or a part of one (MIG), by its number or its UUID; None for one that does not answer."""
    with contextlib.suppress(pynvml.NVMLError):
        if name.isdigit():
            return pynvml.nvmlDeviceGetHandleByIndex(int(name))
        return pynvml.nvmlDeviceGetHandleByUUID(name)
    return None


def _gpu(handle: object) -> Gpu:
    name = pynvml.nvmlDeviceGetUUID(handle)
    try:
        memory = pynvml.nvmlDeviceGetMemoryInfo(handle)
    except pynvml.NVMLError:  # it shares the memory of the machine, so this tells nothing
        return Gpu(name, 0, 0)
    return Gpu(name, memory.used, memory.total)


@contextlib.contextmanager
def _nvml() -> Iterator[bool]:
    """A context with NVIDIA's management library; yields whether there is a driver."""
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        yield False
        return
    try:
        yield True
    finally:
        pynvml.nvmlShutdown()
