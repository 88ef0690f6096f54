"""One face for the two generations of cryosparc-tools, 4.x and 5.x: what an external job needs of them, no more.

Passwords, tokens and licences come from the environment or from the tools' own login, never from the command line, and
leave this module in no message: the tools put them into some of their errors.
"""

from __future__ import annotations

import os
import time
import traceback
import warnings
from collections.abc import Callable, Mapping, Sequence
from hashlib import sha256
from pathlib import Path, PurePath
from typing import Any
from urllib.parse import urlsplit

from flex_job.problems import InputProblems
from flex_job.progress import Progress

__all__ = [
    "ENDED",
    "RUNNING",
    "ExternalJob",
    "Instance",
    "SlotNames",
    "connect",
    "traceback_without_secrets",
    "without_secrets",
]

SECRETS = ("CRYOSPARC_LICENSE_ID", "CRYOSPARC_PASSWORD", "CRYOSPARC_TOKEN")
DEFAULT_PORT = 39000
RUNNING = ("running", "waiting", "started", "launched")
ENDED = ("completed", "killed", "failed")
PROGRESS_EVERY_S = {4: 120.0, 5: 2.0}  # a line that cannot be updated, as 4.x cannot, is a new one

SlotNames = Sequence[str | tuple[str, str]]
"""Slots by name, or as (name, type) where the two differ. A ? before a name: not required."""


def without_secrets(text: str, environment: Mapping[str, str] = os.environ) -> str:
    """`text` with each secret of the environment, and its SHA-256 that the tools send, blotted out."""
    for name in SECRETS:
        secret = environment.get(name, "")
        for shown in (secret, sha256(secret.encode()).hexdigest()) if secret else ():
            text = text.replace(shown, f"<{name}>")
    return text


def connect(url: str = "", environment: Mapping[str, str] = os.environ) -> Instance:
    """Connect to the instance at `url` (http://host:39000), by default the one that the environment names.

    Raises InputProblems with what is missing: the package, the address, the login.
    """
    # 4.x sleeps between its three tries, in the middle of the work
    os.environ.setdefault("CRYOSPARC_COMMAND_RETRY_SECONDS", "2")
    try:
        import cryosparc  # type: ignore[import-untyped]
        from cryosparc.tools import CryoSPARC  # type: ignore[import-untyped]
    except ImportError as error:
        raise InputProblems(
            [
                f"cryosparc-tools cannot be imported ({error}); install the version of your CryoSPARC: "
                'pip install "cryosparc-tools~=5.0.0" (or ~=4.7.0)'
            ]
        ) from None
    major = int(cryosparc.__version__.split(".")[0])
    if major not in PROGRESS_EVERY_S:
        raise InputProblems([f"cryosparc-tools {cryosparc.__version__} is installed; expected 4.x or 5.x"])
    host, port = environment.get("CRYOSPARC_MASTER_HOSTNAME", ""), environment.get("CRYOSPARC_BASE_PORT", "")
    url = url or environment.get("CRYOSPARC_BASE_URL", "") or (host and f"http://{host}:{port or DEFAULT_PORT}")
    problems = []
    login = {name: environment.get(f"CRYOSPARC_{name.upper()}", "") for name in ("email", "password")}
    problems += _address_problems(url)
    if major == 4:
        login["license"] = environment.get("CRYOSPARC_LICENSE_ID", "")
        missing = [
            f"CRYOSPARC_{'LICENSE_ID' if name == 'license' else name.upper()}" for name in login if not login[name]
        ]
        if missing:
            problems.append(f"{', '.join(missing)} not set; cryosparc-tools {cryosparc.__version__} logs in with them")
    if problems:
        raise InputProblems(problems)
    where = urlsplit(url)
    address: dict[str, Any] = (
        {"host": where.hostname, "base_port": where.port or DEFAULT_PORT}
        if major == 4
        else {"base_url": url.rstrip("/"), "host": None, "base_port": None}
    )
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # they repeat the error that follows
            found = CryoSPARC(**address, **{name: value or None for name, value in login.items()})
    except Exception as error:
        reason = without_secrets(" ".join(str(error).split()), environment)
        cause = without_secrets(" ".join(str(error.__cause__ or "").split()), environment)
        if any(login[name] and login[name] in reason + cause for name in ("password", "license") if name in login):
            reason = cause = type(error).__name__  # shown in another form than was looked for
        raise InputProblems(
            [f"no login at {url}: {reason[:500]} {cause[:300]}".rstrip() + "; check address, version and login "
             "(python -m cryosparc.tools login, or CRYOSPARC_EMAIL and CRYOSPARC_PASSWORD)"]
        ) from None  # fmt: skip
    return Instance(found, major)


def _address_problems(url: str) -> list[str]:
    if not url:
        return ["no CryoSPARC instance named; give --url http://host:39000, or set CRYOSPARC_BASE_URL"]
    try:
        where = urlsplit(url)
        sound = where.scheme in ("http", "https") and where.hostname and (where.port is None or where.port > 0)
    except ValueError:
        sound = False
    if not sound:
        return [f"--url {url}: not an address; expected such as http://host:39000"]
    if where.username or where.password:
        return ["--url: it holds a login, which others can see; log in with python -m cryosparc.tools login instead"]
    return []


