"""Objects of a store, written: parts are sent while the rest is made, and are an object only at the end. No torch.

Nothing is written to a disk. Parts of S3's multipart uploads go in any order and several at once; for
other stores fsspec's own files are written in order, several files at once.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any, Protocol

from neoxkit.checkpoint.output import OutputFile
from neoxkit.checkpoint.store import StorePath, reaching
from neoxkit.errors import CheckpointError

if TYPE_CHECKING:
    from neoxkit.checkpoint.checksum import Bytes

PART = 8 << 20
"""Bytes of a part; S3 asks for 5 MiB at least."""

MOST_PARTS = 10_000
"""Parts of an object at most, for S3."""

IN_FLIGHT = 8
"""Parts of all objects that are on their way at once. Whoever makes more has to wait."""

_MIB = 1 << 20


def part_size(size: int) -> int:
    """Bytes of each part (but the last) of an object of `size` bytes."""
    return max(PART, -(-size // (MOST_PARTS * _MIB)) * _MIB)


class Upload(Protocol):
    """An object in the making, of which nothing is visible."""

    def put(self, number: int, data: bytes) -> None:
        """Send part `number`, counted from 0; parts may come in any order, and from several threads."""

    def complete(self) -> None:
        """Make it an object."""

    def abort(self) -> None:
        """Forget the parts. Nothing may be on its way."""


class S3Upload:
    """A multipart upload of S3."""

    def __init__(self, path: StorePath) -> None:
        self._path, self._call = path, path.tree.fs.call_s3
        bucket, key, _ = path.tree.fs.split_path(path.key)
        self._where = {"Bucket": bucket, "Key": key}
        self._lock = threading.Lock()
        self._id: str | None = None
        self._tags: dict[int, str] = {}

    def put(self, number: int, data: bytes) -> None:
        """Send a part."""
        with reaching(str(self._path)):
            with self._lock:
                if self._id is None:
                    self._id = str(self._call("create_multipart_upload", **self._where)["UploadId"])
            sent = self._call("upload_part", **self._where, UploadId=self._id, PartNumber=number + 1, Body=data)
            self._tags[number] = sent["ETag"]

    def complete(self) -> None:
        """Make it an object."""
        parts = [{"PartNumber": number + 1, "ETag": tag} for number, tag in sorted(self._tags.items())]
        with reaching(str(self._path)):
            self._call("complete_multipart_upload", **self._where, UploadId=self._id, MultipartUpload={"Parts": parts})
        self._id = None

    def abort(self) -> None:
        """Forget the parts. One that cannot be forgotten is left to the bucket's rule for such."""
        if self._id is not None:
            with suppress(CheckpointError, FileNotFoundError), reaching(str(self._path)):
                self._call("abort_multipart_upload", **self._where, UploadId=self._id)
            self._id = None


class OrderedUpload:
    """A file of fsspec's that is not committed. Parts wait until it is their turn."""

    def __init__(self, path: StorePath) -> None:
        self._path = path
        self._lock = threading.Lock()
        self._waiting: dict[int, bytes] = {}
        self._file: Any = None
        self._next = 0

    def put(self, number: int, data: bytes) -> None:
        """Write a part, and those that waited for it."""
        with self._lock, reaching(str(self._path)):
            self._waiting[number] = data
            while self._next in self._waiting:
                if self._file is None:
                    self._file = self._opened()
                self._file.write(self._waiting.pop(self._next))
                self._next += 1

    def _opened(self) -> Any:
        fs, key = self._path.tree.aside, self._path.key
        try:
            return fs.open(key, "wb")
        except FileNotFoundError:  # a store with real folders
            fs.makedirs(self._path.parent.key, exist_ok=True)
            return fs.open(key, "wb")

    def complete(self) -> None:
        """Make it an object."""
        with reaching(str(self._path)):
            self._file.close()
            self._file.commit()

    def abort(self) -> None:
        """Forget what was written."""
        if self._file is not None:
            with suppress(CheckpointError, FileNotFoundError), reaching(str(self._path)):
                self._file.discard()
            with suppress(AttributeError):  # else it would be completed when it is collected
                self._file.closed = True
            self._file = None


