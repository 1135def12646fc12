"""Train on a rented machine of Hugging Face (Jobs): submit a job and follow it. `make job` calls this program.

  make job FLAVOR=a10g-large JOB_TIME=2h LEARNING_RATE=1e-3     train .config and these words there
  make job FLAVOR=a10g-large JOB=sweep SWEEP=sweeps/pruning     or a sweep; JOB=finetune: what make finetune does
  make job RUN=runs/name                                        go on with a run that a job began

With DRY_RUN=1 the script of the job is printed, and nothing is asked or sent. docs/jobs.md has more.

The exit code is 0 if the job is finished, 1 if it failed or was cancelled, 124 if its time is over, and 130 after
Ctrl-C, which leaves the job running.
"""

import argparse
import sys
import tempfile
from pathlib import Path
from typing import Any

sys.path[0] = str(Path(__file__).resolve().parents[1])

from gpt2.finetune.configured import configuration
from gpt2.weights.hub import PUBLISHED
from lib.base import durations, files, redact
from lib.base.errors import UsageError, UserError, run_program
from lib.config import command_line
from lib.config.kconf import ROOT, Schema
from lib.config.option import nearest
from lib.jobs import api, bucket, code, environment, length, record, script
from lib.jobs.api import Asked, Jobs
from lib.jobs.follow import command, follow
from lib.jobs.inside import OURS, Task
from lib.jobs.plan import Plan, check_words, of_sweep, of_training
from lib.record import given_model
from lib.terminal.console import roughly, say, table

_OUTPUT = "/output"  # where a job finds the bucket


def main() -> int:
    """Plan a job, show it, start it and follow it; returns the exit code."""
    args, words = _parser().parse_known_args()
    plan, known, schema = planned(args, words)
    flavor = args.flavor or (known.flavor if known else "")
    if not flavor:
        raise UsageError(f"FLAVOR=... is needed: the machine to rent, such as {', '.join(api.known_flavors())}")
    seconds, why = allowed(args, plan, known, schema, flavor)
    apart = [plan.folder.parent]
    if args.dry_run:
        with tempfile.TemporaryDirectory(prefix="espalier-job-") as scratch:
            return _dry_run(args, plan, flavor, seconds, why, code.choose(ROOT, apart, Path(scratch), ask=False))
    owner = args.owner or (known.owner if known else "")
    jobs = Jobs(owner)
    machine = jobs.flavor(flavor)
    if busy := jobs.alive(plan.folder.name):
        raise UserError(f"{plan.folder}: job {busy} works on it; follow it with: make job-logs ID={busy}")
    place = bucket.named(args.bucket or (known.bucket or "none" if known else ""), jobs.owner)
    secrets = environment.secrets(plan.trackers)
    asked = Asked(flavor, seconds, plan.folder.name, plan.kind, secrets, plan.environment, [])
    with tempfile.TemporaryDirectory(prefix="espalier-job-") as scratch:
        found = code.choose(ROOT, apart, Path(scratch))
        for name in found.left_out:
            say(f"warning: {name} has local changes and is not sent: it is too large, or likely to hold keys")
        text = script.text(_task(plan, found), _packages(plan), secrets)
        cost = {"price": api.price(machine, seconds) or "not known"}
        say(table(_facts(plan, asked, found, place, why, jobs.owner) | cost))
        _warn(plan, place, secrets)
        local = Path(scratch, record.SCRIPT)
        local.write_text(text, encoding="utf-8")
        arguments, volumes = _send(jobs, plan, found, place, text)
        info = jobs.submit(str(local), arguments, asked._replace(volumes=volumes))
    say(f"job {info.id} is submitted: {info.url}")
    ids = [*(known.ids if known else []), info.id]
    kept = record.Record(plan.kind, plan.name, flavor, seconds, jobs.owner, place, plan.source, ids, plan.words)
    kept.save(plan.folder, text, plan.kept)
    if args.detach:
        say(f"follow it: {command('job-logs', owner, ID=info.id)}")
        return 0
    again = "the same command" if plan.kind == "sweep" else command("job", owner, RUN=str(plan.folder))
    return follow(jobs, info.id, owner, plan.folder if place else None, again)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="make job", add_help=False, allow_abbrev=False)
    parser.add_argument("--job", default="", help=f"what to do: {', '.join(script.JOBS)} [train]")
    parser.add_argument("--flavor", default="", help="the machine, such as a10g-large")
    parser.add_argument("--time", default="", help="the longest time that the job may take [estimated]")
    parser.add_argument("--tokens-per-second", default="", help="what the machine trains, to estimate the time")
    parser.add_argument("--owner", default="", help="user or organisation that pays [the token's user]")
    parser.add_argument("--bucket", default="", help=f"where the output survives, or none [OWNER/{bucket.NAME}]")
    parser.add_argument("--run", default="", help="the run to go on with, or to fine-tune")
    parser.add_argument("--sweep", default="", help="the file of a sweep")
    parser.add_argument("--pass", dest="passed", action="append", default=[], help="a word for make in the job")
    parser.add_argument("--dry-run", action="store_true", help="print the script; ask and send nothing")
    parser.add_argument("--detach", action="store_true", help="do not follow the job")
    return parser


