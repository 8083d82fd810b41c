"""HTTP for the Hub on loopback: requests are recorded, and go wrong where a test wants them to."""

import json
import re
import socket
import struct
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote

PART = 2**20  # bytes held in memory at once
# Seconds without a byte, after which a client counts as gone.
_PATIENCE = 60.0
_RANGE = re.compile(r"bytes=(\d*)-(\d*)")


@dataclass
class Fault:
    """Something that goes wrong.

    Attributes:
        match: Regular expression, searched in `METHOD /path?query`, both as the client sends them but unquoted.
        times: How often it goes wrong; the requests after that are answered as ever.
        skip: Requests that match and are spared first.
        status: This status is answered, and nothing is done.
        headers: Headers of that answer, such as `Retry-After`.
        drop: `before answer` closes the connection without an answer; `body` resets it in the middle of the body of
            the request, or, where the request has none or with `after`, in the middle of the body of the answer.
        after: First do what was asked, then apply `status` or `drop`: it has happened and the client does not know.
        delay: Seconds before anything happens.
        stall: Seconds of silence in the middle of the body of the answer.
        trickle: Bytes a second at which the body of the answer comes.
        corrupt: The byte in the middle of the body of the answer is another; the length is right.
        truncate: The connection is closed properly after half of the body of the answer.
        hits: How often it has gone wrong.
    """

    match: str
    times: int = 1
    skip: int = 0
    status: int | None = None
    headers: dict[str, str] = field(default_factory=dict)
    drop: str | None = None
    after: bool = False
    delay: float = 0.0
    stall: float | None = None
    trickle: int | None = None
    corrupt: bool = False
    truncate: bool = False
    hits: int = 0

    def __post_init__(self) -> None:
        if self.drop not in (None, "before answer", "body"):
            raise ValueError(f"drop is `before answer` or `body`, got {self.drop!r}")

    @property
    def pace(self) -> int:
        """Bytes of the answer that are sent at once."""
        return PART if self.trickle is None else max(1, self.trickle // 20)

    def strikes(self, asked: str) -> bool:
        """Whether this request goes wrong, which is counted."""
        if self.hits >= self.times or not re.search(self.match, asked):
            return False
        self.skip -= 1
        self.hits += self.skip < 0
        return self.skip < 0


@dataclass
class Recorded:
    """A request: its path unquoted and with the query, its headers by lower-case names, None for no answer yet."""

    method: str
    path: str
    headers: dict[str, str]
    status: int | None = None


@dataclass
class Reply:
    """An answer; the body is in memory or in a file, of which `begin` to `end` is sent."""

    status: int = 200
    body: bytes | Path = b""
    headers: dict[str, str] = field(default_factory=dict)
    begin: int = 0
    end: int | None = None

    def __len__(self) -> int:
        whole = len(self.body) if isinstance(self.body, bytes) else self.body.stat().st_size
        return (whole if self.end is None else self.end) - self.begin

    def pieces(self, start: int, stop: int, size: int) -> Iterator[bytearray]:
        """Gives the bytes from start to stop, so many at a time."""
        start, stop = start + self.begin, stop + self.begin
        if isinstance(self.body, bytes):
            yield from (bytearray(self.body[at : min(at + size, stop)]) for at in range(start, stop, size))
            return
        with self.body.open("rb") as file:
            file.seek(start)
            yield from (bytearray(file.read(min(size, stop - at))) for at in range(start, stop, size))


def answer(content: Any, status: int = 200, **headers: str) -> Reply:
    """Returns an answer in JSON; underscores in the names of headers are hyphens."""
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return Reply(status, json.dumps(content, default=str).encode(), {"Content-Type": "application/json", **named})


def ranged(headers: Mapping[str, str], file: Path, etag: str, more: Mapping[str, str] | None = None) -> Reply:
    """Returns a file, or the range of it that the headers ask for."""
    size = file.stat().st_size
    given = {"ETag": f'"{etag}"', "Accept-Ranges": "bytes", "Content-Type": "application/octet-stream", **(more or {})}
    asked = _RANGE.fullmatch(headers.get("Range", ""))
    if asked is None or asked[1] == asked[2] == "":
        return Reply(200, file, given)
    first, last = asked.groups()
    begin = int(first) if first else max(0, size - int(last))
    end = min(size, int(last) + 1) if first and last else size
    if begin >= end:
        raise Refused(416, "Range Not Satisfiable", Content_Range=f"bytes */{size}")
    return Reply(206, file, {**given, "Content-Range": f"bytes {begin}-{end - 1}/{size}"}, begin, end)


class Refused(Exception):
    """The answer to a request that is refused, as the Hub words it."""

    def __init__(self, status: int, message: str, code: str | None = None, **headers: str) -> None:
        super().__init__(message)
        known = {"X_Error_Message": message, **({"X_Error_Code": code} if code else {}), **headers}
        self.reply = answer({"error": message}, status, **known)


class _Cut(Exception):
    """The connection ends here."""


class Handler(BaseHTTPRequestHandler):
    """Serves one connection; the server's `hub` says what is answered."""

    protocol_version = "HTTP/1.1"
    # Headers and body are two writes, and without this each answer would wait 40 ms for an acknowledgement.
    disable_nagle_algorithm = True
    timeout = _PATIENCE
    server: "Listener"

    def do_GET(self) -> None:
        hub, asked = self.server.hub, unquote(self.path)
        headers = {name.lower(): value for name, value in self.headers.items()}
        self._unread = self._announced()
        recorded, fault = hub.note(Recorded(self.command, asked, headers))
        fault = fault or Fault("")
        try:
            hub.closing.wait(fault.delay)
            self._fail_early(fault)
            reply = self._do(fault)
            if fault.drop == "before answer":
                raise _Cut
            if fault.status:
                reply = Refused(fault.status, f"fault {fault.status}").reply
                reply.headers |= fault.headers
            for _ in self.body():
                pass
            recorded.status = reply.status
            self._send(reply, fault)
        except (_Cut, ConnectionError, TimeoutError):
            self.close_connection = True

    do_HEAD = do_POST = do_PUT = do_DELETE = do_PATCH = do_GET

    def _do(self, fault: Fault) -> Reply:
        if fault.status and not fault.after:
            return Reply()
        try:
            return self.server.hub.serve(self)
        except Refused as refused:
            return refused.reply
        except (_Cut, ConnectionError, TimeoutError):
            raise
        except Exception as error:
            self.server.hub.failures.append(error)
            return Refused(500, f"the server of the test failed: {error!r}").reply

    def _fail_early(self, fault: Fault) -> None:
        if fault.after or fault.drop is None or (fault.drop == "body" and self._unread == 0):
            return
        half, taken = (self._unread or 2) // 2, 0
        for part in self.body(min(PART, max(1, half)) if self._unread and fault.drop == "body" else PART):
            taken += len(part)
            if fault.drop == "body" and taken >= half:
                self._reset()
        raise _Cut

    def _announced(self) -> int | None:
        """Returns the bytes of the request's body; None if it comes in chunks of unknown number."""
        if "chunked" in self.headers.get("Transfer-Encoding", ""):
            return None
        return int(self.headers.get("Content-Length", 0))

    def body(self, size: int = PART) -> Iterator[bytes]:
        """Gives what has not been read of the request's body, at most so many bytes at a time.

        Raises:
            ConnectionError: The client is gone.
        """
        while self._unread is None:
            left = int(self.rfile.readline().split(b";")[0] or b"-1", 16)
            if left < 0:
                raise ConnectionError("the body ends too early")
            if left == 0:
                self._unread = 0
            while left:
                left -= len(part := self._read(min(size, left)))
                yield part
            self.rfile.readline()
        while self._unread:
            part = self._read(min(size, self._unread))
            self._unread -= len(part)
            yield part

    def _read(self, count: int) -> bytes:
        part = self.rfile.read(count)
        if len(part) < count:
            raise ConnectionError("the body ends too early")
        return part

    def _send(self, reply: Reply, fault: Fault) -> None:
        total = len(reply)
        self.send_response(reply.status)
        for name, value in {"Content-Length": str(total), **reply.headers}.items():
            self.send_header(name, " ".join(value.split()).encode("latin-1", "replace").decode("latin-1"))
        self.end_headers()
        if self.command == "HEAD":
            return
        self._send_part(reply.pieces(0, total // 2, fault.pace), fault)
        self._spoil(fault)
        second = reply.pieces(total // 2, total, fault.pace)
        if fault.corrupt and total:
            part = next(second)
            part[0] ^= 1
            self._send_part(iter([part]), fault)
        self._send_part(second, fault)

    def _send_part(self, pieces: Iterator[bytearray], fault: Fault) -> None:
        for part in pieces:
            self.wfile.write(part)
            if fault.trickle is not None:
                self.server.hub.closing.wait(len(part) / fault.trickle)

    def _spoil(self, fault: Fault) -> None:
        if fault.drop == "body":
            self._reset()
        if fault.truncate:
            raise _Cut
        if fault.stall is not None:
            self.server.hub.closing.wait(fault.stall)

    def _reset(self) -> None:
        # Closed with a linger of no time, a connection ends in a RST.
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        raise _Cut

    def log_message(self, format: str, *args: object) -> None:
        """Writes nothing: the hub records."""


class Listener(ThreadingHTTPServer):
    """Listens on a free port of 127.0.0.1 until it is closed, with all its connections and threads."""

    daemon_threads = False
    request_queue_size = 128

    def __init__(self, hub: Any) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.hub = hub
        self._open: set[socket.socket] = set()
        self._lock = threading.Lock()
        self.url = f"http://127.0.0.1:{self.server_address[1]}"
        self._thread = threading.Thread(target=self.serve_forever, args=(0.02,))
        self._thread.start()

    def process_request(self, request: Any, client_address: Any) -> None:
        with self._lock:
            self._open.add(request)
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        with self._lock:
            self._open.discard(request)
        if struct.unpack("ii", request.getsockopt(socket.SOL_SOCKET, socket.SO_LINGER, 8))[0]:
            self.close_request(request)
        else:
            super().shutdown_request(request)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Keeps what is an error of this server; that a client goes away is none."""
        if not isinstance(error := sys.exc_info()[1], OSError):
            self.hub.failures.append(error)

    def close(self) -> None:
        """Ends every connection, also those that are idle or stalled, and waits for their threads."""
        self.shutdown()
        self._thread.join()
        deadline = time.monotonic() + _PATIENCE
        while self._open and time.monotonic() < deadline:
            with self._lock:
                for connection in self._open:
                    try:
                        connection.shutdown(socket.SHUT_RDWR)
                    except OSError:
                        pass  # It has just been closed by the other side.
            time.sleep(0.005)
        self.server_close()
