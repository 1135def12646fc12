"""Two processes with random states and data of their own choose the same masks (gloo)."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
CODE = """
import hashlib, sys
import torch
sys.path.insert(0, {root!r})
from tests.prune.test_prune import Trained, case

rank = int(sys.argv[1])
torch.distributed.init_process_group("gloo", init_method="file://" + sys.argv[2], rank=rank, world_size=2)
for name in sys.argv[3:]:
    trained = Trained(case(name))
    torch.manual_seed(1000 + rank)
    digest = hashlib.sha256()
    local = []
    for step in range(1, 41):
        trained.optimizer.zero_grad()
        x, y = torch.randn(20, 16), torch.randn(20, 8)
        (trained.model(x) - y).square().mean().backward()
        local.append(x.sum().item())
        for parameter in trained.model.parameters():
            torch.distributed.all_reduce(parameter.grad)
            parameter.grad /= 2
        trained.pruner.step(step, lambda: torch.tensor(True))
        trained.optimizer.step()
        trained.pruner.moved(step)
        for weight in trained.pruner.weights:
            digest.update(weight.mask.numpy().tobytes())
    print(name, digest.hexdigest(), trained.pruner.kept, round(sum(local), 3))
torch.distributed.destroy_process_group()
"""
METHODS = ["magnitude", "random", "gradient", "state", "wanda", "movement", "rigl", "set", "ste", "wanda-ste"]


def test_masks_are_the_same_on_every_rank(tmp_path):
    code = CODE.format(root=str(ROOT))
    command = [sys.executable, "-c", code]
    ranks = [
        subprocess.Popen([*command, str(rank), str(tmp_path / "store"), *METHODS], stdout=subprocess.PIPE, text=True)
        for rank in (0, 1)
    ]
    lines = [[line.split() for line in rank.communicate(timeout=120)[0].splitlines()] for rank in ranks]
    assert [rank.returncode for rank in ranks] == [0, 0]
    assert [line[0] for line in lines[0]] == METHODS
    for one, other in zip(*lines, strict=True):
        assert one[:3] == other[:3]
        assert one[3] != other[3]  # their data differed
        assert one[2] == "86"
