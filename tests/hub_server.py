"""A stand-in for the Hugging Face Hub: one model, whose connection can be cut, on this machine alone."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from urllib.parse import unquote, urlsplit

COMMIT = "c0ffee" * 6 + "c0de"
MODEL = "tiny/model"


@dataclass
class Hub:
    """What the server has, what it does wrong, and what it was asked for.

    `cut` are files whose connection ends after so many bytes, for each of so many answers still to come.
    """

    folder: Path
    url: str = ""
    gated: bool = False
    broken: bool = False
    cut: dict[str, tuple[int, int]] = field(default_factory=dict)
    asked: list[tuple[str, str, str | None]] = field(default_factory=list)

    def downloads(self, name: str) -> list[str | None]:
        """The Range of each request for the bytes of a file."""
        return [sent for method, path, sent in self.asked if method == "GET" and path.endswith(f"/{name}")]

    def fetched(self) -> set[str]:
        """The files whose bytes were asked for."""
        return {path.split("/", 5)[5] for method, path, _ in self.asked if method == "GET" and "/resolve/" in path}


class Answers(BaseHTTPRequestHandler):
    """The part of the Hub's protocol that fetching a model needs."""

    protocol_version = "HTTP/1.1"
    hub: Hub

    def do_HEAD(self) -> None:
        self.answer(body=False)

    def do_GET(self) -> None:
        self.answer(body=True)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 (the library's own word)
        """Say nothing."""

    def answer(self, body: bool) -> None:
        path = unquote(urlsplit(self.path).path)
        self.hub.asked.append((self.command, path, self.headers.get("Range")))
        if self.hub.broken:
            self.refuse(503, "")
        elif match := re.fullmatch(rf"/api/models/{MODEL}(?:/revision/(?P<revision>.+))?", path):
            files = [{"rfilename": name, "size": size} for name, size in self.files().items()]
            about = {"_id": "1", "id": MODEL, "sha": COMMIT, "siblings": files, "tags": [], "private": False}
            self.json(about) if self.known(match["revision"]) else self.refuse(404, "RevisionNotFound")
        elif path.startswith(f"/api/models/{MODEL}/tree/"):
            entries = [
                {"type": "file", "path": name, "size": size, "oid": self.etag(name)}
                for name, size in self.files().items()
            ]
            self.json(entries)
        elif match := re.fullmatch(rf"/{MODEL}/resolve/(?P<revision>[^/]+)/(?P<name>.+)", path):
            if self.hub.gated:
                self.refuse(403, "GatedRepo")
            elif match["name"] not in self.files():
                self.refuse(404, "EntryNotFound")
            else:
                self.file(match["name"], body)
        else:
            self.refuse(404, "RepoNotFound")

    def known(self, revision: str | None) -> bool:
        return revision in (None, "main", "step1000", COMMIT)

    def files(self) -> dict[str, int]:
        return {
            path.relative_to(self.hub.folder).as_posix(): path.stat().st_size
            for path in sorted(self.hub.folder.rglob("*"))
            if path.is_file()
        }

    def etag(self, name: str) -> str:
        return hashlib.sha1((self.hub.folder / name).read_bytes()).hexdigest()

    def json(self, tree: object) -> None:
        self.send(200, json.dumps(tree).encode(), {"Content-Type": "application/json"})

    def refuse(self, status: int, code: str) -> None:
        self.send(status, b"{}", {"X-Error-Code": code, "X-Error-Message": code, "Content-Type": "application/json"})

    def send(self, status: int, data: bytes, headers: dict[str, str], body: bool = True) -> None:
        self.send_response(status)
        for key, value in {"Content-Length": str(len(data)), **headers}.items():
            self.send_header(key, value)
        self.end_headers()
        if body:
            self.wfile.write(data)

    def file(self, name: str, body: bool) -> None:
        data = (self.hub.folder / name).read_bytes()
        headers = {"ETag": f'"{self.etag(name)}"', "X-Repo-Commit": COMMIT, "Accept-Ranges": "bytes"}
        status = 200
        if wanted := self.headers.get("Range"):
            first = int(wanted.removeprefix("bytes=").partition("-")[0])
            headers["Content-Range"] = f"bytes {first}-{len(data) - 1}/{len(data)}"
            data, status = data[first:], 206
        most, times = self.hub.cut.get(name, (0, 0))
        if body and times:
            self.hub.cut[name] = most, times - 1
            self.send(status, data, headers, body=False)
            self.wfile.write(data[:most])
            self.wfile.flush()
            self.close_connection = True
            return
        self.send(status, data, headers, body)


@contextmanager
def serving(folder: Path) -> Iterator[Hub]:
    """The server, while it is needed."""
    hub = Hub(folder)
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Bound", (Answers,), {"hub": hub}))
    hub.url = f"http://127.0.0.1:{server.server_port}"
    thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
