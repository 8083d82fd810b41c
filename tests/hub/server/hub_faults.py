"""HTTP for the Hub on loopback: requests are recorded, and fail where a test wants them to."""

import json
import mmap
import re
import socket
import struct
import sys
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote

_RANGE = re.compile(r"bytes=(\d+)-(\d*)")


@dataclass
class Fault:
    """A failure of the requests in whose `METHOD /path?query`, unquoted, the regular expression `match` is found."""

    match: str
    times: int = 1  # how often; later requests are answered as ever
    skip: int = 0  # matching requests that are spared first
    status: int | None = None  # answered, and nothing is done
    headers: dict[str, str] = field(default_factory=dict)  # of that answer, such as `Retry-After`
    # `before answer` closes the connection; `body` resets it in the middle of the body of the request or, if that has
    # none or with `after`, of the answer.
    drop: str | None = None
    after: bool = False  # the request is carried out first, and the client does not know
    delay: float = 0.0  # seconds before anything happens
    stall: float = 0.0  # seconds of silence in the middle of the answer's body
    trickle: int | None = None  # bytes a second of the answer's body
    corrupt: bool = False  # one bit in the middle of the answer's body is flipped
    truncate: bool = False  # the connection is closed properly in the middle of the answer's body
    hits: int = 0

    def strikes(self, request: str) -> bool:
        """Whether this request fails, which is counted."""
        if self.hits >= self.times or not re.search(self.match, request):
            return False
        self.skip -= 1
        self.hits += self.skip < 0
        return self.skip < 0


@dataclass
class Recorded:
    """A request: its path unquoted and with the query, its headers by lower-case names, its status once answered."""

    method: str
    path: str
    headers: dict[str, str]
    status: int | None = None


@dataclass
class Reply:
    """An answer."""

    status: int = 200
    body: bytes | memoryview = b""
    headers: dict[str, str] = field(default_factory=dict)


def answer(content: Any, status: int = 200, **headers: str) -> Reply:
    """Returns an answer in JSON; underscores in the names of headers are hyphens."""
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return Reply(status, json.dumps(content, default=str).encode(), {"Content-Type": "application/json", **named})


def ranged(headers: Mapping[str, str], path: Path, etag: str, more: Mapping[str, str] | None = None) -> Reply:
    """Returns a file, or the range of it that the headers ask for."""
    given = {"ETag": f'"{etag}"', "Accept-Ranges": "bytes", "Content-Type": "application/octet-stream", **(more or {})}
    size = path.stat().st_size
    with path.open("rb") as file:
        body = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) if size else b"")
    asked = _RANGE.fullmatch(headers.get("Range", ""))
    if asked is None:
        return Reply(200, body, given)
    begin, end = int(asked[1]), min(size, int(asked[2] or size) + 1)
    if begin >= end:
        raise Refused(416, "Range Not Satisfiable", Content_Range=f"bytes */{size}")
    return Reply(206, body[begin:end], {**given, "Content-Range": f"bytes {begin}-{end - 1}/{size}"})


class Refused(Exception):
    """The answer to a request that is refused, in the Hub's words."""

    def __init__(self, status: int, message: str, code: str | None = None, **headers: str) -> None:
        super().__init__(message)
        known = {"X_Error_Message": message, **({"X_Error_Code": code} if code else {}), **headers}
        self.reply = answer({"error": message}, status, **known)


class _Cut(Exception):
    """The end of a connection."""


class Handler(BaseHTTPRequestHandler):
    """Serves one connection; the server's `hub` gives the answers."""

    protocol_version = "HTTP/1.1"
    # Headers and body are two writes, and without this each answer would wait 40 ms for an acknowledgement.
    disable_nagle_algorithm = True
    timeout = 60.0
    server: "Listener"

    def do_GET(self) -> None:
        hub, size = self.server.hub, int(self.headers.get("Content-Length", 0))
        headers = {name.lower(): value for name, value in self.headers.items()}
        recorded, fault = hub.note(Recorded(self.command, unquote(self.path), headers))
        fault = fault or Fault("")
        try:
            hub.closing.wait(fault.delay)
            early = None if fault.after else fault.drop
            self.content = self.rfile.read(size // 2 if early == "body" else size)
            if early == "body" and size:
                self._reset()
            if early == "before answer":
                raise _Cut
            reply = Reply() if fault.status and not fault.after else self._answer()
            if fault.drop == "before answer":
                raise _Cut
            if fault.status:
                reply = Refused(fault.status, f"fault {fault.status}").reply
                reply.headers |= fault.headers
            recorded.status = reply.status
            self._send(reply, fault)
        except (_Cut, ConnectionError, TimeoutError):
            self.close_connection = True

    do_HEAD = do_POST = do_PUT = do_GET

    def _answer(self) -> Reply:
        try:
            return self.server.hub.serve(self)
        except Refused as refused:
            return refused.reply
        except Exception as error:
            self.server.hub.failures.append(error)
            return Refused(500, f"the server of the test failed: {error!r}").reply

    def _send(self, reply: Reply, fault: Fault) -> None:
        self.send_response(reply.status)
        for name, value in {"Content-Length": str(len(reply.body)), **reply.headers}.items():
            self.send_header(name, " ".join(value.split()).encode("latin-1", "replace").decode("latin-1"))
        self.end_headers()
        if self.command == "HEAD":
            return
        middle = len(reply.body) // 2
        self._write(reply.body[:middle], fault.trickle)
        if fault.drop == "body":
            self._reset()
        if fault.truncate:
            raise _Cut
        self.server.hub.closing.wait(fault.stall)
        rest = reply.body[middle:]
        self._write(bytes([rest[0] ^ 1]) + rest[1:] if fault.corrupt and rest else rest, fault.trickle)

    def _write(self, data: bytes | memoryview, pace: int | None) -> None:
        step = max(1, pace // 20 if pace else len(data))
        for start in range(0, len(data), step):
            self.wfile.write(data[start : start + step])
            if pace:
                self.server.hub.closing.wait(step / pace)

    def _reset(self) -> None:
        # Closed with a linger of no time, a connection ends in a RST.
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.connection.close()
        raise _Cut

    def log_message(self, format: str, *args: object) -> None:
        """Writes nothing: the hub records."""


class Listener(ThreadingHTTPServer):
    """Listens on a free port of 127.0.0.1 until it is closed."""

    daemon_threads = True
    request_queue_size = 128

    def __init__(self, hub: Any) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.hub = hub
        self.url = f"http://127.0.0.1:{self.server_address[1]}"
        self._thread = threading.Thread(target=self.serve_forever, args=(0.02,))
        self._thread.start()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Keeps what is an error of this server; that a client goes away is none."""
        if not isinstance(error := sys.exc_info()[1], OSError):
            self.hub.failures.append(error)

    def close(self) -> None:
        self.shutdown()
        self._thread.join()
        self.server_close()
