"""A run of several processes on SLURM: one job, whose script starts them by srun and is requeued until the end.

The script is shown and kept in the job's folder. SLURM sends SIGUSR2 to the processes before the job's time is over;
they save and end, and the script has the job requeued. It writes the exit code of the run into a file.
"""

import shlex
import signal
import subprocess
import time
from collections.abc import Callable, Iterable
from pathlib import Path

from lib.base import files, launch
from lib.base.errors import UsageError, UserError
from lib.base.signals import StopSignals
from lib.engines.engine import End
from lib.engines.group import Group, Output, frozen
from lib.engines.job import program, reason
from lib.engines.shared import SHARE
from lib.engines.slurm import LAST, Submitted, Task, ended, minutes, place, refused, sbatch_options

_NAME = "job"  # of the files in the job's folder
_SECONDS = 90  # before the end of the job's time, in which the run saves; as submitit has it
_LOOK = 0.5  # seconds between looks at the output and the queue
_HURRIED = "made no step within the job's time limit, or was not requeued; give it more, such as SBATCH=--time=240"
_SCRIPT = """#!/bin/bash
# A run of {count} processes, which Espalier submits to SLURM. It is started again when its job is requeued.
{options}
folder={folder}
rm -f "$folder/job.end"
ended() {{ # exit code, reason: what the command that submitted this reads
    printf '{{"job": "%s", "code": %d, "why": "%s"}}\\n' "$SLURM_JOB_ID" "$1" "$2" > "$folder/job.end.tmp"
    mv "$folder/job.end.tmp" "$folder/job.end"
    exit "$1"
}}
cd {here} || ended 1 "$HOSTNAME does not see the present folder; {share}"
[ -x {python} ] || ended 1 "$HOSTNAME does not see this Python; {share}"
trap : TERM INT USR2 # the processes save; this script goes on when srun has ended
export {job} {again} OMP_NUM_THREADS="${{SLURM_CPUS_PER_TASK:-1}}"
touch "$folder/began"
srun --cpus-per-task="${{SLURM_CPUS_PER_TASK:-1}}" --wait=0 --kill-on-bad-exit=0 \\
    {command}
code=$?
if [ $code = {over} ]; then # the time of the job is over
    run=$(grep -ls '"{run_id}"' {runs}/*/run.json | head -n 1)
    if [ -n "$run" ] && [ -n "$(find "${{run%/*}}/checkpoints" -name 'step-*.pt' -newer "$folder/began")" ]; then
        if scontrol requeue "$SLURM_JOB_ID"; then
            while :; do sleep 1; done # SLURM ends this script, first the sleep and then the rest
        fi
    fi
    ended 1 "{hurried}"
fi
[ $code = {preempted} ] && sleep {last} # SLURM requeues only what does not end by itself
ended $code
"""


def run(group: Group, say: Callable[[str], object]) -> int:
    """Submit the run, unless its job is there already, and follow it to its end; returns the exit code of the run.

    Raises UserError.
    """
    if group.dry_run:
        say(script(group, frozen(group)))
        return 0
    there = Submitted(group.folder, group.job)
    number = there.known().get(_NAME, "")
    if number and there.queue.state(number):
        task = Task(there, _NAME, number)
        say(f"{task.state()}; its output is in {group.log}")
    else:
        if number and (end := ended(group.folder, _NAME, number)) and end.code:
            say(f"SLURM job {number} ended with exit code {end.code}: {end.why or reason(group.log, end.code)}")
        task = _submit(group, there, say)
    if group.detach:
        say("the same command shows where it is, and follows it without DETACH=y")
        return 0
    return _follow(group, task, say)


def _submit(group: Group, there: Submitted, say: Callable[[str], object]) -> Task:
    if group.begun and files.is_held(group.begun):
        raise UserError(f"{group.begun}: another process is training this run; wait for it or stop it")
    try:
        group.folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{group.folder}: cannot be made: {files.reason(error, group.runs)}") from None
    text = script(group, frozen(group))
    path = group.folder / "job.sh"
    files.write(path, text.encode())
    graphics = "#SBATCH --g" in text or group.device not in ("auto", "cuda")
    advice = "" if graphics else ", without a GPU (DEVICE=cuda asks for one for each process)"
    say(f"{text}\n{path}: submitting this to {place(group.partition)}{advice}")
    done = subprocess.run(["sbatch", "--parsable", str(path)], capture_output=True, text=True, check=False)
    if done.returncode:
        raise refused("the run", done.stderr)
    number = done.stdout.strip().partition(";")[0]  # with several clusters, the name of one follows
    there.keep({_NAME: number})
    there.queue.look()
    say(f"SLURM job {number}; its output is in {group.log}")
    return Task(there, _NAME, number)


def _follow(group: Group, task: Task, say: Callable[[str], object]) -> int:
    output, state, told = Output(group.log), "", False
    with StopSignals("the run saves, and its job ends") as stopped:
        while (end := task.poll()) is None:
            output.show()
            if (now := task.state()) != state:
                state = now
                say(state)
            if stopped() and stopped.heard[0] == signal.SIGHUP:  # the connection is lost: the job goes on
                return stopped.exit_code
            if stopped() and not told:
                told = True
                task.stop()
            time.sleep(_LOOK)
        time.sleep(_LOOK)  # the last lines may arrive after the end
        output.show()
        return _code(end, stopped.exit_code)


def _code(end: End, stopped: int) -> int:
    """The exit code of the run; raises UserError if its output does not say why it has ended."""
    if stopped and (end.code or end.why):
        return stopped
    if end.why:
        raise UserError(end.why)
    return end.code


def script(group: Group, words: Iterable[str]) -> str:
    """The script of the job. Raises UsageError for options of sbatch that do not fit."""
    folder, quoted = group.folder.absolute(), shlex.quote
    here = Path.cwd()
    return _SCRIPT.format(
        count=group.count,
        options="\n".join(_options(group)),
        folder=quoted(str(folder)),
        here=quoted(str(here)),
        share=SHARE,
        python=quoted(program("")[0]),
        job=f"{launch.JOB}={quoted(group.job)}",
        again=f"{launch.AGAIN}={quoted(group.again)}",
        command=shlex.join(program("gpt2/train.py", *words)),
        hurried=_HURRIED,
        over=128 + signal.SIGUSR2,
        preempted=128 + signal.SIGTERM,
        run_id=group.run_id,
        runs=quoted(str(group.runs.absolute())),
        last=LAST,
    )


def _options(group: Group) -> list[str]:
    """The lines of the script that sbatch reads."""
    more = sbatch_options(group.sbatch, ours=("ntasks", "ntasks-per-node", "open-mode", "requeue", "no-requeue"))
    graphics = any(name.startswith(("gpu", "gres")) for name in more)
    options: dict[str, str | bool | int] = {
        "job-name": group.job,
        "output": str(group.log.absolute()).replace("%", "%%"),  # sbatch replaces %j, for example, by a number
        "open-mode": "append",
        "ntasks": group.count,
        "cpus-per-task": group.threads or 1,
        "time": minutes(group.run_time),
        "signal": f"USR2@{_SECONDS}",
        "requeue": True,
        **({"partition": group.partition} if group.partition else {}),
        **({"gpus-per-task": 1} if group.device == "cuda" and not graphics else {}),
    }
    if any("\n" in str(value) for value in (options | more).values()):
        raise UsageError("SBATCH: an option of sbatch is one line")
    return [
        f"#SBATCH --{name}" if value is True else f"#SBATCH --{name}={shlex.quote(str(value))}"
        for name, value in (options | more).items()
    ]
