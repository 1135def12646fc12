"""The free GPUs of this machine, by stand-ins for NVIDIA's library and AMD's driver: who gets which, what is said."""

from types import SimpleNamespace

import pynvml
import pytest

from lib.base import files
from lib.base.errors import UserError
from lib.engines import gpus, local
from lib.engines.engine import Wishes
from lib.engines.job import Job
from lib.machine import graphics
from tests.machine import cards
from tests.training import ROOT

GIB = 2**30


@pytest.fixture
def nvml(monkeypatch):
    """Makes a machine with GPUs of 80 GiB, of which so many GiB are in use."""

    def make(*used):
        names = [f"GPU-{letter * 4}" for letter in "abcdefgh"[: len(used)]]
        fakes = {
            "nvmlInit": lambda: None,
            "nvmlShutdown": lambda: None,
            "nvmlDeviceGetCount": lambda: len(used),
            "nvmlDeviceGetHandleByIndex": lambda n: n,
            "nvmlDeviceGetHandleByUUID": names.index,
            "nvmlDeviceGetUUID": names.__getitem__,
            "nvmlDeviceGetMemoryInfo": lambda n: SimpleNamespace(used=int(used[n] * GIB), total=80 * GIB),
        }
        for name, fake in fakes.items():
            monkeypatch.setattr(pynvml, name, fake)

    return make


def said(*words, env=None):
    """What is handed out, and what is said."""
    lines = []
    return gpus.places(*words, env or {}, lines.append), lines


def test_each_free_gpu_gets_a_run_and_it_is_said(nvml):
    nvml(0.5, 71.25, 0, 3)
    told = "GPUs: 3 of 4 are free, one for each run, 3 at a time; GPU 1 has 71.2 of 80.0 GiB in use"
    assert said(None, "") == (["GPU-aaaa", "GPU-cccc", "GPU-dddd"], [told])
    assert said(2, "")[0] == ["GPU-aaaa", "GPU-cccc"]


def test_gpus_are_shared_in_parts_and_handed_out_in_groups(nvml):
    nvml(0, 0, 0)
    assert said(None, "0.5")[0] == ["GPU-aaaa", "GPU-bbbb", "GPU-cccc"] * 2  # first one run for each
    assert said(4, "0.5")[0] == ["GPU-aaaa", "GPU-bbbb", "GPU-cccc", "GPU-aaaa"]
    assert said(None, "2") == (["GPU-aaaa,GPU-bbbb"], ["GPUs: 3 of 3 are free, 2 for each run, 1 at a time"])


def test_nothing_is_handed_out_where_nobody_asks_or_nothing_is_there(nvml):
    nvml(80, 80)
    assert said(4, "0") == ([], [])
    nvml()
    assert said(4, "") == ([], [])
    with pytest.raises(UserError, match=r"^GPUS_PER_RUN=1: this machine shows no NVIDIA GPU; leave it out$"):
        said(None, "1")


def test_what_the_user_lets_programs_see_counts(nvml):
    nvml(0, 0, 0)
    assert said(None, "", env={"CUDA_VISIBLE_DEVICES": "2,GPU-aaaa"})[0] == ["GPU-cccc", "GPU-aaaa"]
    assert said(None, "", env={"CUDA_VISIBLE_DEVICES": ""}) == ([], [])


def test_too_few_free_gpus_are_an_error_that_says_who_has_them_and_what_to_do(nvml):
    nvml(0, 40)
    remedies = "wait for one, give fewer JOBS, let runs share with GPUS_PER_RUN=0.5, or let each see all GPUs with "
    told = f"2 free GPUs, and 1 of 2 are free (GPU 1 has 40.0 of 80.0 GiB in use); {remedies}GPUS_PER_RUN=0"
    for words in ((2, ""), (1, "2")):
        with pytest.raises(UserError) as caught:
            said(*words)
        assert str(caught.value) == f"JOBS={words[0]} needs {told}"
    with pytest.raises(UserError, match=r"^a run needs 2 free GPUs, and 1 of 2 are free"):
        said(None, "2")


@pytest.mark.parametrize("text", ["half", "-1", "0.3", "1.5", "inf", "nan"])
def test_a_share_of_a_gpu_is_a_whole_part(text, nvml):
    nvml(0)
    with pytest.raises(UserError, match=f"^GPUS_PER_RUN={text}: must be 0 "):
        said(None, text)


def test_a_gpu_whose_memory_is_the_machines_counts_as_free(nvml, monkeypatch):
    nvml(0)

    def not_supported(handle):
        raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_SUPPORTED)

    monkeypatch.setattr(pynvml, "nvmlDeviceGetMemoryInfo", not_supported)
    assert said(None, "")[0] == ["GPU-aaaa"]


