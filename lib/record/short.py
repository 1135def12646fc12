"""Short runs: RUN_TIME was over before they had made all their steps."""

from pathlib import Path

from lib.record import history, journal


def words(run_time: str) -> str:
    """What the finish event of a short run has as its message."""
    return f"RUN_TIME={run_time} is over"


def why(folder: Path) -> str:
    """These words if the run in a folder is short; "" if it is not, or if it went on."""
    if not (folder / journal.FILE).exists() or (folder / "summary.json").exists():
        return ""
    end = history.skim(folder).end or {}
    message = str(end.get("message", ""))
    return message if end.get("status") == "interrupted" and message.startswith("RUN_TIME=") else ""
