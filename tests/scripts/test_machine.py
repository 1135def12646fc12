"""make machine: the processor, its rates, and the kernels for a configuration, measured or kept."""

import json
import re


def test_it_shows_what_a_run_would_use_and_keeps_what_it_measured(program, folder):
    words = "MODEL_NAME=custom N_LAYER=1 N_HEAD=2 N_EMBD=16 BLOCK_SIZE=8 DEVICE=cpu DTYPE=float32 KERNELS=attention"
    environment = {"XDG_CACHE_HOME": str(folder)}
    done = program("scripts/machine.py", *words.split(), **environment)
    assert done.returncode == 0, done.stderr
    facts = dict(re.split(r" {2,}", line, maxsplit=1) for line in done.stdout.splitlines())
    assert re.fullmatch(r"float32 [\d,]+ GFLOP/s", facts["products"])
    assert re.fullmatch(r"other programs use \d+\.\d cores", facts["others"])
    assert facts["GPUs"]  # which ones this machine has, is not known to the test
    assert facts["but"] == "KERNELS=attention is what a run with this configuration takes"
    assert facts["kept in"] == str(folder / "espalier" / "kernels-2.json")
    if "because other programs compute" not in facts["kernels"]:  # the tests beside this one may do
        ((key, entry),) = json.loads((folder / "espalier" / "kernels-2.json").read_text()).items()
        assert key.endswith(": 16 wide, 2 heads, 12 x 8 tokens")
        assert facts["kernels"] == f"{entry['kernels']}, {entry['threads']} threads (measured now)"