def planned(args: argparse.Namespace, words: list[str]) -> tuple[Plan, record.Record | None, Schema | None]:
    """The plan of a job, the record of earlier jobs of its run, and the configuration unless it is a sweep."""
    known = base = None
    if args.run and not args.job:
        folder = record.place(args.run)
        known, base = record.load(folder), folder / OURS / record.CONFIG
        if known is None:
            raise UsageError(f"{folder}: no job was started for this run here; to fine-tune it, give JOB=finetune")
    kind = known.kind if known else args.job or "train"
    if kind not in script.JOBS:
        raise UsageError(f"JOB={kind}: must be one of {', '.join(script.JOBS)}{nearest(kind, script.JOBS)}")
    passed = [word for word in args.passed if not word.endswith("=")]
    check_words(kind, [*passed, *([f"SWEEP={args.sweep}"] if args.sweep and kind != "sweep" else [])], bool(known))
    if kind == "sweep":
        if args.run:
            raise UsageError("a sweep goes on by the command that began it, with JOB=sweep and without RUN")
        plan = of_sweep(files.named(args.sweep) if args.sweep else None, words, passed, args.owner)
        return plan, record.load(plan.folder), None
    if kind == "train" and args.run and not known:
        raise UsageError("JOB=train begins a run, so it takes no RUN; to go on with one, leave out JOB")
    schema = _configuration(kind, args.run, passed, words, base)
    for warning in schema.warnings:
        print(f"warning: {warning}", file=sys.stderr)
    if kind == "train":
        from gpt2 import preflight

        preflight.check_trainable(schema.bind(preflight.TrainableOptions))
    if kind == "finetune" and not schema["FINETUNE_DATA"]:
        raise UsageError("JOB=finetune needs examples: name them, as in FINETUNE_DATA=examples.jsonl")
    source = known.source if known else given_model.source(schema)
    passed = [] if kind == "finetune" else passed  # the source names the checkpoint
    before = known.words if known else None
    plan = of_training(kind, schema, words, passed, args.owner, source, before, PUBLISHED)
    found = known or record.load(plan.folder)
    if found is None and plan.folder.exists():
        raise UsageError(f"{plan.folder}: exists, and no job made it; give another TRACKER_RUN_NAME")
    return plan, found, schema


def _configuration(kind: str, source: str, passed: list[str], words: list[str], base: Path | None) -> Schema:
    """The configuration as the program in the job resolves it. `base` is that of a run that goes on."""
    if base or kind == "train":
        return command_line.resolve(__doc__, words, base=(lambda _: base) if base else None)[0]
    chosen = [f"--checkpoint={word.partition('=')[2]}" for word in passed]
    return configuration([*([f"--run={source}"] if source else []), *chosen, *words])[0]


def allowed(
    args: argparse.Namespace, plan: Plan, known: record.Record | None, schema: Schema | None, flavor: str
) -> tuple[int, str]:
    """How many seconds the job may take, and why; raises UsageError if that has to be asked of the user."""
    if args.time:
        return durations.seconds(args.time), "JOB_TIME"
    if known and known.flavor == flavor:
        return known.seconds, "as before"
    speed = None
    if args.tokens_per_second:
        try:
            speed = float(args.tokens_per_second)
        except ValueError:
            speed = 0.0
        if not 0 < speed < float("inf"):
            raise UsageError(f"TOKENS_PER_SECOND={args.tokens_per_second}: must be a number above 0")
    if plan.kind == "train" and schema and (found := length.estimate(schema, plan.folder.parent, flavor, speed)):
        return found
    if plan.kind != "train":
        raise UsageError(f"JOB_TIME=2h is needed: the time of JOB={plan.kind} is not estimated")
    raise UsageError(
        f"JOB_TIME=2h is needed, or TOKENS_PER_SECOND=...: no finished run in {plan.folder.parent} tells how fast "
        f"{flavor} trains this model with these batches"
    )


