"""The figures that are kept of all machines, and what has become worse since."""

import json
import os

import pytest
import torch

from bench import results
from bench.results import Figure, compare, figures, read, write
from lib.base import threads
from lib.base.errors import UserError
from lib.machine import device
from lib.record import provenance

MACHINE = "cpu, bfloat16, 2 threads, AMD EPYC, AVX-512 with bfloat16, 2 of 2 cores"
STEP = "fused AdamW step"
FACTS = "2026-11-20", "2.13.0", MACHINE
KEPT = [
    Figure("masks", "mask update, state", STEP, 42.0, [], *FACTS),
    Figure("threshold", "exact threshold", STEP, 3.0, [2.9, 3.1], *FACTS),
    Figure("threshold", "torch.kthvalue", "exact threshold", 7.0, [], *FACTS),
    Figure("start", "first step", "seconds", 0.5, [], *FACTS),
    Figure("utilisation", "gpt2", "best matrix product", 0.6, [], "2026-11-20", "2.13.0", "NVIDIA H200, bfloat16"),
]


def report(threshold=3.0, kthvalue=7.0, update=42.0, machine=MACHINE):
    """What --json writes, without what no figure needs."""
    cases = [
        {"name": STEP, "median_seconds": 0.05},
        {"name": "exact threshold", "base": STEP, "ratio": threshold, "goal": "<= 2", "met": threshold <= 2},
        {"name": "torch.kthvalue", "base": "exact threshold", "ratio": kthvalue, "goal": ">= 5", "met": True},
    ]
    updates = [{"name": "mask update, state", "base": STEP, "ratio": update}]
    sections = {"threshold": {"cases": cases}, "masks": {"cases": updates}}
    return {"machine": machine, "date": "2026-11-21", "torch": "2.14.0", "sections": sections}


@pytest.fixture
def kept(tmp_path):
    path = tmp_path / "results.json"
    path.write_text(json.dumps([figure._asdict() for figure in KEPT]))
    return path


def test_figures_are_ratios_of_cases_and_rows_and_seconds_with_a_goal():
    rows = {"gpt2": {"tokens/s": 5e5, "ratio": 0.6, "to": "best matrix product"}, "other": {"loss": 3}}
    seconds = [{"name": "import", "median_seconds": 1.2}, {"name": "step", "median_seconds": 0.4, "goal": "<= 0.5"}]
    seconds[1]["interval"] = [0.3, 0.5]
    sections = {"utilisation": {"rows": rows}, "start": {"cases": seconds}, "saving": {"busy": 0.04}}
    assert figures({"machine": "m", "date": "d", "torch": "t", "sections": sections}) == [
        Figure("utilisation", "gpt2", "best matrix product", 0.6, [], "d", "t", "m"),
        Figure("start", "step", "seconds", 0.4, [0.3, 0.5], "d", "t", "m"),
    ]
    assert [figure.value for figure in figures(report())] == [3.0, 7.0, 42.0]


def test_figures_are_kept_in_place_of_what_this_machine_had(kept):
    assert read(kept) == KEPT
    made = report(threshold=2.512345)
    made["sections"]["threshold"]["cases"][1]["interval"] = [2.5, 2.543219]
    del made["sections"]["threshold"]["cases"][2]
    write(kept, made)
    new = "2026-11-21", "2.14.0", MACHINE
    assert read(kept) == [
        KEPT[4], KEPT[0]._replace(date="2026-11-21", torch="2.14.0"), KEPT[3],
        Figure("threshold", "exact threshold", STEP, 2.512, [2.5, 2.543], *new), KEPT[2],
    ]  # fmt: skip
    assert kept.read_text().count("\n") == 7  # a line for each, so that a change is easy to read


def test_a_second_machine_adds_figures(kept):
    other = MACHINE.replace("AMD", "Another")
    found = write(kept, report(machine=other))
    assert found == read(kept)
    assert sorted(found) == sorted([*KEPT, *figures(report(machine=other))])
    assert compare(report(threshold=3.1), [*KEPT, figures(report(threshold=99.0, machine=other))[0]])[1] == []


