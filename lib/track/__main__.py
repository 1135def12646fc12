"""`python -m lib.track <run folder> <tracker> <pipe>`: the process that delivers a run to a tracker."""

import sys
from pathlib import Path

from lib.track import lane

if __name__ == "__main__":
    sys.exit(lane.main(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])))
