"""GPUs of AMD and Intel, from copies of the kernel's files: no such GPU is at hand."""

import importlib.util
from types import SimpleNamespace

import pytest

from lib.machine import graphics
from tests.machine import cards

GIB = cards.GIB


def test_the_gpus_of_amd_are_in_the_order_of_rocm_by_their_ids(tmp_path):
    for number in (10, 2, 0):  # 10 comes last, not between 0 and 2
        cards.amd(tmp_path, number, 0x9B2A_D1C8_B0C3_D200 + number, number * GIB)
    found = graphics.amd(tmp_path)
    assert [gpu.name for gpu in found] == ["GPU-9b2ad1c8b0c3d200", "GPU-9b2ad1c8b0c3d202", "GPU-9b2ad1c8b0c3d20a"]
    assert [gpu.memory for gpu in found] == [(0, 64 * GIB), (2 * GIB, 64 * GIB), (10 * GIB, 64 * GIB)]


def test_a_gpu_without_an_id_is_known_by_its_number_and_what_a_container_may_not_use_is_no_gpu(tmp_path):
    cards.amd(tmp_path, 0, 1, 0)
    cards.amd(tmp_path, 1, 0, 0)
    cards.amd(tmp_path, 2, 3, 0)
    (tmp_path / "kfd/kfd/topology/nodes/1/gpu_id").unlink()  # the kernel denies it
    assert [gpu.name for gpu in graphics.amd(tmp_path)] == ["0", "GPU-0000000000000003"]
    assert graphics.amd(tmp_path / "nothing") == []


@pytest.mark.parametrize(
    "properties", ["", "unique_id 1\n", "drm_render_minor\n", "drm_render_minor 128\nunique_id x\n"]
)
def test_a_node_that_does_not_tell_its_gpu_is_left_out(properties, tmp_path):
    cards.amd(tmp_path, 0, 1, 0)
    cards.amd(tmp_path, 1, 2, 0)
    (tmp_path / "kfd/kfd/topology/nodes/1/properties").write_text(properties)
    assert [gpu.name for gpu in graphics.amd(tmp_path)] == ["GPU-0000000000000002"]


@pytest.mark.parametrize(
    ("sensors", "power", "temperature"),
    [
        (("power1_average", "power1_input", "temp1_input", "temp2_input"), 412.5, 68.0),
        (("power1_input", "temp1_input"), 398.0, 51.0),
    ],
)
def test_amd_tells_use_power_and_temperature(sensors, power, temperature, tmp_path):
    cards.amd(tmp_path, 0, 1, 3 * GIB // 2, sensors=sensors)
    (gpu,) = graphics.amd(tmp_path)
    assert (gpu.utilization(), gpu.power(), gpu.temperature()) == (97, power, temperature)


def test_the_power_of_a_card_of_intel_follows_from_its_energy(tmp_path, monkeypatch):
    device = cards.intel(tmp_path, 0, "xe", energy1_input="5000000\n", temp2_input="49000\n")
    cards.put(tmp_path / "drm/renderD129/device")  # a part of the processor
    (card,) = graphics.intel(tmp_path)
    now = [10.0]
    monkeypatch.setattr(graphics.time, "monotonic", lambda: now[0])
    with pytest.raises(ValueError, match="nothing to compare"):
        card.power()
    now[0] = 12.0
    cards.put(device / "hwmon/hwmon3", energy1_input="305000000\n")
    assert (card.power(), card.temperature()) == (150.0, 49.0)
    cards.put(device / "hwmon/hwmon3", energy1_input="7\n")
    with pytest.raises(ValueError, match="nothing to compare"):
        card.power()


@pytest.mark.parametrize(
    ("built", "maker"),
    [
        ("cuda: Optional[str] = None\nhip: Optional[str] = '6.4.43482'\nxpu: Optional[str] = None\n", "AMD"),
        ("cuda: Optional[str] = None\nhip: Optional[str] = None\nxpu: Optional[str] = '20250302'\n", "Intel"),
        ("cuda: Optional[str] = '13.0'\nhip: Optional[str] = None\nxpu: Optional[str] = None\n", "NVIDIA"),
        ("cuda: Optional[str] = None\nhip: Optional[str] = None\nxpu: Optional[str] = None\n", "NVIDIA"),
    ],
)
def test_the_build_of_pytorch_says_whose_gpus_count(built, maker, tmp_path, monkeypatch):
    (tmp_path / "version.py").write_text(f"__version__ = '2.13.0'\ndebug = False\n{built}")
    there = SimpleNamespace(origin=str(tmp_path / "__init__.py"))
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: there)
    assert graphics.maker.__wrapped__() == maker