def test_what_was_not_measured_keeps_its_figures(kept):
    write(kept, report() | {"sections": {"threshold": {"busy": 0.318}, "saving": {"busy": 0.04}}})
    assert sorted(read(kept)) == sorted(KEPT)


def test_a_damaged_or_missing_file_is_named(kept):
    kept.write_text('[{"section": "masks"}]')
    with pytest.raises(UserError, match=r"results.json: is not a list of figures: .*; restore it with git$"):
        read(kept)
    kept.write_text("[")
    with pytest.raises(UserError, match="is not a list of figures"):
        read(kept)
    kept.unlink()
    with pytest.raises(UserError, match=r"results.json: cannot be read: No such file or directory$"):
        read(kept)


def test_a_machine_is_named_by_device_processor_features_and_cores(monkeypatch):
    monkeypatch.setattr(provenance, "cpu", lambda: "A | B")
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX512")
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)
    monkeypatch.setattr(threads, "cores", lambda: 2)
    monkeypatch.setattr(os, "cpu_count", lambda: 64)
    chosen = device.Machine(torch.device("cuda"), torch.bfloat16, "NVIDIA H200", None, dtype_reason="auto: it can")
    assert results.machine(chosen) == "NVIDIA H200, bfloat16, A / B, AVX-512, 2 of 64 cores"
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: True)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: True)
    assert results.machine(chosen) == "NVIDIA H200, bfloat16, A / B, AMX, AVX-512 with bfloat16, 2 of 64 cores"


def test_ten_per_cent_are_forgiven():
    assert compare(report(threshold=3.29, kthvalue=6.4, update=46.0), KEPT) == ("3 ratios compared", [])


def test_each_ratio_is_worse_in_its_own_direction():
    assert compare(report(threshold=3.31, kthvalue=6.3, update=46.3), KEPT)[1] == [
        "threshold: exact threshold / fused AdamW step is 3.31, and was 3 on 2026-11-20",
        "threshold: torch.kthvalue / exact threshold is 6.3, and was 7 on 2026-11-20",
        "masks: mask update, state / fused AdamW step is 46.3, and was 42 on 2026-11-20",
    ]
    assert compare(report(threshold=1.0, kthvalue=20.0, update=1.0), KEPT)[1] == []


@pytest.mark.parametrize(
    ("section", "case", "to"),
    [
        ("4x128 beside nanoGPT, float32", "nanoGPT not compiled", "Espalier not compiled"),
        ("4x128 beside Trainer, float32", "Trainer compiled", "Espalier compiled"),
        ("4x128: share of the best product", "Espalier not compiled", "best product, 342 GFLOP/s"),
    ],
)
def test_more_is_better_beside_a_trainer_and_of_the_best_product_even_without_a_goal(section, case, to):
    then = Figure(section, case, to, 1.0, [], *FACTS)
    rows = {case: {"ratio": 0.85, "to": to}}
    made = report() | {"sections": {section: {"rows": rows}}}
    sentence = f"{section}: {case} / {to} is 0.85, and was 1 on 2026-11-20"
    assert compare(made, [then])[1] == [sentence]
    rows[case]["ratio"] = 1.5
    assert compare(made, [then])[1] == []


def test_another_machine_of_the_kind_is_named_and_another_kind_is_refused():
    note, worse = compare(report(machine="cpu, float32, 16 threads"), KEPT)
    assert worse == []
    assert note == (f"3 ratios compared; this machine is 'cpu, float32, 16 threads', the kept ones are of {MACHINE!r}")
    sentence = "there are no ratios of these sections on NVIDIA T4, float16; add them with --write-table"
    assert compare(report(machine="NVIDIA T4, float16"), KEPT) == ("no ratios compared", [sentence])


def test_what_is_written_is_what_is_read(tmp_path):
    """Rounded once: 2.9748 is kept as 2.975. The page would say 2.97 now, and 2.98 when it is written again."""
    path = tmp_path / "results.json"
    path.write_text("[]")
    found = write(path, report(threshold=2.9748))
    assert found == read(path)
    assert [figure.value for figure in found if figure.case == "exact threshold"] == [2.975]
