"""Deliver to a run's trackers what they lack, and upload what they keep offline. A second call sends nothing twice."""

import argparse
import sys
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parents[1])

from lib import track
from lib.base.errors import UsageError, UserError, run_program, shown
from lib.config.kconf import Schema
from lib.record import run
from lib.track import lane, registry, trust


def main() -> int:
    """Deliver and upload, with progress on a terminal. Returns 1 if a tracker or its server still lacks something."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", nargs="?", help="folder of the run [the latest in the output folder]")
    parser.add_argument("--tracker", help="trackers to deliver to, such as trackio,wandb [those of the run]")
    args = parser.parse_args()
    folder = run.whole(args.run)
    run.Identity.load(folder)  # refuses a folder that holds no run
    names = track.names(trackers(folder, args.tracker))
    trust.check(folder, names)
    deliveries = deliver(track.Lanes(folder, names))
    print(shown(f"{folder}\n{track.table(deliveries)}"))
    lacking = [one.name for one in deliveries if not one.complete]
    return 1 if upload(folder, [one.name for one in deliveries if one.name not in lacking]) or lacking else 0


def upload(folder: Path, names: list[str]) -> list[str]:
    """Let trackers send what they keep in the run's folder to their servers; returns those that cannot."""
    failed = []
    for name in names:
        if name in registry.plugins() or not hasattr(module := registry.module(name.partition(":")[0]), "upload"):
            continue
        show(f"{name}: uploading what it keeps in {folder}")
        try:
            done = module.upload(folder, lane.configuration(folder) or {})
            show(f"{name}: {done}\n")
        except UserError as error:
            show("")
            print(f"error: {name}: {error}", file=sys.stderr)
            failed.append(name)
    return failed


def trackers(folder: Path, wanted: str | None) -> list[str]:
    """The named trackers, else those of the run's configuration. Raises UsageError if there are none."""
    if wanted:
        schema = Schema()
        schema.override([("TRACKER", wanted, "--tracker")])
        names = schema["TRACKER"]
    else:
        names = (lane.configuration(folder) or {}).get("tracker", [])
    if not names:
        raise UsageError(f"{folder}: this run has no tracker; name one, as in --tracker trackio")
    return names


def deliver(lanes: track.Lanes) -> list[track.Delivery]:
    """Wait until the lanes have delivered everything, without a limit. Ctrl-C ends them."""
    lanes.close()
    try:
        while not lanes.wait(0.5):
            for note in lanes.notes():
                show(f"{note}\n")
            show(
                ", ".join(
                    f"{one.name}: {one.delivered:,} of {one.delivered + one.pending:,}" for one in lanes.deliveries()
                )
            )
    except KeyboardInterrupt:
        lanes.stop()
        raise
    show("")
    return lanes.deliveries()


def show(text: str) -> None:
    """Replace the line of progress. If the output is not a terminal, print only complete lines."""
    if sys.stdout.isatty():
        print(f"\r\033[K{shown(text)}", end="", flush=True)
    elif text.endswith("\n"):
        print(shown(text), end="", flush=True)


if __name__ == "__main__":
    run_program(main)
