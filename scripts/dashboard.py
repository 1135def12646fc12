"""Open Trackio's dashboard on the project of a run, and serve it until Ctrl-C."""

import argparse
import os
import sys
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parents[1])

from lib import run, track
from lib.errors import UserError, run_program
from lib.track import trackio as adapter


def main() -> int:
    """Serve the dashboard; returns 0 after Ctrl-C."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", nargs="?", help="folder of a run, or name of a project [the latest run's project]")
    parser.add_argument("--port", type=int, help="port to serve on [the first free one from 7860]")
    args = parser.parse_args()
    name = wanted_project(args.run)
    track.names(["trackio"])
    project = adapter.project(name)
    if not adapter.has_data(project):
        raise UserError(
            f"{name}: Trackio has nothing of this project in {adapter.storage()}; train with --tracker trackio, "
            "or deliver a run that is there with: make sync RUN=<folder> TRACKER=trackio"
        )
    import trackio

    screen = sys.platform == "darwin" or bool(os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY"))
    try:
        trackio.show(project, server_port=args.port, open_browser=screen)
    except OSError:  # what trackio raises when no port is free
        raise UserError(f"port {args.port or 'range from 7860'}: in use already; choose another with --port") from None
    return 0


def wanted_project(given: str | None) -> str:
    """The project of a run's folder, of the latest run, or of that name."""
    if given and not Path(given).is_dir() and os.sep not in given:
        return given
    folder = Path(given or run.newest([]))
    return run.Identity.load(folder).project


if __name__ == "__main__":
    run_program(main)