def _task(plan: Plan, found: code.Code) -> Task:
    return Task(
        plan.remote, tuple(plan.begins), tuple(plan.goes_on), plan.sent, found.url, found.commit, found.sha256,
        found.inside,
    )  # fmt: skip


def _packages(plan: Plan) -> list[str]:
    return script.packages(plan.kind, plan.trackers, plan.has_tasks)


def _facts(plan: Plan, asked: Asked, found: code.Code, place: str, why: str, you: str) -> dict[str, str]:
    """What the user should know before the job starts; `you` is the token's user, whose a Space without owner is."""
    space = plan.space if "/" in plan.space else f"{you}/{plan.space}"
    metrics = f"the Space {space}" if plan.space else f"the server {plan.server}" if plan.server else "no Space"
    more = {
        "variables": ", ".join(f"{name}={redact.hide(text)}" for name, text in asked.environment.items()),
        "inputs": ", ".join(f"{one.name}={one.path}{one.suffix}" for one in plan.inputs),
    }
    return {
        "job": f"make {plan.begins[0]}, run {plan.name}",
        "machine": f"{asked.flavor}, at most {roughly(asked.seconds)} ({why})",
        "code": found.words(),
        "output": f"{place}/{plan.folder.name}; make fetch RUN={plan.folder}" if place else "is lost with the job",
        "metrics": metrics,
        "secrets": ", ".join(name for name, value in asked.secrets.items() if value) or "none is set here",
    } | {name: text for name, text in more.items() if text}


def _warn(plan: Plan, place: str, secrets: dict[str, str]) -> None:
    """Warn about what the job would lose."""
    if not place:
        has_place = plan.space or plan.server
        lost = "the model" if has_place or len(secrets) > 1 else "the model and the metrics"
        print(f"warning: there is no bucket{'' if has_place else ' and no Space'}: {lost} are lost with the job, and "
              "nothing can go on; leave out JOB_BUCKET=none", file=sys.stderr)  # fmt: skip
    if "wandb" in plan.trackers and "WANDB_API_KEY" not in secrets:
        print(
            "warning: WANDB_API_KEY is not set here, so the job keeps W&B offline, in the run's folder", file=sys.stderr
        )


def _dry_run(args: argparse.Namespace, plan: Plan, flavor: str, seconds: int, why: str, found: code.Code) -> int:
    """Print the script, and on standard error what it would be sent with."""
    secrets = environment.secrets(plan.trackers)
    place = bucket.named(args.bucket, args.owner or "<you>")
    facts = _facts(
        plan, Asked(flavor, seconds, plan.name, plan.kind, secrets, plan.environment, []), found, place, why, "<you>"
    )
    print(script.text(_task(plan, found), _packages(plan), secrets))
    print(table(facts), file=sys.stderr)
    _warn(plan, place, secrets)
    if flavor not in api.known_flavors():
        print(f"note: FLAVOR={flavor} is new to this version of huggingface_hub", file=sys.stderr)
    asks = "whether the repository gives this commit to everybody, " if found.url else ""
    print(f"nothing was asked or sent; {asks}the price and your account are looked at without DRY_RUN", file=sys.stderr)
    return 0


def _send(jobs: Jobs, plan: Plan, found: code.Code, place: str, text: str) -> tuple[list[str], list[Any]]:
    """Send the folders that the job needs, and make its bucket; returns the script's arguments and the volumes.

    Files among the arguments are sent with the script.
    """
    arguments, volumes = [], []
    bucket.make(jobs, f"{jobs.owner}/{bucket.OF_SCRIPTS}")  # the library puts the script there
    if found.archive:
        arguments += ["--code", str(found.archive)]
    for one in plan.inputs:
        where = str(one.path)
        if one.path.is_dir():
            where = f"/input/{one.name}/{one.path.resolve().name}"
            with jobs.told(f"sending {one.path}"):
                volumes.append(jobs.api.sync_job_volume(one.path, where, namespace=jobs.owner))
        arguments += ["--input", one.name, where, *([one.suffix] if one.suffix else [])]
    if place:
        bucket.make(jobs, place)
        bucket.put(jobs, place, f"{plan.folder.name}/{OURS}/{record.SCRIPT}", text.encode())
        volumes.append(api.volume(place, plan.folder.name, _OUTPUT))
        arguments += ["--output", _OUTPUT]
    return arguments, volumes


if __name__ == "__main__":
    run_program(main)
