"""Jobs of Hugging Face by huggingface_hub's own functions: submit, follow, list, cancel; each failure is a sentence."""

import contextlib
import os
import re
import sys
import warnings
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple

from huggingface_hub import HfApi, JobHardware, JobHardwareInfo, JobInfo, JobStage, Volume, get_token
from huggingface_hub.errors import HfHubHTTPError, HTTPError
from huggingface_hub.utils import disable_progress_bars

from lib.base import redact
from lib.base.durations import TIME_OVER
from lib.base.errors import NO_ROOM, UsageError, UserError
from lib.config.option import nearest
from lib.terminal.console import roughly

_POLL = 2.0  # seconds between looks at a job
_LAST = 3  # lines of a failed job that its error repeats
# Labels of a job. Only the name is shown on the hub's page; the others tell `make jobs` what it looks at.
KIND, RUN, SECONDS = "espalier", "espalier-run", "espalier-seconds"
_ADVICE = {
    401: "the hub does not know the token; check HF_TOKEN, or log in with: hf auth login",
    402: "the hub asks for payment; add credits or a payment method at {billing}",
    403: "the token may not do this; it needs the right to start jobs and to write, for {owner}",
    404: "check the name",
    429: "the hub gets too many requests; wait a minute",
}
_STAGES = {"SCHEDULING": "waiting", "ERROR": "failed", "CANCELED": "cancelled"}  # other stages in lower case
_ALIVE = (JobStage.SCHEDULING, JobStage.RUNNING)


class End(NamedTuple):
    """How a job ended."""

    code: int  # exit code for the program that followed it
    sentence: str


class Asked(NamedTuple):
    """What a job is asked to be, besides its script."""

    flavor: str
    seconds: int
    name: str  # of the run's folder
    kind: str  # train, finetune or sweep
    secrets: Mapping[str, str]
    environment: Mapping[str, str]
    volumes: Sequence[Volume]


class Jobs:
    """The jobs of an owner, a user or an organisation."""

    def __init__(self, owner: str = ""):
        """Without an `owner` these are the jobs of the token's user. Raises UserError if there is no token."""
        token = get_token()
        if not token:
            raise UserError("there is no token for the Hugging Face hub; set HF_TOKEN, or log in with: hf auth login")
        if not sys.stderr.isatty():
            disable_progress_bars()
        self.api = HfApi(endpoint=os.environ.get("HF_ENDPOINT", "").rstrip("/") or None, token=token)
        self.owner = owner or "the token's user"
        with self.told("asking who owns the token"):
            self.owner = owner or self.api.whoami()["name"]

    @contextlib.contextmanager
    def told(self, doing: str) -> Iterator[None]:
        """A context that raises UserError in place of errors of the hub, of the network and of the library."""
        try:
            yield
        except (HTTPError, OSError, ValueError, RuntimeError) as error:
            response = getattr(error, "response", None) if isinstance(error, HfHubHTTPError) else None
            status = getattr(response, "status_code", 0)
            words = getattr(error, "server_message", None) or str(error) or type(error).__name__
            words = " ".join(words.replace(get_token() or "\0", "***").split())[:300]
            advice = _ADVICE.get(status, "try again")
            if response is None:
                advice = f"{self.api.endpoint} is not reached; check the network, then try again"
            if isinstance(error, ValueError):
                advice = "check the names"
            if getattr(error, "errno", None) in NO_ROOM or "No space left" in words:  # hf_xet says it in words only
                advice = "the disk of this machine is full; make room"
            elif getattr(error, "filename", None):
                advice = "a file of this machine cannot be used"
            billing = f"{self.api.endpoint}/settings/billing"
            advice = advice.format(owner=self.owner, billing=billing)
            code = f"{status}: " if status else ""
            raise UserError(f"{doing} failed: {advice} ({code}{words})") from None

    def flavor(self, name: str) -> JobHardwareInfo:
        """The machine of this name, with its price; raises UsageError if the hub rents no such machine."""
        with self.told("asking for the machines"):
            found = {one.name: one for one in self.api.list_jobs_hardware()}
        if name not in found:
            near = nearest(name, found)
            raise UsageError(f"FLAVOR={name}: the hub rents no such machine{near}; it has {', '.join(found)}")
        return found[name]

    def alive(self, name: str) -> str:
        """The id of a job that works on this run now; empty if none does."""
        with self.told("asking for the jobs of this run"):
            found = self.api.list_jobs(namespace=self.owner, labels={RUN: label(name)}, status=list(_ALIVE))
            return next((one.id for one in found if one.status.stage in _ALIVE), "")

    def submit(self, script: str, arguments: list[str], asked: Asked) -> JobInfo:
        """Start a job that runs the script in the file `script`; files among the `arguments` go with it."""
        with self.told("submitting the job"), warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*run_uv_job' is experimental")
            return self.api.run_uv_job(
                script,
                script_args=arguments,
                env=dict(asked.environment),
                secrets=dict(asked.secrets),
                flavor=asked.flavor,
                timeout=asked.seconds,
                name=label(asked.name),
                labels={KIND: asked.kind, RUN: label(asked.name), SECONDS: str(asked.seconds)},
                volumes=list(asked.volumes),
                namespace=self.owner,
            )

    def inspect(self, job: str) -> JobInfo:
        """What the hub knows about a job."""
        with self.told(f"looking at job {job} of {self.owner}"):
            return self.api.inspect_job(job_id=job, namespace=self.owner)

    def cancel(self, job: str) -> JobInfo:
        """Cancel a job; returns what the hub knows about it then."""
        with self.told(f"cancelling job {job} of {self.owner}"):
            self.api.cancel_job(job_id=job, namespace=self.owner)
        return self.inspect(job)

    def started(self) -> list[JobInfo]:
        """The jobs that `make job` started, the newest first."""
        with self.told(f"listing the jobs of {self.owner}"):
            found = [one for one in self.api.list_jobs(namespace=self.owner) if (one.labels or {}).get(KIND)]
        return sorted(found, key=lambda one: one.created_at.timestamp() if one.created_at else 0, reverse=True)

    def follow(self, job: str, say: Callable[[str], object]) -> End:
        """Show what a job prints until it ends. The job goes on if this is interrupted."""
        lines: deque[str] = deque(maxlen=_LAST)
        with self.told(f"following job {job} (which goes on)"):
            info = self.api.inspect_job(job_id=job, namespace=self.owner)
            if info.status.stage == JobStage.SCHEDULING:
                say(f"job {job} waits for a machine")
                self.api.wait_for_job(job, stages=[JobStage.RUNNING], poll_interval=_POLL, namespace=self.owner)
            for line in self.api.fetch_job_logs(job_id=job, namespace=self.owner, follow=True):
                lines.append(redact.hide(line))
                say(lines[-1])
            return ended(self.api.wait_for_job(job, poll_interval=_POLL, namespace=self.owner), lines)


