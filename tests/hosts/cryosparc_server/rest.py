"""CryoSPARC 5.0: REST calls that the client makes out of an OpenAPI document."""

from __future__ import annotations

import json
import re
import urllib.parse
from collections.abc import Mapping
from hashlib import sha256
from typing import Any

from hosts.cryosparc_server.handler import EMAIL, PASSWORD, TOKEN, Handler, as_dataset, as_table
from hosts.cryosparc_server.state import Group, Job, Refused

__all__ = ["Rest"]

JOB = {"application/json": {"schema": {"$ref": "#/components/schemas/Job"}}}
EVENT = {"application/json": {"schema": {"$ref": "#/components/schemas/TextEvent"}}}
TEXT: dict[str, Any] = {"application/json": {"schema": {"type": "string"}}}
ANY: dict[str, Any] = {"application/json": {"schema": {}}}
DATASET: dict[str, Any] = {"application/x-cryosparc-dataset": {"schema": {"title": "Dataset"}}}
STREAM: dict[str, Any] = {"application/octet-stream": {"schema": {"title": "Stream"}}}
FORM: dict[str, Any] = {"application/x-www-form-urlencoded": {"schema": {}}}
PROJECT = {"application/json": {"schema": {"$ref": "#/components/schemas/Project"}}}
P = "/projects/{project_uid}"
J = f"{P}/jobs/{{job_uid}}"
# (summary, method, path, query parameters, body, answer)
CALLS: list[tuple[str, str, str, str, Mapping[str, Any] | None, Mapping[str, Any]]] = [
    ("login", "post", "/login", "", FORM, {"application/json": {"schema": {"$ref": "#/components/schemas/Token"}}}),
    ("users.me", "get", "/users/me", "", None, {"application/json": {"schema": {"$ref": "#/components/schemas/User"}}}),
    ("config.get_version", "get", "/config/version", "", None, TEXT),
    ("projects.find_one", "get", P, "", None, PROJECT),
    ("projects.get_directory", "get", f"{P}/dir", "", None, TEXT),
    ("projects.download_file", "get", f"{P}/files", "path", None, STREAM),
    ("projects.upload_file", "post", f"{P}/files", "path overwrite", STREAM, TEXT),
    ("jobs.create", "post", f"{P}/workspaces/{{workspace_uid}}/jobs", "type title description", ANY, JOB),
    ("jobs.find_one", "get", J, "", None, JOB),
    ("jobs.get_directory", "get", f"{J}/dir", "", None, TEXT),
    ("jobs.add_external_input", "post", f"{J}/inputs/{{input_name}}", "", ANY, JOB),
    ("jobs.add_external_output", "post", f"{J}/outputs/{{output_name}}", "", ANY, JOB),
    ("jobs.connect", "post", f"{J}/inputs/{{input_name}}/connections", "source_job_uid source_output_name", None, JOB),
    ("jobs.load_input", "get", f"{J}/inputs/{{input_name}}/dataset", "slots", None, DATASET),
    ("jobs.get_output_fields", "post", f"{J}/outputs/{{output_name}}/fields", "", ANY, ANY),
    ("jobs.save_output", "post", f"{J}/outputs/{{output_name}}/dataset", "version", DATASET, JOB),
    ("jobs.mark_running", "post", f"{J}/running", "status", None, JOB),
    ("jobs.mark_completed", "post", f"{J}/completed", "", None, JOB),
    ("jobs.mark_failed", "post", f"{J}/failed", "error", None, JOB),
    ("jobs.add_event_log", "post", f"{J}/events", "type", ANY, EVENT),
    ("jobs.update_event_log", "patch", f"{J}/events/{{event_id}}", "type", ANY, EVENT),
    ("jobs.add_image_log", "post", f"{J}/images", "text flags", ANY, EVENT),
    ("assets.upload", "post", "/assets/{project_uid}/{job_uid}", "filename format", STREAM,
     {"application/json": {"schema": {"$ref": "#/components/schemas/GridFSAsset"}}}),
]  # fmt: skip


