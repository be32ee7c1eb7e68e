"""A stand-in for the Hugging Face Hub that takes uploads, on this machine alone: commits, branches, LFS, xet.

It speaks the protocol that huggingface_hub 2.4 speaks, and does wrong what it is told to. After every
commit it looks at each branch as a reader would: `broken` lists what a file names and is not there.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import RLock, Thread
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

TOKEN, READ_ONLY = "hf_the-secret-of-a-writer", "hf_the-secret-of-a-reader"
OWNER = "me"


@dataclass(frozen=True)
class File:
    """A file of a commit. Large ones are told of by their sha256; their bytes may be in xet's storage alone."""

    data: bytes | None
    size: int
    sha256: str | None = None

    @property
    def blob(self) -> str:
        """Git's id of a small file; of a large one, that of its pointer, more or less."""
        data = self.data if self.sha256 is None else self.sha256.encode()
        assert data is not None
        return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


@dataclass
class Repo:
    """A repository: its commits, oldest first, and its branches."""

    private: bool = False
    commits: dict[str, dict[str, File]] = field(default_factory=dict)
    branches: dict[str, list[str]] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)
    messages: dict[str, str] = field(default_factory=dict)

    def add(self, branch: str, files: dict[str, File], message: str) -> str:
        """A new commit on a branch."""
        oid = hashlib.sha1(f"{branch} {len(self.commits)} {time.time_ns()}".encode()).hexdigest()
        self.commits[oid], self.messages[oid] = files, message
        self.branches.setdefault(branch, []).append(oid)
        return oid

    def resolve(self, revision: str) -> str | None:
        """The commit of a branch, a tag or a commit."""
        if revision in self.branches:
            return self.branches[revision][-1]
        return self.tags.get(revision, revision if revision in self.commits else None)


@dataclass
class Fault:
    """Something that goes wrong with requests whose method and path match, so many times.

    `status` is answered instead; without one the connection is cut: before anything is done, or with
    `late` when all is done, and only the answer is lost.
    """

    matches: str
    times: int = 1
    status: int | None = None
    headers: Mapping[str, str] = field(default_factory=dict)
    late: bool = False
    after: Callable[[], None] = lambda: None


@dataclass
class Hub:
    """What the stand-in holds, what it was asked, and what it saw."""

    xet: Path | None = None
    url: str = ""
    small: int = 2000  # bytes of a file that is kept in git unless its name says otherwise
    part: int | None = None  # bytes of a part, where large files come in parts
    repos: dict[str, Repo] = field(default_factory=dict)
    objects: dict[str, bytes] = field(default_factory=dict)
    hashes: dict[str, str] = field(default_factory=dict)  # of xet, by sha256
    faults: list[Fault] = field(default_factory=list)
    asked: list[str] = field(default_factory=list)
    sent: list[int] = field(default_factory=list)  # bytes of each upload of an object, or part of one
    broken: list[str] = field(default_factory=list)
    lock: RLock = field(default_factory=RLock)

    def files(self, name: str, revision: str = "main") -> dict[str, File]:
        """What a revision holds."""
        repo = self.repos[name]
        commit = repo.resolve(revision)
        assert commit is not None, revision
        return repo.commits[commit]

    def text(self, path: str, name: str, revision: str = "main") -> str:
        """A small file."""
        data = self.files(name, revision)[path].data
        assert data is not None
        return data.decode()

    def count(self, pattern: str) -> int:
        """How many requests there were whose method and path match."""
        return sum(re.search(pattern, each) is not None for each in self.asked)

    def make(self, name: str, private: bool = False) -> Repo:
        """A new repository, as the Hub makes it: with a commit that holds .gitattributes."""
        repo = self.repos[name] = Repo(private)
        attributes = b"*.safetensors filter=lfs diff=lfs merge=lfs -text\n"
        repo.add("main", {".gitattributes": File(attributes, len(attributes))}, "initial commit")
        return repo

    def look(self, name: str) -> None:
        """Look at every branch as a reader would."""
        for branch in self.repos[name].branches:
            files = self.files(name, branch)
            wanted: list[str] = []
            if "manifest.json" in files:
                wanted += (each["path"] for each in json.loads(self.text("manifest.json", name, branch))["files"])
            elif "model.safetensors.index.json" in files:
                wanted += json.loads(self.text("model.safetensors.index.json", name, branch))["weight_map"].values()
            elif "config.json" in files or "neoxkit.json" in files:
                wanted.append("model.safetensors")
            self.broken += (f"{name}@{branch}: {each}" for each in set(wanted) - set(files))


