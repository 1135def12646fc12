"""What came of a sweep so far, in files: results.json and table.md are there from its start, and after any kill."""

import math
from statistics import fmean

from lib.base import files
from lib.compare import comparison, table, tuning
from lib.compare.comparison import Results
from lib.compare.plan import Sweep

RESULTS, TABLE = "results.json", "table.md"


class SoFar:
    """Writes both files. What cannot change while the sweep goes on is found only once."""

    def __init__(self, plan: Sweep, trials: bool = False):
        """With `trials`, these are trained, and none of them is chosen yet."""
        self.plan, self.tuning = plan, tuning.record(plan)
        self.trials = tuning.planned(plan) if trials else []
        self.known: comparison.Known = {}

    def write(self) -> Results:
        """Write the files into the sweep's folder, and return what results.json has."""
        for trial, row in zip(self.trials, self.tuning.get("trials", ()), strict=False):
            losses = tuning.losses(trial)
            row |= {
                "state": tuning.state(trial),
                "losses": list(map(_finite, losses)),
                "val_loss": _finite(fmean(losses)),
            }
            row |= {"chosen": False, "edge": []}
        found = comparison.results(self.plan, self.tuning, self.known)
        self.plan.folder.mkdir(parents=True, exist_ok=True)  # all runs may be those of other folders
        files.write(self.plan.folder / TABLE, table.markdown(found).encode())
        files.write_json(self.plan.folder / RESULTS, found)
        return found


def _finite(loss: float) -> float | None:
    return loss if math.isfinite(loss) else None
