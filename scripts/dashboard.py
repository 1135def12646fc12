"""Open Trackio's dashboard on the project of a run, and serve it until Ctrl-C."""

import argparse
import os
import sys
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parents[1])

from lib import track
from lib.base.errors import UsageError, UserError, run_program
from lib.record import run
from lib.track import trackio as adapter
from lib.track import trackio_remote

LOCAL = "127.0.0.1"


def main() -> int:
    """Serve the dashboard; returns 0 after Ctrl-C."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", nargs="?", help="folder or name of a run, or name of a project [the latest run's]")
    parser.add_argument(
        "--host",
        default=LOCAL,
        help="address to serve on; 0.0.0.0 lets every machine that reaches this one read all projects [127.0.0.1]",
    )
    parser.add_argument("--port", type=int, help="port to serve on [the first free one from 7860]")
    args = parser.parse_args()
    args.host = args.host or LOCAL  # a socket takes '' as every address of this machine
    if args.port is not None and not 0 < args.port < 65536:
        raise UsageError(f"--port must lie between 1 and 65535; got {args.port}")
    name, folder = wanted_project(args.run)
    track.names(["trackio"])
    project = adapter.trackio_project(name)
    if not adapter.has_data(project):
        raise UserError(
            f"{name}: Trackio has nothing of this project in {adapter.storage()}; train with --tracker trackio, "
            "or deliver a run that exists with: make sync RUN=<folder> TRACKER=trackio"
        )
    import trackio

    os.environ.pop(trackio_remote.BUCKET, None)  # Trackio would replace local databases by those of this bucket
    os.environ.setdefault(adapter.PLOT_ORDER, adapter.first_charts(folder))
    screen = sys.platform == "darwin" or bool(os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY"))
    try:
        # Without host and share, Trackio reads GRADIO_SERVER_NAME, GRADIO_SHARE and SYSTEM from the environment, where
        # they may be set for other programs.
        trackio.show(project, host=args.host, share=False, server_port=args.port, open_browser=screen)
    except OSError:  # from trackio, if no port is free or the address is not this machine's
        where = f"{args.host} port {args.port or 'range from 7860'}"
        hint = "" if args.host == LOCAL else ", or another --host if that is not an address of this machine"
        raise UserError(f"{where}: in use already; choose another with --port{hint}") from None
    return 0


def wanted_project(given: str | None) -> tuple[str, Path | None]:
    """The project of the named run or of the latest run, and the run's folder; None if `given` names a project."""
    folder = run.whole(given)
    if given and not folder.is_dir() and os.sep not in given:
        return given, None
    return run.Identity.load(folder).project, folder


if __name__ == "__main__":
    run_program(main)