def openapi() -> dict[str, Any]:
    paths: dict[str, dict[str, Any]] = {}
    for summary, method, path, query, body, answer in CALLS:
        parameters = [{"name": n, "in": "path", "required": True} for n in re.findall(r"{(\w+)}", path)]
        parameters += [{"name": n, "in": "query", "required": False} for n in query.split()]
        entry: dict[str, Any] = {"summary": summary, "parameters": parameters}
        entry["responses"] = {"200": {"content": answer}, "422": {"content": ANY}}
        if body is not None:
            entry["requestBody"] = {"content": body}
        paths.setdefault(path, {})[method] = entry
    return {"info": {}, "paths": paths, "components": {}}


class Rest(Handler):
    """Version 5.0."""

    def route(self, path: str, query: dict[str, str], body: bytes) -> None:
        path = path.removeprefix("/api/cmd")
        if path == "/openapi.json":
            return self.answer(openapi())
        for summary, method, pattern, *_ in CALLS:
            match = re.fullmatch(re.sub(r"{(\w+)}", r"(?P<\1>[^/]+)", pattern), path)
            if match and method == self.command.lower():
                given = {name: urllib.parse.unquote(value) for name, value in match.groupdict().items()}
                if summary != "login" and self.headers.get("Authorization") != f"Bearer {TOKEN}":
                    return self.answer({"detail": "not logged in"}, 401)
                return getattr(self, summary.replace(".", "_"))(given, query, body)
        self.answer({"detail": f"no {self.command} {path}"}, 404)

    def login(self, given: dict[str, str], query: dict[str, str], body: bytes) -> None:
        form = dict(urllib.parse.parse_qsl(body.decode()))
        if (form["username"], form["password"]) != (EMAIL, sha256(PASSWORD.encode()).hexdigest()):
            raise Refused(f"wrong password {form['password']}")
        self.answer({"access_token": TOKEN, "token_type": "bearer"})

    def users_me(self, given: dict[str, str], query: dict[str, str], body: bytes) -> None:
        self.answer({"name": "ali", "first_name": "Ali", "last_name": "H"})

    def config_get_version(self, given: dict[str, str], query: dict[str, str], body: bytes) -> None:
        self.answer(self.instance.version or "v5.0.3")

    def projects_find_one(self, given: dict[str, str], query: dict[str, str], body: bytes) -> None:
        if given["project_uid"] != "P3":
            raise Refused(f"no project {given['project_uid']}")
        facts = {"project_dir": self._seen_folder(), "owner_user_id": "user", "title": "", "uid_num": 3}
        self.answer({"uid": "P3", "size_last_updated": "2026-01-01T00:00:00Z", **facts})

    def projects_get_directory(self, given: dict[str, str], query: dict[str, str], body: bytes) -> None:
        self.answer(self._seen_folder())

    def _seen_folder(self) -> str:
        return str(self.instance.told_folder)

    def projects_download_file(self, given: dict[str, str], query: dict[str, str], body: bytes) -> None:
        self.answer(self.file(query["path"]).read_bytes(), kind="application/octet-stream")

    def projects_upload_file(self, given: dict[str, str], query: dict[str, str], body: bytes) -> None:
        self.file(query["path"]).write_bytes(body)
        self.answer(query["path"])

    def jobs_create(self, given: dict[str, str], query: dict[str, str], body: bytes) -> None:
        if given["project_uid"] != "P3" or given["workspace_uid"] != "W1":
            raise Refused(f"no workspace {given['workspace_uid']} in {given['project_uid']}")
        assert query["type"] == "snowflake"
        self._job(self.instance.do("create", "", query.get("title", "")))

    def jobs_find_one(self, given: dict[str, str], query: dict[str, str], body: bytes) -> None:
        self._do("find", given)

    def jobs_get_directory(self, given: dict[str, str], query: dict[str, str], body: bytes) -> None:
        self.answer(f"{self._seen_folder()}/{given['job_uid']}")

    def jobs_add_external_input(self, given: dict[str, str], query: dict[str, str], body: bytes) -> None:
        spec = json.loads(body)
        slots = [(slot["name"], slot["dtype"], slot["required"]) for slot in spec["slots"]]
        self._do("add_input", given, given["input_name"], spec["type"], spec["title"], slots)

    def jobs_add_external_output(self, given: dict[str, str], query: dict[str, str], body: bytes) -> None:
        spec = json.loads(body)
        slots = [(slot["name"], slot["dtype"], True) for slot in spec["slots"]]
        name = given["output_name"]
        self._do("add_output", given, name, spec["type"], spec["title"], slots, spec.get("passthrough"))

    def jobs_connect(self, given: dict[str, str], query: dict[str, str], body: bytes) -> None:
        self._do("connect", given, given["input_name"], query["source_job_uid"], query["source_output_name"])

    def jobs_load_input(self, given: dict[str, str], query: dict[str, str], body: bytes) -> None:
        assert query["slots"] == "all"
        table = self.instance.do("load_input", given["job_uid"], given["input_name"])
        content = b"".join(as_dataset(table).stream())
        self.answer(content, kind="application/x-cryosparc-dataset")

    def jobs_get_output_fields(self, given: dict[str, str], query: dict[str, str], body: bytes) -> None:
        self.answer(self.instance.do("output_fields", given["job_uid"], given["output_name"]))

    def jobs_save_output(self, given: dict[str, str], query: dict[str, str], body: bytes) -> None:
        self._do("save_output", given, given["output_name"], as_table(body))

    def jobs_mark_running(self, given: dict[str, str], query: dict[str, str], body: bytes) -> None:
        self._do("set_status", given, query["status"])

    def jobs_mark_completed(self, given: dict[str, str], query: dict[str, str], body: bytes) -> None:
        self._do("set_status", given, "completed")

    def jobs_mark_failed(self, given: dict[str, str], query: dict[str, str], body: bytes) -> None:
        self._do("set_status", given, "failed", query.get("error", ""))

    def jobs_add_event_log(self, given: dict[str, str], query: dict[str, str], body: bytes) -> None:
        self._event(given, json.loads(body), query.get("type", "text"))

    def jobs_update_event_log(self, given: dict[str, str], query: dict[str, str], body: bytes) -> None:
        self._event(given, json.loads(body), query.get("type", "text"), event=given["event_id"])

    def jobs_add_image_log(self, given: dict[str, str], query: dict[str, str], body: bytes) -> None:
        self._event(given, query["text"], "image", images=json.loads(body))

    def assets_upload(self, given: dict[str, str], query: dict[str, str], body: bytes) -> None:
        number = self.instance.add_asset(query["filename"], body)
        self.answer({"fileid": number, "filename": query["filename"], "filetype": query["format"]})

    def _event(self, given: dict[str, str], text: str, kind: str, **options: Any) -> None:
        number = self.instance.do("log", given["job_uid"], text, kind, **options)
        shown = kind if kind != "image" else "text"
        self.answer({"_id": number, "project_uid": "P3", "job_uid": given["job_uid"], "type": shown, "text": text})

    def _do(self, operation: str, given: dict[str, str], *arguments: Any) -> None:
        if operation == "find":
            self.instance.refuse("find", self.instance.jobs.get(given["job_uid"]))
        else:
            self.instance.do(operation, given["job_uid"], *arguments)
        job = self.instance.jobs.get(given["job_uid"])
        if job is None:
            raise Refused(f"no job {given['job_uid']}")
        self._job(job)

    def _job(self, job: Job) -> None:
        def spec(group: Group) -> dict[str, Any]:
            slots = [{"name": name, "dtype": kind} for name, kind, _ in group.slots]
            return {"type": group.kind, "title": group.title, "slots": slots}

        self.answer(
            {
                "uid": job.uid, "project_uid": "P3", "job_dir": job.uid, "status": job.status, "title": job.title,
                "job_dir_size_last_updated": "2026-01-01T00:00:00Z", "uid_num": 1, "project_uid_num": 3,
                "status_num": 0, "build_errors": [],
                "spec": {
                    "type": job.kind, "ui_tile_width": 1, "ui_tile_height": 1, "resource_spec": {},
                    "inputs": {name: spec(group) for name, group in job.inputs.items()},
                    "outputs": {name: spec(group) for name, group in job.outputs.items()},
                },
            }
        )  # fmt: skip
