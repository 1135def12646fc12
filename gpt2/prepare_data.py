"""Download and tokenise the configured dataset once, into the data folder from which training reads."""

import sys
from pathlib import Path

if not __package__:
    sys.path[0] = str(Path(__file__).resolve().parents[1])
    from lib.base.signals import end_at_once

    end_at_once()

from gpt2 import preflight
from gpt2.data import prepare
from gpt2.data.prepared import PreparedOptions
from lib.base.errors import run_program
from lib.config import command_line


def main() -> int:
    """Prepare the dataset that the command line configures; returns the exit code."""
    schema, _ = command_line.resolve(__doc__, sys.argv[1:])
    if schema["INIT_FROM"]:
        from gpt2.weights.adopt import adopt  # here, because it imports torch, which takes seconds

        adopt(schema)
    for warning in [*schema.warnings, *preflight.quick(schema.bind)]:
        print(f"warning: {warning}", file=sys.stderr)
    options = schema.bind(PreparedOptions)
    if not options.folder.exists():
        preflight.check(schema.bind)  # imports torch, which takes seconds; preparing useless data would take hours
    if options.dataset == "bins":
        print(f"{options.data_dir}: bins are read as they are; there is nothing to prepare")
    else:
        prepare.prepare(options)
    return 0


if __name__ == "__main__":
    run_program(main)