def test_trainers_see_their_own_gpu_and_give_it_back(nvml, tmp_path, monkeypatch):
    nvml(0, 0)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "show.py").write_text("import os\nprint(os.environ['CUDA_VISIBLE_DEVICES'])\n")
    engine = local.Engine(Wishes(tmp_path, tmp_path), lambda text: None)
    aaaa, bbbb = {"CUDA_VISIBLE_DEVICES": "GPU-aaaa"}, {"CUDA_VISIBLE_DEVICES": "GPU-bbbb"}
    assert (engine.jobs, engine.places) == (2, [aaaa, bbbb])
    path = str((tmp_path / "show.py").relative_to("/"))
    monkeypatch.setattr("lib.engines.job.ROOT", ROOT.joinpath("/"))
    tasks = engine.start([Job(tmp_path / name, tmp_path / f"{name}.log", path, ()) for name in ("one", "two")])
    assert engine.places == []
    for task in tasks:
        task.process.wait()
        assert task.poll() == task.poll() == (0, "")
    assert sorted(engine.places, key=str) == [aaaa, bbbb]
    assert [(tmp_path / f"{name}.log").read_text().split("\n")[1] for name in ("one", "two")] == [
        "GPU-aaaa",
        "GPU-bbbb",
    ]


def test_a_run_that_a_process_works_on_gets_no_gpu(nvml, tmp_path):
    nvml(0)
    engine = local.Engine(Wishes(tmp_path, tmp_path), lambda text: None)
    with (tmp_path / "one.log").open("ab") as log:
        assert files.locks(log.fileno(), tmp_path)
        assert engine.start([Job(tmp_path / "one", tmp_path / "one.log", "gpt2/train.py", ())]) == [None]
    assert engine.places == [{"CUDA_VISIBLE_DEVICES": "GPU-aaaa"}]


@pytest.fixture
def amd(tmp_path, monkeypatch):
    """Makes a machine with GPUs of AMD of 64 GiB, of which so many GiB are in use, and a PyTorch for ROCm."""
    monkeypatch.setattr(graphics, "maker", lambda: "AMD")
    there = graphics.amd
    monkeypatch.setattr(graphics, "amd", lambda: there(tmp_path))

    def make(*used):
        for number, gib in enumerate(used):
            cards.amd(tmp_path, number, 0xA0 + number, int(gib * GIB))

    return make


def of_amd(*ids):
    """The variables that show a run these GPUs of AMD."""
    numbers = ",".join(map(str, range(len(ids))))
    names = ",".join(f"GPU-00000000000000{one}" for one in ids)
    return {"ROCR_VISIBLE_DEVICES": names, "HIP_VISIBLE_DEVICES": numbers, "CUDA_VISIBLE_DEVICES": numbers}


def test_gpus_of_amd_are_handed_out_by_their_ids(amd, tmp_path):
    amd(0.5, 20, 0)
    lines = []
    assert gpus.environments(None, "", {}, lines.append) == [of_amd("a0"), of_amd("a2")]
    assert lines == ["GPUs: 2 of 3 are free, one for each run, 2 at a time; GPU 1 has 20.0 of 64.0 GiB in use"]
    assert gpus.environments(None, "2", {}, lines.append) == [of_amd("a0", "a2")]
    assert gpus.words({}) == "3 of AMD, 2 free (GPU 1 has 20.0 of 64.0 GiB in use)"
    assert local.Engine(Wishes(tmp_path, tmp_path), lines.append).jobs == 2


@pytest.mark.parametrize(
    ("env", "ids"),
    [
        ({"ROCR_VISIBLE_DEVICES": "2,GPU-00000000000000A0"}, ["a2", "a0"]),
        ({"ROCR_VISIBLE_DEVICES": "1,2", "HIP_VISIBLE_DEVICES": "1"}, ["a2"]),
        ({"HIP_VISIBLE_DEVICES": "1", "CUDA_VISIBLE_DEVICES": "0"}, ["a1"]),
        ({"CUDA_VISIBLE_DEVICES": "2"}, ["a2"]),
        ({"ROCR_VISIBLE_DEVICES": "0,0,1"}, ["a0"]),  # ROCm ends at what names none, or one that it has
        ({"ROCR_VISIBLE_DEVICES": "1,7,0"}, ["a1"]),
        ({"ROCR_VISIBLE_DEVICES": ""}, []),
    ],
)
def test_what_the_user_lets_rocm_see_counts(env, ids, amd):
    amd(0, 0, 0)
    assert gpus.environments(None, "", env, lambda text: None) == [of_amd(one) for one in ids]


def test_a_machine_without_a_gpu_of_amd_hands_out_none(amd):
    assert gpus.environments(4, "", {}, lambda text: None) == []
    assert gpus.words({}) == "none of AMD"
    with pytest.raises(UserError, match=r"^GPUS_PER_RUN=1: this machine shows no AMD GPU; leave it out$"):
        gpus.environments(None, "1", {}, lambda text: None)


def test_a_gpu_of_amd_whose_driver_does_not_tell_its_memory_counts_as_free(amd, tmp_path):
    cards.amd(tmp_path, 0, 0xA0, 0, total=0)
    assert gpus.environments(None, "", {}, lambda text: None) == [of_amd("a0")]


def test_the_words_about_gpus_of_other_makers(nvml, monkeypatch):
    nvml(0, 40)
    assert gpus.words({}) == "2 of NVIDIA, 1 free (GPU 1 has 40.0 of 80.0 GiB in use)"
    nvml()
    assert gpus.words({}) == "none of NVIDIA"
    monkeypatch.setattr(graphics, "maker", lambda: "Intel")
    monkeypatch.setattr(graphics, "intel", lambda: ["card"])
    assert gpus.words({}) == "1 of Intel, whose figures are recorded; runs do not compute on them"
