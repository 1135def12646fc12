"""A SLURM of one node for tests, from Debian's packages: slurmctld, slurmd and munge, without systemd."""

import contextlib
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

PROGRAMS = ("slurmctld", "slurmd", "sbatch", "squeue", "scancel", "scontrol", "munged")
CONFIGURATION = """
ClusterName=local
SlurmctldHost={host}(127.0.0.1)
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldPort={ports[0]}
SlurmdPort={ports[1]}
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
MpiDefault=none
ReturnToService=2
JobRequeue=1
KillWait=10
MinJobAge=3600
SchedulerParameters=bf_interval=2,sched_interval=2,batch_sched_delay=0
NodeName={host} NodeAddr=127.0.0.1 CPUs=2 RealMemory=1000 State=UNKNOWN
PartitionName=main Nodes={host} Default=YES MaxTime=INFINITE State=UP
"""


def missing() -> str:
    """What is not installed or allowed."""
    path = f"{os.environ['PATH']}:/usr/sbin"
    return ", ".join(name for name in PROGRAMS if not shutil.which(name, path=path)) or "root" * (os.getuid() != 0)


@contextlib.contextmanager
def cluster(folder: Path) -> Iterator[dict[str, str]]:
    """A context in which a SLURM works; yields the variables that its programs need."""
    with contextlib.ExitStack() as stack:
        ports = []
        for _ in range(2):
            with socket.socket() as free:
                free.bind(("127.0.0.1", 0))
                ports.append(free.getsockname()[1])
        for name in ("state", "spool"):
            (folder / name).mkdir()
        path = folder / "slurm.conf"
        path.write_text(CONFIGURATION.format(host=socket.gethostname().split(".")[0], folder=folder, ports=ports))
        environment = {**os.environ, "SLURM_CONF": str(path), "PATH": f"{os.environ['PATH']}:/usr/sbin"}
        (folder / "munge.key").write_bytes(os.urandom(1024))
        (folder / "munge.key").chmod(0o600)
        files = ("key-file=munge.key", "socket=munge.socket", "pid-file=munge.pid", "log-file=munge.log")
        words = [f"--{word.replace('=', f'={folder}/')}" for word in (*files, "seed-file=munge.seed")]
        munged = ["/usr/sbin/munged", "--foreground", "--force", *words]  # force: others cannot reach the socket
        stack.callback(end, subprocess.Popen(munged, stderr=subprocess.DEVNULL))
        until = time.monotonic() + 60
        while not (folder / "munge.socket").exists():
            assert time.monotonic() < until, (folder / "munge.log").read_text()
            time.sleep(0.05)
        for name in ("slurmctld", "slurmd"):
            command = [f"/usr/sbin/{name}", "-D", "-f", str(path)]
            stack.callback(end, subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL))
        until = time.monotonic() + 120
        while "idle" not in ask(environment, "sinfo", "--noheader", "--format=%T"):
            assert time.monotonic() < until, [(folder / f"{name}.log").read_text() for name in ("slurmctld", "slurmd")]
            time.sleep(0.2)
        yield environment
        ask(environment, "scancel", "--user=root")
        until = time.monotonic() + 60
        while ask(environment, "squeue", "--noheader") and time.monotonic() < until:
            time.sleep(0.2)


def ask(environment: dict[str, str], *command: str) -> str:
    """The output of one of SLURM's programs."""
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False).stdout


def end(process: subprocess.Popen) -> None:
    """End a process that this one started."""
    process.terminate()
    try:
        process.wait(10)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