class Answers(BaseHTTPRequestHandler):
    """The protocol."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # else each answer waits 40 ms for the client's word that its head has come
    hub: Hub

    def do_GET(self) -> None:
        self.answer()

    def do_HEAD(self) -> None:
        self.answer()

    def do_POST(self) -> None:
        self.answer()

    def do_PUT(self) -> None:
        self.answer()

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 (the library's own word)
        """Say nothing."""

    def answer(self) -> None:
        url = urlsplit(self.path)
        self.where, self.query = unquote(url.path), parse_qs(url.query)
        self.silent = False
        asked = f"{self.command} {self.where}"
        with self.hub.lock:
            self.hub.asked.append(asked)
            fault = next((each for each in self.hub.faults if each.times and re.search(each.matches, asked)), None)
            if fault is not None:
                fault.times -= 1
        if fault is not None and not fault.late:
            fault.after()
            if fault.status is None:  # cut in the middle of what the client sends
                self.rfile.read(min(100, int(self.headers.get("Content-Length", 0))))
                self.close_connection = True
                return
            self.body()
            self.reply(fault.status, {"error": "it is what was asked for"}, fault.headers)
            return
        self.silent = fault is not None
        self.data = self.body()
        with self.hub.lock:
            self.act()
        if fault is not None:
            fault.after()
            self.close_connection = True

    def body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") == "chunked":
            found = b""
            while size := int(self.rfile.readline(), 16):
                found += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
            return found
        return self.rfile.read(int(self.headers.get("Content-Length", 0)))

    def act(self) -> None:
        for method, pattern, name in ROUTES:
            if (method == self.command or (method, self.command) == ("GET", "HEAD")) and (
                match := re.fullmatch(pattern, self.where)
            ):
                known = match.groupdict()
                repo = self.hub.repos.get(known.get("repo", ""))
                if "repo" in known and (repo is None or (repo.private and not self.token)):
                    self.refuse(401 if not self.token else 404, "RepoNotFound")
                elif name in WRITES and self.token != TOKEN:
                    self.refuse(403 if self.token else 401, "Forbidden")
                else:
                    getattr(self, name)(**known)
                return
        self.refuse(404, "NotFound")

    @property
    def token(self) -> str:
        return self.headers.get("Authorization", "").removeprefix("Bearer ")

    def reply(self, status: int, tree: Any, headers: Mapping[str, str] | None = None) -> None:
        self.send(status, json.dumps(tree).encode(), {"Content-Type": "application/json", **(headers or {})})

    def refuse(self, status: int, code: str) -> None:
        self.reply(status, {"error": code}, {"X-Error-Code": code, "X-Error-Message": code})

    def send(self, status: int, data: bytes, headers: Mapping[str, str]) -> None:
        if self.silent:
            return
        self.send_response(status)
        for key, value in {"Content-Length": str(len(data)), **headers}.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    # What may be asked

    def create(self) -> None:
        told = json.loads(self.data)
        name = f"{told['organization'] or OWNER}/{told['name']}"
        if told["organization"] not in (None, OWNER):
            self.refuse(403, "Forbidden")
        elif name in self.hub.repos:
            self.reply(409, {"error": "You already created this model repo", "url": f"{self.hub.url}/{name}"})
        else:
            self.hub.make(name, told.get("visibility") == "private" or bool(told.get("private")))
            self.reply(200, {"url": f"{self.hub.url}/{name}", "name": name})

    def validate(self) -> None:
        if "license: no-such" in json.loads(self.data)["content"]:
            self.reply(400, {"errors": [{"message": '"license" must be one of [apache-2.0, ...]'}], "warnings": []})
        else:
            self.reply(200, {"errors": [], "warnings": []})

    def info(self, repo: str, revision: str | None = None) -> None:
        found = self.hub.repos[repo]
        commit = found.resolve(revision or "main")
        if commit is None:
            self.refuse(404, "RevisionNotFound")
            return
        siblings = [self.sibling(path, file) for path, file in sorted(found.commits[commit].items())]
        about = {"_id": "1", "id": repo, "sha": commit, "siblings": siblings, "tags": [], "private": found.private}
        self.reply(200, about)

    def sibling(self, path: str, file: File) -> dict[str, Any]:
        about: dict[str, Any] = {"rfilename": path, "size": file.size, "blobId": file.blob}
        if file.sha256 is not None:
            about["lfs"] = {"sha256": file.sha256, "size": file.size, "pointerSize": 130}
        return about

    def refs(self, repo: str) -> None:
        found = self.hub.repos[repo]
        branches = [
            {"name": name, "ref": f"refs/heads/{name}", "targetCommit": commits[-1]}
            for name, commits in found.branches.items()
        ]
        tags = [{"name": name, "ref": f"refs/tags/{name}", "targetCommit": each} for name, each in found.tags.items()]
        self.reply(200, {"branches": branches, "tags": tags, "converts": []})

    def commits(self, repo: str, revision: str) -> None:
        found, answers = self.hub.repos[repo], []
        for oid in reversed(found.branches[revision]):
            about = {"id": oid, "title": found.messages[oid], "message": "", "authors": []}
            answers.append({**about, "date": "2026-01-01T00:00:00.000Z"})
        self.reply(200, answers)

    def branch(self, repo: str, revision: str) -> None:
        found = self.hub.repos[repo]
        if revision in found.branches:
            self.refuse(409, "Conflict")
            return
        start = found.resolve(json.loads(self.data).get("startingPoint", "main"))
        assert start is not None
        found.branches[revision] = [start]
        self.reply(200, {})

    def preupload(self, repo: str, revision: str) -> None:
        found = self.hub.repos[repo]
        commit = found.resolve(revision)
        if commit is None:
            self.refuse(404, "RevisionNotFound")
            return
        held = found.commits[commit]
        ignored = held.get(".gitignore", File(b"", 0)).data or b""
        answers = []
        for each in json.loads(self.data)["files"]:
            path = each["path"]
            large = path.endswith(".safetensors") or each["size"] > self.hub.small
            answers.append(
                {
                    "path": path,
                    "uploadMode": "lfs" if large else "regular",
                    "shouldIgnore": path in ignored.decode().split(),
                    "oid": (held[path].sha256 or held[path].blob) if path in held else None,
                }
            )
        self.reply(200, {"files": answers})

    def batch(self, repo: str) -> None:
        answers = []
        for each in json.loads(self.data)["objects"]:
            about = {"oid": each["oid"], "size": each["size"]}
            if each["oid"] not in self.hub.objects:
                upload: dict[str, Any] = {"href": f"{self.hub.url}/lfs/{each['oid']}?X-Amz-Signature=sealed"}
                if self.hub.part:
                    count = -(-each["size"] // self.hub.part)
                    parts = {str(n): f"{self.hub.url}/lfs/{each['oid']}/{n}?key=sealed" for n in range(1, count + 1)}
                    upload["header"] = {"chunk_size": str(self.hub.part), **parts}
                about["actions"] = {
                    "upload": upload,
                    "verify": {"href": f"{self.hub.url}/{repo}.git/info/lfs/objects/verify"},
                }
            answers.append(about)
        self.reply(200, {"transfer": "multipart" if self.hub.part else "basic", "objects": answers})

    def put(self, oid: str, part: str | None = None) -> None:
        self.hub.sent.append(len(self.data))
        if part is None:
            assert hashlib.sha256(self.data).hexdigest() == oid
            self.hub.objects[oid] = self.data
        else:
            self.hub.objects[f"{oid}/{part}"] = self.data
        self.send(200, b"", {"ETag": f'"{part}"'})

    def complete(self, oid: str) -> None:
        parts = json.loads(self.data)["parts"]
        data = b"".join(self.hub.objects.pop(f"{oid}/{each['partNumber']}") for each in parts)
        assert hashlib.sha256(data).hexdigest() == oid
        self.hub.objects[oid] = data
        self.reply(200, {})

    def verify(self, repo: str) -> None:
        told = json.loads(self.data)
        self.reply(200 if len(self.hub.objects.get(told["oid"], b"")) == told["size"] else 404, {})

    def commit(self, repo: str, revision: str) -> None:
        found = self.hub.repos[repo]
        if revision not in found.branches:
            self.refuse(404, "RevisionNotFound")
            return
        head = found.branches[revision][-1]
        files = dict(found.commits[head])
        message = ""
        for line in self.data.splitlines():
            told = json.loads(line)
            value = told["value"]
            if told["key"] == "header":
                message = value["summary"]
                if value.get("parentCommit", head) != head:
                    self.refuse(412, "A commit has happened since. Please refresh and try again.")
                    return
            elif told["key"] == "file":
                data = base64.b64decode(value["content"])
                files[value["path"]] = File(data, len(data))
            elif told["key"] == "lfsFile":
                known = self.known(value["oid"], value.get("size"))
                if known is None:
                    self.refuse(400, f"Your push was rejected: LFS pointer of {value['path']} has no object")
                    return
                files[value["path"]] = known
            elif told["key"] == "deletedFile":
                del files[value["path"]]
        oid = found.add(revision, files, message)
        self.hub.look(repo)
        url = f"{self.hub.url}/{repo}/commit/{oid}"
        self.reply(200, {"success": True, "commitOid": oid, "commitUrl": url, "pullRequestUrl": None})

    def known(self, oid: str, size: int | None) -> File | None:
        """The object of this sum. Of what is in xet's storage only the client knows more."""
        if oid in self.hub.objects:
            data = self.hub.objects[oid]
            return File(data, len(data), oid)
        trees = [files for repo in self.hub.repos.values() for files in repo.commits.values()]
        held = next((file for files in trees for file in files.values() if file.sha256 == oid), None)
        if held is None and self.hub.xet is not None and size is not None:
            return File(None, size, oid)
        return held

    def paths(self, repo: str, revision: str) -> None:
        found = self.hub.repos[repo]
        commit = found.resolve(revision)
        assert commit is not None
        wanted = parse_qs(self.data.decode())["paths"]
        self.reply(200, [self.entry(path, file) for path, file in found.commits[commit].items() if path in wanted])

    def tree(self, repo: str, revision: str) -> None:
        found = self.hub.repos[repo]
        commit = found.resolve(revision)
        assert commit is not None
        self.reply(200, [self.entry(path, file) for path, file in found.commits[commit].items()])

    def entry(self, path: str, file: File) -> dict[str, Any]:
        about: dict[str, Any] = {"type": "file", "path": path, "size": file.size, "oid": file.blob}
        if file.sha256 is not None:
            about["lfs"] = {"oid": file.sha256, "size": file.size, "pointerSize": 130}
            if file.sha256 in self.hub.hashes:
                about["xetHash"] = self.hub.hashes[file.sha256]
        return about

    def xet(self, repo: str, kind: str, revision: str) -> None:
        if self.hub.xet is None or (kind == "write" and self.token != TOKEN):
            self.refuse(403, "Forbidden")
            return
        cas, expires = f"local://{self.hub.xet}", int(time.time()) + 3600
        headers = {"X-Xet-Cas-Url": cas, "X-Xet-Access-Token": "for-xet", "X-Xet-Token-Expiration": str(expires)}
        self.reply(200, {"accessToken": "for-xet", "exp": expires, "casUrl": cas}, headers)

    def resolve(self, repo: str, revision: str, path: str) -> None:
        found = self.hub.repos[repo]
        commit = found.resolve(revision)
        if commit is None:
            self.refuse(404, "RevisionNotFound")
            return
        file = found.commits[commit].get(path)
        if file is None:
            self.refuse(404, "EntryNotFound")
            return
        headers = {"ETag": f'"{file.sha256 or file.blob}"', "X-Repo-Commit": commit, "Accept-Ranges": "bytes"}
        if file.sha256 in self.hub.hashes:
            headers["X-Xet-Hash"] = self.hub.hashes[file.sha256]
            headers["X-Xet-Refresh-Route"] = f"{self.hub.url}/api/models/{repo}/xet-read-token/{commit}"
            headers["X-Linked-Size"], headers["X-Linked-ETag"] = str(file.size), headers["ETag"]
        self.send(200, file.data if file.data is not None else b"", headers)


