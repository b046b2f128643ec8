"""SLURM on this machine: a controller and two virtual nodes of two CPUs each, with all files in one temporary folder.

As root, with the packages of `apt-get install -y --no-install-recommends slurm-wlm munge` (Debian's names).
"""

import contextlib
import os
import platform
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from tests.timeouts import scaled, wait_until

PROGRAMS = ("slurmctld", "slurmd", "munged", "sbatch", "srun", "scontrol", "squeue")
# cred_expire: a job that is requeued waits that long and a second before it can start again; by default two minutes.
CONF = """
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket,cred_expire=5
CredType=cred/munge
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SwitchType=switch/none
MpiDefault=none
SchedulerParameters=sched_interval=2,bf_interval=2
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
ReturnToService=2
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
KillWait=10
SlurmdParameters=config_overrides
NodeName=n[1-2] NodeHostname={host} NodeAddr=127.0.0.1 Port=[{ports[1]}-{ports[2]}] CPUs=2 RealMemory=4000 State=UNKNOWN
PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""


def missing() -> str:
    """Why SLURM cannot be started here; empty where it can."""
    absent = [program for program in PROGRAMS if shutil.which(program) is None]
    if absent:
        return f"{', '.join(absent)} not installed"
    return "" if os.geteuid() == 0 else "not root"


class Slurm:
    """A running SLURM. variables: the environment variables that its commands need."""

    def __init__(self, variables: Mapping[str, str]) -> None:
        self.variables = variables

    def call(self, *words: str) -> str:
        """The standard output of one of SLURM's commands."""
        environment = os.environ | self.variables
        return subprocess.run(words, env=environment, capture_output=True, text=True, check=True, timeout=scaled(60)).stdout

    def tasks(self, state: str = "all") -> list[str]:
        """Ids of the jobs in a state, such as RUNNING, each task of an array by itself."""
        return self.call("squeue", "--noheader", "--array", "--format=%i", f"--states={state}").split()

    def unfinished(self) -> list[str]:
        """Ids of the jobs that run or will run."""
        return self.tasks("PENDING,RUNNING,COMPLETING,CONFIGURING,REQUEUED,SUSPENDED")

    def state(self, job: str) -> str:
        """A job's state and exit code, such as "COMPLETED 0:0"."""
        words = dict(word.partition("=")[::2] for word in self.call("scontrol", "show", "job", job).split())
        return f"{words['JobState']} {words['ExitCode']}"


@contextlib.contextmanager
def one_host_slurm() -> Iterator[Slurm]:
    """Start SLURM and stop it with all its jobs."""
    folder = Path(tempfile.mkdtemp(prefix="slurm-"))  # short: the name of a socket has at most 107 bytes
    daemons: list[subprocess.Popen[bytes]] = []
    slurm = Slurm({"SLURM_CONF": str(folder / "slurm.conf")})

    def start(*words: str | Path) -> None:
        with open(folder / f"{len(daemons)}.log", "wb") as log:
            environment = os.environ | slurm.variables
            daemons.append(subprocess.Popen(words, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environment))

    try:
        (folder / "state").mkdir()
        host = platform.node().partition(".")[0]
        (folder / "slurm.conf").write_text(CONF.format(folder=folder, host=host, ports=free_ports(3)))
        key = folder / "munge.key"
        key.write_bytes(os.urandom(128))
        key.chmod(0o600)
        files = [f"--{name}-file={folder}/munge.{name}" for name in ("key", "pid", "log", "seed")]
        start("munged", "--foreground", "--force", f"--socket={folder}/munge.socket", *files)
        assert wait_until((folder / "munge.socket").exists), (folder / "0.log").read_text()
        start("slurmctld", "-D")
        for node in ("n1", "n2"):
            (folder / f"spool-{node}").mkdir()
            start("slurmd", "-D", "-N", node)
        assert wait_until(lambda: _idle_nodes(slurm) == 2), [file.read_text() for file in folder.glob("*.log")]
        yield slurm
    finally:
        with contextlib.suppress(subprocess.SubprocessError):
            if jobs := slurm.unfinished():
                slurm.call("scancel", *jobs)
            wait_until(lambda: not slurm.unfinished())
        for daemon in reversed(daemons):
            daemon.terminate()
        for daemon in daemons:
            with contextlib.suppress(subprocess.TimeoutExpired):
                daemon.wait(scaled(20))
            daemon.kill()
            daemon.wait()
        shutil.rmtree(folder, ignore_errors=True)


def _idle_nodes(slurm: Slurm) -> int:
    with contextlib.suppress(subprocess.CalledProcessError):
        return len(slurm.call("sinfo", "--noheader", "--Node", "--states=idle").splitlines())
    return 0


def free_ports(count: int) -> Sequence[int]:
    """Consecutive ports that nothing listens on."""
    for first in range(17_000, 30_000, count):
        with contextlib.ExitStack() as stack, contextlib.suppress(OSError):
            for port in range(first, first + count):
                stack.enter_context(socket.socket()).bind(("127.0.0.1", port))
            return range(first, first + count)
    raise AssertionError("no free ports")
