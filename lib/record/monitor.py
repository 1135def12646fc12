"""Use of the machine while a run trains: processors, memory and GPUs, read by a thread beside the loop."""

import contextlib
import dataclasses
import threading
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import psutil
import pynvml

from lib.config.kconf import Options
from lib.machine import graphics
from lib.record.journal import JournalError

GIB = 2**30


@dataclasses.dataclass(frozen=True)
class MonitorOptions(Options):
    """How often system metrics are measured."""

    system_metrics_interval: float  # seconds; 0: never


Metrics = dict[str, float]


class Monitor:
    """Calls `record(step, metrics)` in a thread, every `seconds` seconds, but at most once per step.

    Trackers identify a metric by its step, so a step has one sample. A resumed run measures only beyond the steps that
    it repeats. A sample takes 0.2 ms of one core. Values that the machine does not report are left out.
    """

    def __init__(self, seconds: float, step: Callable[[], int], record: Callable[[int, Metrics], object], after: int):
        """`seconds` between samples (0: none); `step` returns the current step; samples begin beyond step `after`."""
        self.seconds, self.step, self.record, self.before = seconds, step, record, after
        self.ended = threading.Event()
        self.thread = threading.Thread(target=self._watch, name="system metrics", daemon=True)

    def __enter__(self) -> "Monitor":
        if self.seconds:
            self.thread.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.ended.set()
        if self.seconds:
            self.thread.join(1)  # a driver may hang; the thread then ends with the process

    def _watch(self) -> None:
        with _graphics() as gpus:
            process = psutil.Process()
            # Both measure the time since their last call, so the results of their first calls are useless.
            process.cpu_percent()
            psutil.cpu_percent()
            while not self.ended.wait(self.seconds):
                if (step := self.step()) > self.before:
                    metrics = host(process) | gpu(gpus)
                    try:
                        self.record(step, metrics)
                    except JournalError:  # the loop gets the same error and reports it
                        return
                    self.before = step


def host(process: psutil.Process) -> Metrics:
    """Use of processors since the last call (percent of all cores), memory (GiB), and this process's share of them."""
    return _read(_HOST, "system/", process)


def gpu(handles: list[object]) -> Metrics:
    """Utilisation (percent), memory (GiB), power (W) and temperature (degrees Celsius) of each GPU of the machine.

    The number is that of nvidia-smi; of AMD's GPUs, the place in ROCm's order. Variables such as CUDA_VISIBLE_DEVICES
    neither hide a GPU here nor renumber it.
    """
    found: Metrics = {}
    for number, handle in enumerate(handles):
        readings = {graphics.Amd: _AMD, graphics.Intel: _INTEL}.get(type(handle), _NVIDIA)
        found |= _read(readings, f"system/gpu{number}_", handle)
    return found


def _read(readings: Mapping[str, Callable[[Any], float]], prefix: str, source: object) -> Metrics:
    """The readings that this machine, container or driver supports."""
    found = {}
    for name, read in readings.items():
        with contextlib.suppress(psutil.Error, pynvml.NVMLError, OSError, ValueError, AttributeError):
            found[prefix + name] = float(read(source))
    return found


def _used_memory(_: object) -> float:
    memory = psutil.virtual_memory()
    return (memory.total - memory.available) / GIB


def _temperature(_: object) -> float:
    sensors = psutil.sensors_temperatures()  # only on Linux and FreeBSD
    return max(one.current for name in ("coretemp", "k10temp", "cpu_thermal") for one in sensors.get(name, []))


_HOST = {
    "cpu_percent": lambda process: psutil.cpu_percent(),
    "memory_used_gib": _used_memory,
    "process_cpu_percent": lambda process: process.cpu_percent() / psutil.cpu_count(),
    "process_memory_gib": lambda process: process.memory_info().rss / GIB,
    "cpu_temperature_celsius": _temperature,
}
_NVIDIA = {
    "utilization_percent": lambda handle: pynvml.nvmlDeviceGetUtilizationRates(handle).gpu,
    "memory_used_gib": lambda handle: pynvml.nvmlDeviceGetMemoryInfo(handle).used / GIB,
    "power_watts": lambda handle: pynvml.nvmlDeviceGetPowerUsage(handle) / 1000,
    "temperature_celsius": lambda handle: pynvml.nvmlDeviceGetTemperature(handle, pynvml.NVML_TEMPERATURE_GPU),
}
_AMD = {
    "utilization_percent": graphics.Amd.utilization,
    "memory_used_gib": lambda card: card.memory[0] / GIB,
    "power_watts": graphics.Amd.power,
    "temperature_celsius": graphics.Amd.temperature,
}
_INTEL = {"power_watts": graphics.Intel.power, "temperature_celsius": graphics.Intel.temperature}


@contextlib.contextmanager
def _graphics() -> Iterator[list[object]]:
    """The GPUs of this machine of the maker whose GPUs the installed PyTorch uses; of NVIDIA's, NVML's handles."""
    if graphics.maker() != "NVIDIA":
        yield graphics.amd() if graphics.maker() == "AMD" else graphics.intel()
        return
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        yield []
        return
    handles = []
    for number in range(pynvml.nvmlDeviceGetCount()):
        with contextlib.suppress(pynvml.NVMLError):  # a GPU that no longer answers
            handles.append(pynvml.nvmlDeviceGetHandleByIndex(number))
    try:
        yield handles
    finally:
        pynvml.nvmlShutdown()