class Instance:
    """A connection. `major` is the version of the tools, 4 or 5."""

    def __init__(self, tools: Any, major: int) -> None:
        self.tools, self.major = tools, major

    def version_note(self) -> str:
        """A line when the instance's version is not that of the tools, which may then not understand it."""
        import cryosparc

        tools = self.tools
        ask = tools.cli.get_running_version if self.major == 4 else tools.api.config.get_version
        found, ours = str(ask()).removeprefix("v"), str(cryosparc.__version__)
        if found.split(".")[:2] == ours.split(".")[:2]:
            return ""
        wanted = ".".join(found.split(".")[:2])
        return (
            f"CryoSPARC is version {found} and cryosparc-tools {ours}, which may not understand it; expected "
            f"cryosparc-tools~={wanted}.0"
        )

    def project_folder(self, project: str) -> Path:
        """The project's folder, as the master sees it."""
        return Path(_called(self.tools.find_project(project).dir))

    def create_job(self, project: str, workspace: str, title: str) -> ExternalJob:
        """A new external job. Raises InputProblems when project or workspace are not there."""
        try:
            job = self.tools.find_project(project).create_external_job(workspace, title=title)
        except Exception as error:
            reason = without_secrets(" ".join(str(error).split()))[:500]
            raise InputProblems(
                [f"no external job can be made in project {project}, workspace {workspace}: {reason}; check both"]
            ) from None
        return ExternalJob(self, job)

    def find_job(self, project: str, uid: str) -> ExternalJob:
        """An external job that is there already."""
        return ExternalJob(self, self.tools.find_external_job(project, uid))

    def download(self, project: str, name: str, target: Path) -> None:
        """Copy a file of the project here; aside, then renamed."""
        target.parent.mkdir(parents=True, exist_ok=True)
        part = target.with_name(f".{target.name}.part")
        self.tools.download_file(project, name, str(part))
        part.replace(target)


class ExternalJob:
    """An external job of either generation."""

    def __init__(self, instance: Instance, job: Any) -> None:
        self.instance, self.job = instance, job
        self._next: dict[str, float] = {}

    @property
    def uid(self) -> str:
        return str(self.job.uid)

    @property
    def folder(self) -> Path:
        """The job's folder, as the master sees it."""
        return Path(_called(self.job.dir))

    def add_input(self, kind: str, name: str, slots: SlotNames, title: str, required: bool) -> None:
        self.job.add_input(kind, name, min=int(required), max=1, slots=self._slots(slots), title=title)

    def connect(self, name: str, source_job: str, source_output: str) -> None:
        self.job.connect(name, source_job, source_output)

    def has_input(self, name: str) -> bool:
        """Whether an input of that name was declared."""
        if self.instance.major == 4:
            return any(group["name"] == name for group in self.job.doc["input_slot_groups"])
        return name in self.job.inputs

    def load_input(self, name: str) -> Any:
        """The connected dataset with all its slots, passed-through ones too."""
        return self.job.load_input(name)

    def add_output(self, kind: str, name: str, slots: SlotNames, title: str, passthrough: str | None = None) -> None:
        self.job.add_output(kind, name, slots=self._slots(slots), title=title, passthrough=passthrough)

    def save_output(self, name: str, rows: Any, fill: Callable[[Any], None]) -> None:
        """Save output `name`: `rows` is a count, or the uids (n,) that it keeps; `fill` sets the fields."""
        dataset = self.job.alloc_output(name, rows)
        fill(dataset)
        self.job.save_output(name, dataset)

    def upload(self, path: Path) -> None:
        """Copy a file into the job's folder, over what is there."""
        self.job.upload(path.name, path, overwrite=True)

    def log(self, line: str, level: str = "text") -> None:
        """A line in the event log."""
        if level == "warning" and self.instance.major == 4:  # 4.7 shows any level but text as an error
            line, level = f"warning: {line}", "text"
        self.job.log(line, level=level)

    def show(self, progress: Progress) -> None:
        """How far the job is: one line of the event log for each stage, updated where the version can."""
        now = time.monotonic()
        if not progress.ended and now < self._next.get(progress.stage, 0.0):
            return
        self._next[progress.stage] = now + PROGRESS_EVERY_S[self.instance.major]
        if self.instance.major > 4:
            self.job.log(str(progress), name=progress.stage)
        elif progress.step or progress.ended:
            self.job.log(str(progress))

    def log_plot(self, figure: Any, text: str) -> None:
        self.job.log_plot(figure, text)

    def status(self) -> str:
        return str(self.job.refresh().status)

    def start(self) -> None:
        """Mark the job running; one that was ended by SIGKILL still is."""
        if self.status() not in RUNNING:
            self.job.start("running")

    def complete(self) -> None:
        self.job.stop()

    def fail(self, text: str) -> None:
        """Mark the job failed, with the reason in its event log."""
        if self.instance.major == 4:
            try:
                self.job.log(text, level="error")
            finally:
                self.job.stop(error=True)
        else:
            self.job.stop(error=text)

    def _slots(self, slots: SlotNames) -> list[Any]:
        """Slots as this generation writes them."""
        key = "prefix" if self.instance.major == 4 else "name"
        made: list[Any] = []
        for slot in slots:
            if isinstance(slot, str):
                made.append(slot)
            else:
                name, kind = slot
                made.append({key: name.removeprefix("?"), "dtype": kind, "required": not name.startswith("?")})
        return made


def _called(value: Any) -> str:
    """A path in 5.x, a method that gives one in 4.x."""
    return str(value if isinstance(value, PurePath) else value())


def traceback_without_secrets(error: BaseException) -> str:
    """The traceback of `error` for a log."""
    return without_secrets("".join(traceback.format_exception(error)))
