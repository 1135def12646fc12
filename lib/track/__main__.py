"""`python -m lib.track <run folder> <tracker>`: the process that delivers a run to a tracker; trainers start it."""

import sys
from pathlib import Path

from lib.track import lane

if __name__ == "__main__":
    sys.exit(lane.main(Path(sys.argv[1]), sys.argv[2]))
