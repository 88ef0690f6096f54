"""A CryoSPARC instance on loopback: answers the calls that external jobs make, of cryosparc-tools 4.7 and 5.0.

Requests and answers have the shapes that the clients' own sources send and understand.
"""

from __future__ import annotations

import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
from hosts.cryosparc_server.handler import EMAIL, LICENSE, PASSWORD, TOKEN
from hosts.cryosparc_server.rest import Rest
from hosts.cryosparc_server.rpc import Rpc
from hosts.cryosparc_server.state import Group, Instance, Job, Refused, Table

__all__ = ["EMAIL", "LICENSE", "PASSWORD", "TOKEN", "Group", "Instance", "Job", "Refused", "Table", "serve"]


def serve(instance: Instance, major: int) -> tuple[str, list[ThreadingHTTPServer]]:
    """Answer on loopback; returns the address and the servers, to be shut down."""
    handler = type("Bound", (Rest if major == 5 else Rpc,), {"instance": instance})
    if major == 5:
        servers = [ThreadingHTTPServer(("127.0.0.1", 0), handler)]
        base = servers[0].server_port
    else:
        base, servers = _three_ports(handler)
    for server in servers:
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
    return f"http://127.0.0.1:{base}", servers


def _three_ports(handler: type[BaseHTTPRequestHandler]) -> tuple[int, list[ThreadingHTTPServer]]:
    """command_core, command_vis and command_rtp are at base + 2, + 3 and + 5."""
    rng = np.random.default_rng()
    for _ in range(50):
        base = int(rng.integers(20000, 30000))
        servers: list[ThreadingHTTPServer] = []
        try:
            for offset in (2, 3, 5):
                servers.append(ThreadingHTTPServer(("127.0.0.1", base + offset), handler))
        except OSError:
            for server in servers:
                server.server_close()
            continue
        return base, servers
    raise OSError("no three free ports")
