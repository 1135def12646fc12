"""System metrics: real readings of this machine, GPUs as far as a driver tells them, once per step, off the loop."""

import functools
import itertools
import threading
import time

import psutil
import pynvml

from lib.machine import graphics
from lib.record import journal, monitor
from lib.record.journal import Journal
from lib.record.monitor import Monitor
from tests.machine import cards


def test_the_host_is_read_in_percent_and_gib():
    process = psutil.Process()
    monitor.host(process)
    metrics = monitor.host(process)
    assert set(metrics) - {"system/cpu_temperature_celsius"} == {
        "system/cpu_percent", "system/memory_used_gib", "system/process_cpu_percent", "system/process_memory_gib",
    }  # fmt: skip
    assert 0 <= metrics["system/cpu_percent"] <= 100
    total = psutil.virtual_memory().total / 2**30
    assert 0.005 < metrics["system/process_memory_gib"] < metrics["system/memory_used_gib"] + 1 < total + 1


def test_samples_go_to_the_journal_from_a_thread_of_their_own_once_per_step(tmp_path):
    book, steps, threads = Journal(tmp_path), itertools.cycle([1, 3, 3]), set()

    def record(step, metrics):
        threads.add(threading.current_thread().name)
        book.write("system", step, metrics)

    with Monitor(0.01, lambda: next(steps), record, 2):
        while len(list(journal.read(tmp_path))) < 1:
            time.sleep(0.01)
    recorded = [(r["event"], r["step"]) for r in journal.read(tmp_path)]
    assert recorded == [("system", 3)]
    assert threads == {"system metrics"}


def test_an_interval_of_zero_starts_no_thread():
    with Monitor(0, lambda: 1, print, 0) as watch:
        assert not watch.thread.is_alive()


def test_a_journal_that_cannot_be_written_ends_the_samples_in_silence():
    steps = itertools.count()

    def record(step, metrics):
        raise journal.JournalError("no space left")

    with Monitor(0.01, lambda: next(steps), record, 0) as watch:
        watch.thread.join(10)
        assert not watch.thread.is_alive()


def test_gpus_tell_what_their_driver_knows(monkeypatch):
    """No GPU is at hand: the driver's answers are given, and one that it does not know."""

    def unknown(handle):
        raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_SUPPORTED)

    monkeypatch.setattr(pynvml, "nvmlDeviceGetUtilizationRates", lambda handle: pynvml.c_nvmlUtilization_t(gpu=97))
    monkeypatch.setattr(pynvml, "nvmlDeviceGetMemoryInfo", lambda handle: pynvml.c_nvmlMemory_t(used=3 * 2**29))
    monkeypatch.setattr(pynvml, "nvmlDeviceGetPowerUsage", lambda handle: 412_500)
    monkeypatch.setattr(pynvml, "nvmlDeviceGetTemperature", lambda handle, sensor: unknown(handle))
    assert monitor.gpu(["a", "b"]) == {
        "system/gpu0_utilization_percent": 97.0,
        "system/gpu0_memory_used_gib": 1.5,
        "system/gpu0_power_watts": 412.5,
        "system/gpu1_utilization_percent": 97.0,
        "system/gpu1_memory_used_gib": 1.5,
        "system/gpu1_power_watts": 412.5,
    }


def test_gpus_of_amd_and_intel_tell_what_their_driver_knows(tmp_path, monkeypatch):
    monkeypatch.setattr(graphics, "maker", lambda: "AMD")
    cards.amd(tmp_path, 0, 1, 3 * 2**29)
    cards.amd(tmp_path, 1, 2, 0, total=0, sensors=())
    monkeypatch.setattr(graphics, "amd", functools.partial(graphics.amd, tmp_path))
    with monitor._graphics() as gpus:
        assert monitor.gpu(gpus) == {
            "system/gpu0_utilization_percent": 97.0,
            "system/gpu0_memory_used_gib": 1.5,
            "system/gpu0_power_watts": 412.5,
            "system/gpu0_temperature_celsius": 68.0,
            "system/gpu1_utilization_percent": 97.0,
        }
    monkeypatch.setattr(graphics, "maker", lambda: "Intel")
    cards.intel(tmp_path, 3, "i915", energy1_input="5000000\n")
    monkeypatch.setattr(graphics, "intel", functools.partial(graphics.intel, tmp_path))
    with monitor._graphics() as gpus:
        assert monitor.gpu(gpus) == {}  # power needs two readings, and i915 has no temperature here
        assert monitor.gpu(gpus) == {"system/gpu0_power_watts": 0.0}


def test_without_a_driver_there_are_no_gpus(monkeypatch):
    def missing():
        raise pynvml.NVMLError(pynvml.NVML_ERROR_LIBRARY_NOT_FOUND)

    monkeypatch.setattr(pynvml, "nvmlInit", missing)
    with monitor._graphics() as handles:
        assert handles == []


def test_what_a_machine_cannot_tell_is_left_out(monkeypatch):
    """As in a container that hides /proc/stat, and where no sensor is."""

    def denied():
        raise psutil.AccessDenied()

    monkeypatch.setattr(psutil, "cpu_percent", denied)
    monkeypatch.setattr(psutil, "sensors_temperatures", dict, raising=False)
    names = {"system/memory_used_gib", "system/process_cpu_percent", "system/process_memory_gib"}
    assert set(monitor.host(psutil.Process())) == names
    chips = {"coretemp": [psutil._ntuples.shwtemp("core", 61.5, 90, 90)]}
    monkeypatch.setattr(psutil, "sensors_temperatures", lambda: chips, raising=False)
    assert monitor.host(psutil.Process())["system/cpu_temperature_celsius"] == 61.5
