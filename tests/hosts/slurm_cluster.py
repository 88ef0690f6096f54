"""A real SLURM of one computer on loopback, for the tests: its daemons run as whoever runs the tests, without systemd.

Keys, sockets, state and logs lie in one folder; nothing outside of it is touched. The node claims CPUs and GPUs that
need not exist, so that the tests are the same on every machine.
"""

from __future__ import annotations

import os
import pwd
import secrets
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

__all__ = ["CPUS", "GPUS", "PROGRAMS", "Cluster", "missing_program", "running_cluster"]

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "scontrol", "squeue", "scancel")
NODES, CPUS, GPUS = ("flex1", "flex2"), 2, 1  # CPUs and GPUs of each node
T = TypeVar("T")
CONFIGURATION = """\
ClusterName=flextest
SlurmctldHost={host}(127.0.0.1)
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket,cred_expire=5
CredType=cred/munge
SlurmctldPort={ports[0]}
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool_%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd_%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd_%n.log
SlurmdParameters=config_overrides
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SwitchType=switch/none
SchedulerType=sched/backfill
SchedulerParameters=bf_interval=1,sched_interval=1,requeue_setup_env_fail
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
GresTypes=gpu
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
JobRequeue=1
KillWait=20
MpiDefault=none
ReturnToService=2
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
NodeName=DEFAULT CPUs={cpus} RealMemory=900000 Gres=gpu:{gpus} State=UNKNOWN
NodeName={nodes[0]} NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[1]}
NodeName={nodes[1]} NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[2]}
PartitionName=low  Nodes=ALL Default=YES MaxTime=INFINITE State=UP PriorityTier=1  PreemptMode=REQUEUE GraceTime=20
PartitionName=high Nodes=ALL Default=NO  MaxTime=INFINITE State=UP PriorityTier=10 PreemptMode=OFF
"""


def missing_program() -> str:
    """The first of SLURM's programs that is not installed; empty when all are."""
    return next((name for name in PROGRAMS if program(name) is None), "")


def program(name: str) -> str | None:
    """Daemons are in sbin, which is not on every user's PATH."""
    return shutil.which(name, path=f"{os.environ.get('PATH', os.defpath)}:/usr/sbin:/sbin:/usr/local/sbin")


@dataclass(frozen=True)
class Cluster:
    """A running SLURM; its configuration is in SLURM_CONF of the environment."""

    folder: Path

    def ask(self, *command: str) -> str:
        """What one of SLURM's programs prints; it must succeed."""
        done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
        assert done.returncode == 0, f"{' '.join(command)}: {done.stdout}{done.stderr}\n{self.logs()}"
        return done.stdout

    def show(self, job: str) -> dict[str, str]:
        """scontrol show job."""
        shown = self.ask("scontrol", "show", "job", "-o", job)
        return dict(entry.split("=", 1) for entry in shown.split() if "=" in entry)

    def state(self, job: str) -> str:
        return self.show(job)["JobState"]

    def wait_for(self, job: str, *states: str, seconds: float = 240.0) -> dict[str, str]:
        """Wait until the job is in one of the states; fails with the logs when it does not get there."""
        return self.wait_until(lambda: self.show(job), lambda shown: shown["JobState"] in states, seconds)

    def wait_until(self, look: Callable[[], T], good: Callable[[T], bool], seconds: float = 240.0) -> T:
        until = time.monotonic() + seconds
        while not good(seen := look()):
            assert time.monotonic() < until, f"after {seconds} s: {seen}\n{self.logs()}"
            time.sleep(0.1)
        return seen

    def logs(self) -> str:
        return "\n".join(path.read_text()[-3000:] for path in sorted(self.folder.glob("slurm*.log")))


@contextmanager
def running_cluster(folder: Path) -> Iterator[Cluster]:
    """Start the daemons with everything in `folder`, set SLURM_CONF, and end them all on leaving."""
    folder.chmod(0o755)  # munged insists
    for name in ("state", *(f"spool_{node}" for node in NODES)):
        (folder / name).mkdir()
    key = folder / "munge.key"
    key.write_bytes(secrets.token_bytes(1024))
    key.chmod(0o400)
    conf = folder / "slurm.conf"
    host, user = socket.gethostname().split(".")[0], pwd.getpwuid(os.getuid()).pw_name
    text = CONFIGURATION.format(
        host=host, user=user, folder=folder, ports=_free_ports(3), nodes=NODES, cpus=CPUS, gpus=GPUS
    )
    conf.write_text(text)
    # any device file will do: nothing opens it
    (folder / "gres.conf").write_text("Name=gpu File=/dev/null\n")
    before = os.environ.get("SLURM_CONF")
    os.environ["SLURM_CONF"] = str(conf)
    cluster, daemons = Cluster(folder), []
    try:
        for name, *arguments in (
            ("munged", "--foreground", "--force", f"--key-file={key}", f"--socket={folder}/munge.socket",
             f"--pid-file={folder}/munged.pid", f"--log-file={folder}/munged.log", f"--seed-file={folder}/munged.seed"),
            ("slurmctld", "-D", "-c"),
            *(("slurmd", "-D", "-N", node) for node in NODES),
        ):  # fmt: skip
            path = program(name)
            assert path is not None
            with (folder / f"{name}.out").open("ab") as said:
                daemons.append(subprocess.Popen([path, *arguments], stdout=said, stderr=said, start_new_session=True))
            if name == "munged":
                cluster.wait_until(lambda: (folder / "munge.socket").exists(), bool, 10)
        cluster.wait_until(_node_states, lambda states: states == ["idle"] * len(NODES), 30)
        yield cluster
        subprocess.run(["scancel", "--signal=KILL", "--full", f"--user={user}"], timeout=20, check=False)
    finally:
        for daemon in reversed(daemons):
            daemon.terminate()
        for daemon in daemons:
            try:
                daemon.wait(timeout=2)
            except subprocess.TimeoutExpired:
                daemon.kill()
        if before is None:
            del os.environ["SLURM_CONF"]
        else:
            os.environ["SLURM_CONF"] = before


def _node_states() -> list[str]:
    command = ["sinfo", "-h", "-N", "-p", "low", "-o", "%T"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    return done.stdout.split()


def _free_ports(count: int) -> list[int]:
    probes = [socket.socket() for _ in range(count)]
    for probe in probes:
        probe.bind(("127.0.0.1", 0))
    ports = [int(probe.getsockname()[1]) for probe in probes]
    for probe in probes:
        probe.close()
    return ports