_REPO = r"(?P<repo>[^/]+/[^/]+)"
_API = rf"/api/models/{_REPO}"
ROUTES = [
    ("POST", r"/api/repos/create", "create"),
    ("POST", r"/api/validate-yaml", "validate"),
    ("GET", _API, "info"),
    ("GET", rf"{_API}/revision/(?P<revision>.+)", "info"),
    ("GET", rf"{_API}/refs", "refs"),
    ("GET", rf"{_API}/commits/(?P<revision>.+)", "commits"),
    ("POST", rf"{_API}/branch/(?P<revision>.+)", "branch"),
    ("POST", rf"{_API}/preupload/(?P<revision>.+)", "preupload"),
    ("POST", rf"{_API}/commit/(?P<revision>.+)", "commit"),
    ("POST", rf"{_API}/paths-info/(?P<revision>.+)", "paths"),
    ("GET", rf"{_API}/tree/(?P<revision>.+)", "tree"),
    ("GET", rf"{_API}/xet-(?P<kind>read|write)-token/(?P<revision>.+)", "xet"),
    ("POST", rf"/{_REPO}\.git/info/lfs/objects/batch", "batch"),
    ("POST", rf"/{_REPO}\.git/info/lfs/objects/verify", "verify"),
    ("PUT", r"/lfs/(?P<oid>\w+)(?:/(?P<part>\d+))?", "put"),
    ("POST", r"/lfs/(?P<oid>\w+)", "complete"),
    ("GET", rf"/{_REPO}/resolve/(?P<revision>[^/]+)/(?P<path>.+)", "resolve"),
]
WRITES = {"create", "branch", "preupload", "commit", "batch", "verify"}


@contextmanager
def serving(xet: Path | None = None) -> Iterator[Hub]:
    """The stand-in, while it is needed; with a folder for what xet stores, it has xet."""
    hub = Hub(xet)
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