def ended(info: JobInfo, lines: Sequence[str]) -> End:
    """How a job ended; `lines` are the last that it printed."""
    message, stage = info.status.message or "", info.status.stage
    if stage == JobStage.COMPLETED:
        return End(0, f"job {info.id} is finished")
    if stage in (JobStage.CANCELED, JobStage.DELETED):
        return End(1, f"job {info.id} was {state(info)}")
    allowed = int((info.labels or {}).get(SECONDS) or 0)
    ran = info.durations.running_secs or 0 if info.durations else 0
    if re.search(r"time[d-]?\s?-?out", message, re.IGNORECASE) or (allowed and ran >= allowed):
        return End(TIME_OVER, f"the time of job {info.id} is over{f' ({roughly(allowed)})' if allowed else ''}")
    told = [line.strip() for line in lines if line.strip()]
    errors = [line.removeprefix("error: ") for line in told if line.startswith("error: ")]
    last = f"; its last lines: {' | '.join(told)}" if told and not errors else ""
    why = ": ".join(filter(None, [message, *errors[-1:]]))
    return End(1, f"job {info.id} failed{f': {why}' if why else ''}{last}")


def state(info: JobInfo) -> str:
    """The stage of a job in a word: waiting, running, completed, failed, cancelled."""
    stage = str(getattr(info.status.stage, "value", info.status.stage))
    return _STAGES.get(stage, stage.lower())


def price(machine: JobHardwareInfo, seconds: int) -> str:
    """What a machine costs at most in this time; empty if the hub names no price that is understood."""
    unit = {"second": 1, "minute": 60, "hour": 3600}.get(machine.unit_label)
    if not unit or machine.unit_cost_usd is None:
        return ""
    hourly = machine.unit_cost_usd * 3600 / unit
    return f"${hourly:,.2f} an hour, at most ${hourly * seconds / 3600:,.2f}"


def label(name: str) -> str:
    """A run's name with the letters that a label of a job may have."""
    return re.sub(r"[^a-zA-Z0-9_-]", "-", name)


def known_flavors() -> list[str]:
    """The machines that this version of huggingface_hub knows without asking."""
    return [one.value for one in JobHardware]


def volume(bucket: str, path: str, mount: str) -> Volume:
    """A folder of a bucket as a folder of a job, which may write there."""
    return Volume(type="bucket", source=bucket, path=path, mount_path=mount, read_only=False)
