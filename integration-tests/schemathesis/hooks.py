"""What schemathesis has to know of our API beside its description."""

import os
import socket

import schemathesis
import urllib3.util.connection
from schemathesis import GenerationMode

# Seconds that an answer may take. Pausing takes five at most.
PATIENCE = 30


class UnixSocket(socket.socket):
    """A connection to the API's socket, whatever host and port are asked for."""

    def sendall(self, data, *flags):
        super().sendall(data, *flags)
        if bytes(data[:12]) == b"GET /events ":
            # The stream ends when its client closes its side, and not before.
            self.shutdown(socket.SHUT_WR)


def connect(*_, **__):
    connection = UnixSocket(socket.AF_UNIX)
    connection.settimeout(PATIENCE)
    connection.connect(os.environ["KINDLING_API_SOCK"])
    return connection


urllib3.util.connection.create_connection = connect


def has_null(value):
    if isinstance(value, dict):
        return any(member is None or has_null(member) for member in value.values())
    return isinstance(value, list) and any(map(has_null, value))


@schemathesis.hook
def filter_case(context, case):
    """Leaves out null members: the description says in words, not in schemas, that they count as absent."""
    return case.path.startswith("/mmds") or not has_null(case.body)


@schemathesis.hook
def map_case(context, case):
    """Makes what is valid mean something: the id of the path is in the body, and the machine stays in its state."""
    if case.meta is None or case.meta.generation.mode != GenerationMode.NEGATIVE:
        if isinstance(case.body, dict):
            for name in ("drive_id", "iface_id"):
                if name in case.body and name in (case.path_parameters or {}):
                    case.body[name] = case.path_parameters[name]
            if case.path == "/vm":
                case.body["state"] = os.environ["KINDLING_VM_STATE"]
    return case
