"""An HTTP server on this machine whose objects and faults a test chooses."""

import html
import re
import threading
from base64 import b64encode
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

SECRET = "k9-secret"
"""Password of the user ``anna``, for servers that want one."""


@dataclass
class Served:
    """Objects by name, how they are served, and what was asked for."""

    objects: dict[str, bytes]
    address: str = ""
    """What comes before a name, with its last slash."""
    has_ranges: bool = True
    has_etags: bool = True
    """False: it says when an object changed instead."""
    has_lengths: bool = True
    has_listing: bool = False
    has_password: bool = False
    status: int = 200
    """Answer to each GET and HEAD, if it is another."""
    drops: int = 0
    """Answers that still are to break off in the middle of their bytes."""
    stalls: int = 0
    """Answers that still are to stop in the middle of their bytes, until the test ends."""
    sound_gets: int = 0
    """GET requests that are answered before the first of these stops."""
    stalled: threading.Event = field(default_factory=threading.Event)
    shortened: int = 0
    """Bytes that each answer lacks at its end, although it looks complete."""
    replaces: dict[str, bytes] = field(default_factory=dict)
    """What takes the place of an object once a part of it was read."""
    asked: list[tuple[str, str, str]] = field(default_factory=list)
    """Method, name and range of each request."""
    ended: threading.Event = field(default_factory=threading.Event)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def gets(self, name: str = "") -> list[str]:
        """Ranges of the GET requests for an object, or for all."""
        return [where for how, what, where in self.asked if how == "GET" and name in ("", what)]

    def took(self, what: str) -> bool:
        """Count a fault down; whether this answer has it."""
        with self.lock:
            left = getattr(self, what)
            setattr(self, what, max(left - 1, 0))
            return left > 0


def served_files(*paths: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in paths}


@contextmanager
def serving(objects: dict[str, bytes], **how: Any) -> Iterator[Served]:
    """Serve objects under ``http://127.0.0.1:PORT/sets/`` within the block."""
    served = Served(objects, **how)
    handler = type("Handler", (_Handler,), {"served": served})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    served.address = f"http://127.0.0.1:{server.server_port}/sets/"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield served
    finally:
        served.ended.set()
        server.shutdown()
        server.server_close()
        thread.join()


class _Handler(BaseHTTPRequestHandler):
    served: Served
    protocol_version = "HTTP/1.1"

    def do_HEAD(self) -> None:
        self._answer(has_body=False)

    def do_GET(self) -> None:
        self._answer(has_body=True)

    def log_message(self, *_: object) -> None:
        """Nothing."""

    def _answer(self, *, has_body: bool) -> None:
        served, name = self.served, self.path.removeprefix("/sets/")
        span = self.headers.get("Range", "")
        served.asked.append((self.command, name, span))
        wanted = "Basic " + b64encode(f"anna:{SECRET}".encode()).decode()
        if served.has_password and self.headers.get("Authorization") != wanted:
            return self._send(401, b"", has_body=has_body)
        if served.status != 200:
            return self._send(served.status, b"", has_body=has_body)
        if name == "" and served.has_listing:
            links = (
                f'<a href="{html.escape(one)}">{html.escape(one)}</a>' for one in served.objects
            )
            return self._send(200, "\n".join(links).encode(), has_body=has_body, kind="text/html")
        if name not in served.objects:
            return self._send(404, b"", has_body=has_body)
        found = served.objects[name]
        if has_body and name in served.replaces:
            served.objects[name] = served.replaces.pop(name)
        part = re.fullmatch(r"bytes=(\d+)-(\d+)", span)
        if not (part and served.has_ranges):
            return self._send(200, found, has_body=has_body, etag=_etag(found))
        first, last = int(part[1]), min(int(part[2]), len(found) - 1)
        if first >= len(found):
            return self._send(416, b"", has_body=has_body)
        place = f"bytes {first}-{last}/{len(found)}"
        body = found[first : last + 1]
        return self._send(206, body, has_body=has_body, etag=_etag(found), place=place)

    def _send(
        self,
        status: int,
        body: bytes,
        *,
        has_body: bool,
        kind: str = "application/octet-stream",
        etag: str = "",
        place: str = "",
    ) -> None:
        served = self.served
        if len(body) > served.shortened > 0 and kind != "text/html":
            body = body[: -served.shortened] if has_body else body
        self.send_response(status)
        self.send_header("Content-Type", kind)
        if served.has_lengths or not body:
            self.send_header("Content-Length", str(len(body)))
        else:
            self.send_header("Connection", "close")
            self.close_connection = True
        if etag:
            self.send_header("ETag" if served.has_etags else "Last-Modified", etag)
        if place:
            self.send_header("Content-Range", place)
        self.end_headers()
        if not has_body:
            return
        if len(body) > 1 and served.took("drops"):
            self.wfile.write(body[: len(body) // 2])
            self.close_connection = True
        elif len(body) > 1 and len(served.gets()) > served.sound_gets and served.took("stalls"):
            self.wfile.write(body[: len(body) // 2])
            self.wfile.flush()
            served.stalled.set()
            served.ended.wait(60)
            self.close_connection = True
        else:
            self.wfile.write(body)


def _etag(found: bytes) -> str:
    return f'"{hash(found) & 0xFFFFFFFF:x}"'
