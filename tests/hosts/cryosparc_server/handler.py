"""What the servers of both versions need: bodies in either encoding, datasets, answers, errors."""

from __future__ import annotations

import io
import json
import urllib.parse
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import numpy as np
from hosts.cryosparc_server.state import Instance, Refused, Table

__all__ = ["EMAIL", "LICENSE", "PASSWORD", "TOKEN", "Handler", "as_dataset", "as_table"]

EMAIL, PASSWORD, LICENSE = "ali@example.com", "opensesame", "0a0a0a0a-1b1b-2c2c-3d3d-4e4e4e4e4e4e"
TOKEN = "token-of-the-session"


def as_dataset(table: Table) -> Any:
    """A dataset of whichever version of the tools is imported."""
    from cryosparc.dataset import Dataset

    return Dataset({name: values.astype(str) if values.dtype.kind == "S" else values for name, values in table.items()})


def as_table(content: bytes) -> Table:
    from cryosparc.dataset import Dataset

    dataset = Dataset.load(io.BytesIO(content))
    return {name: np.array(_fixed(dataset[name])) for name in dataset}


def _fixed(column: Any) -> Any:
    """Text of a column as numpy's own, as it is saved."""
    return column.to_fixed() if hasattr(column, "to_fixed") else column


class Handler(BaseHTTPRequestHandler):
    """What both generations need: bodies in either encoding, answers, errors."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # else each answer waits 40 ms for an acknowledgement
    instance: Instance

    def log_message(self, format: str, *arguments: Any) -> None:
        pass

    def body(self) -> bytes:
        if self.headers.get("Transfer-Encoding", "").lower() != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        parts = []
        while size := int(self.rfile.readline().split(b";")[0], 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(parts)

    def answer(self, content: Any, code: int = 200, kind: str = "application/json") -> None:
        payload = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(code)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(payload)))
        self.end_headers()
        self.wfile.write(payload)

    def handle_any(self) -> None:
        where = urllib.parse.urlsplit(self.path)
        query = dict(urllib.parse.parse_qsl(where.query))
        body = self.body()
        self.instance.seen.append(self.path)
        try:
            self.route(where.path, query, body)
        except Refused as error:
            self.refused(str(error))

    do_GET = do_POST = do_PUT = do_PATCH = handle_any

    def route(self, path: str, query: dict[str, str], body: bytes) -> None:
        raise NotImplementedError

    def refused(self, text: str) -> None:
        self.answer({"detail": text}, 422)

    def file(self, name: str) -> Path:
        return self.instance.folder / name
