"""CryoSPARC 4.7: JSON-RPC at three ports, files and datasets beside it; all three answer alike here."""

from __future__ import annotations

import json
import re
from typing import Any

from hosts.cryosparc_server.handler import EMAIL, LICENSE, PASSWORD, Handler, as_dataset, as_table
from hosts.cryosparc_server.state import SLOT_FIELDS, Refused

__all__ = ["Rpc"]


class Rpc(Handler):
    """Version 4.7."""

    def route(self, path: str, query: dict[str, str], body: bytes) -> None:
        if self.headers.get("License-ID") != LICENSE:
            return self.answer({"error": "license"}, 401)
        if path == "/api":
            return self.call(json.loads(body))
        if path == "/load_job_input":
            given = json.loads(body)
            table = self.instance.do("load_input", given["job_uid"], given["input_name"])
            content = b"".join(as_dataset(table).stream())
            return self.answer(content, kind="application/x-cryosparc-dataset")
        if path == "/get_project_file":
            return self.answer(self.file(json.loads(body)["path"]).read_bytes(), kind="application/octet-stream")
        if match := re.fullmatch(r"/external/projects/P3/jobs/(J\d+)/outputs/(\w+)/dataset", path):
            self.instance.do("save_output", match[1], match[2], as_table(body))
            return self.answer({})
        if re.fullmatch(r"/projects/P3/jobs/(J\d+)/files", path):
            number = self.instance.add_asset(query["filename"], body)
            return self.answer({"fileid": number, "filename": query["filename"], "filetype": query["format"]}, 201)
        if path == "/projects/P3/files":
            self.file(query["path"]).write_bytes(body)
            return self.answer({}, 201)
        self.answer({"detail": f"no {path}"}, 404)

    def call(self, request: dict[str, Any]) -> None:
        name, given = request["method"], request["params"]
        names = [method for method in dir(self) if method.startswith("rpc_")]
        try:
            if name == "system.describe":
                result: Any = {"procs": [{"name": method.removeprefix("rpc_")} for method in names]}
            else:
                method = getattr(self, f"rpc_{name}")
                result = method(**given) if isinstance(given, dict) else method(*given)
        except Refused as error:
            return self.answer({"error": {"message": str(error), "code": 400}})
        self.answer({"result": result})

    def rpc_get_id_by_email_password(self, email: str, password: str) -> str:
        if (email, password) != (EMAIL, PASSWORD):
            raise Refused("wrong password")
        return "user"

    def rpc_get_running_version(self) -> str:
        return self.instance.version or "v4.7.1"

    def rpc_get_project(self, project: str) -> dict[str, Any]:
        if project != "P3":
            raise Refused(f"no project {project}")
        return {"uid": project}

    def rpc_get_project_dir_abs(self, project: str) -> str:
        return str(self.instance.told_folder)

    def rpc_get_job_dir_abs(self, project: str, job: str) -> str:
        return f"{self.rpc_get_project_dir_abs(project)}/{job}"

    def rpc_get_job(self, project: str, uid: str) -> dict[str, Any]:
        job = self.instance.jobs.get(uid)
        self.instance.refuse("find", job)
        if job is None:
            raise Refused(f"no job {uid}")
        results = [
            {"group_name": name, "name": slot, "passthrough": False, "min_fields": [list(f) for f in SLOT_FIELDS[kind]]}
            for name, group in job.outputs.items()
            for slot, kind, _ in group.slots
            if kind in SLOT_FIELDS
        ]
        return {
            "uid": uid, "job_type": job.kind, "status": job.status, "output_results": results,
            "input_slot_groups": [{"name": name} for name in job.inputs],
            "output_result_groups": [{"name": name} for name in job.outputs],
        }  # fmt: skip

    def rpc_create_external_job(self, project_uid: str, workspace_uid: str, user: str, title: str, desc: Any) -> str:
        if workspace_uid != "W1":
            raise Refused(f"no workspace {workspace_uid}")
        return str(self.instance.do("create", "", title).uid)

    def rpc_add_external_job_input(self, **given: Any) -> None:
        slots = [self._slot(slot) for slot in given["slots"]]
        name, kind, title = given["name"], given["type"], given["title"]
        self.instance.do("add_input", given["job_uid"], name, kind, title, slots)

    def rpc_add_external_job_output(self, **given: Any) -> None:
        slots = [self._slot(slot) for slot in given["slots"]]
        name, kind, title = given["name"], given["type"], given["title"]
        self.instance.do("add_output", given["job_uid"], name, kind, title, slots, given["passthrough"])

    def rpc_connect_external_job(self, **given: Any) -> None:
        source = given["source_job_uid"], given["source_output"]
        self.instance.do("connect", given["target_job_uid"], given["target_input"], *source)

    def rpc_run_external_job(self, project: str, uid: str, status: str) -> None:
        self.instance.do("set_status", uid, status)

    def rpc_set_job_status(self, project: str, uid: str, status: str) -> None:
        self.instance.do("set_status", uid, status)

    def rpc_job_send_streamlog(
        self, project_uid: str, job_uid: str, message: str, error: bool = False, flags: Any = (), imgfiles: Any = ()
    ) -> str:
        kind = "error" if error else "image" if imgfiles else "text"
        return str(self.instance.do("log", job_uid, message, kind, images=imgfiles))

    @staticmethod
    def _slot(slot: Any) -> tuple[str, str, bool]:
        if isinstance(slot, str):
            return slot, slot, True
        return slot["prefix"], slot["dtype"], slot.get("required", True)