class Uploads:
    """The objects of one attempt, which share threads and a bound on what is in memory."""

    def __init__(self) -> None:
        self._threads = ThreadPoolExecutor(IN_FLIGHT, thread_name_prefix="upload")
        self._room = threading.BoundedSemaphore(IN_FLIGHT)
        self._jobs: set[Future[None]] = set()
        self._free: list[bytearray] = []
        self._error: BaseException | None = None
        self._stopped = False
        self._all: list[Upload] = []

    def begin(self, path: StorePath) -> Upload:
        """A new object."""
        upload = S3Upload(path) if hasattr(path.tree.fs, "call_s3") else OrderedUpload(path)
        self._all.append(upload)
        return upload

    def memory(self, size: int) -> bytearray:
        """Memory for a part, that of one which is whole if it can be had: to find new memory takes long."""
        with suppress(IndexError):
            if len(data := self._free.pop()) == size:
                return data
        return bytearray(size)

    def whole(self, data: bytearray) -> bytes:
        """A part as it is sent, its memory free for the next one. s3fs takes bytes alone without a further copy."""
        sent = bytes(data)
        self._free.append(data)
        return sent

    def put(self, upload: Upload, number: int, data: bytes) -> Future[None]:
        """Send a part in a thread of its own, once there is room. Raises what an earlier part ran into."""
        self._room.acquire()
        if self._stopped or self._error is not None:
            self._room.release()
            raise self._error or CheckpointError("the upload was given up", "try again")
        job = self._threads.submit(self._put, upload, number, data)
        self._jobs.add(job)
        job.add_done_callback(self._jobs.discard)
        return job

    def _put(self, upload: Upload, number: int, data: bytes) -> None:
        try:
            if not self._stopped:
                upload.put(number, data)
        except BaseException as error:
            self._error = self._error or error
            raise
        finally:
            self._room.release()

    def run(self, acts: list[Callable[[], object]]) -> None:
        """Do several things at once. Raises the first error, when none of them is under way any more."""
        jobs = [self._threads.submit(act) for act in acts]
        wait(jobs)
        for job in jobs:
            job.result()

    def complete(self) -> None:
        """Make all of them objects."""
        self.run([upload.complete for upload in self._all])
        self._all.clear()

    def abort(self) -> None:
        """Wait for what is on its way, and forget all parts."""
        self._stopped = True
        wait(list(self._jobs))
        self.run([upload.abort for upload in self._all])
        self._all.clear()

    def close(self) -> None:
        """End the threads."""
        self._threads.shutdown()


class _Room:
    """A part that is being filled."""

    def __init__(self, data: bytearray) -> None:
        self.data, self.left = data, len(data)
        self.view = memoryview(self.data)


class StoreOutput(OutputFile):
    """An object of planned tensors: the twin of OutputFile. A part is sent when its last byte is there.

    What is written in the order of the file keeps one part in memory for each tensor that is being
    written, besides those on their way.
    """

    def __init__(self, uploads: Uploads, path: StorePath, *about: Any) -> None:
        self._uploads, self._upload = uploads, uploads.begin(path)
        self._rooms: dict[int, _Room] = {}
        self._jobs: list[Future[None]] = []
        super().__init__(path, *about)

    @property
    def waiting(self) -> int:
        """Bytes of parts that are not whole."""
        return sum(len(room.data) for room in self._rooms.values())

    def _begin(self) -> None:
        self._part = part_size(self.size)
        self._write_at(self._head, 0)

    @contextmanager
    def _naming_errors(self) -> Iterator[None]:
        yield

    def _write_at(self, data: bytes | Bytes, at: int) -> None:
        rest = memoryview(data)  # type: ignore[arg-type,unused-ignore]
        while rest:
            number, inside = divmod(at, self._part)
            if number not in self._rooms:
                size = min(self._part, self.size - number * self._part)
                self._rooms[number] = _Room(self._uploads.memory(size))
            room = self._rooms[number]
            taken = rest[: len(room.data) - inside]
            room.view[inside : inside + len(taken)] = taken
            room.left -= len(taken)
            rest, at = rest[len(taken) :], at + len(taken)
            if room.left <= 0:
                room.view.release()
                del self._rooms[number]
                self._jobs.append(self._uploads.put(self._upload, number, self._uploads.whole(room.data)))

    def _flush(self, threads: ThreadPoolExecutor) -> None:
        """Nothing: parts go as they get whole."""

    def finish(self, threads: ThreadPoolExecutor) -> None:
        """Wait until all parts are sent. Raises CheckpointError when one could not be."""
        assert not self._rooms, f"{self.path}: {len(self._rooms)} parts are not whole"
        for job in self._jobs:
            job.result()
        self._jobs.clear()

    def close(self) -> None:
        """Give up."""
        self._rooms.clear()
