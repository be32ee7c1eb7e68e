"""An object store of the S3 kind on this machine, and small models to keep in it."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import count
from pathlib import Path
from typing import Any

import pytest
from buckets import Bucket
from refusal import run
from tiny import save, tiny
from tokenizers import Tokenizer, models, pre_tokenizers

_NUMBERS = count(1)


@pytest.fixture(scope="session")
def s3() -> Iterator[Any]:
    """A client of the server; the environment names both for everybody else."""
    import boto3
    from moto.server import ThreadedMotoServer

    with pytest.MonkeyPatch.context() as patch:
        for name in ("AWS_PROFILE", "AWS_SESSION_TOKEN", "AWS_ENDPOINT_URL_S3"):
            patch.delenv(name, raising=False)
        patch.setenv("AWS_CONFIG_FILE", "/dev/null")
        patch.setenv("AWS_SHARED_CREDENTIALS_FILE", "/dev/null")
        patch.setenv("AWS_EC2_METADATA_DISABLED", "true")
        patch.setenv("AWS_ACCESS_KEY_ID", "someone")
        patch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
        patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
        server.start()
        host, port = server.get_host_and_port()
        patch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
        client = boto3.client("s3")
        yield client
        client.close()
        server.stop()


@pytest.fixture
def bucket(s3: Any) -> Bucket:
    """An empty bucket."""
    name = f"bucket-{next(_NUMBERS)}"
    s3.create_bucket(Bucket=name)
    return Bucket(name, s3)


@pytest.fixture(params=["s3", "memory"])
def store(request: pytest.FixtureRequest) -> str:
    """The URL of an empty folder: in S3, and in a store of fsspec's that is not S3."""
    if request.param == "s3":
        return str(request.getfixturevalue("bucket"))
    return f"memory://bucket-{next(_NUMBERS)}"


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Hugging Face model on the disk, in several files, with a tokenizer. Not to be changed."""
    folder = tmp_path_factory.mktemp("model") / "hf"
    save(tiny("llama-gqa").model(), folder, shards=True)
    words = Tokenizer(models.WordLevel({"?": 0, **{chr(97 + i): i + 1 for i in range(26)}}, unk_token="?"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    words.save(str(folder / "tokenizer.json"))
    return folder


@pytest.fixture(scope="session")
def checkpoint(model: Path) -> Path:
    """A checkpoint of it on the disk, cut for two devices. Not to be changed."""
    folder = model.parent / "checkpoint"
    said = run(f"import {model} {folder} --tp 2")
    assert said.exit_code == 0, said.output
    return folder


@pytest.fixture
def refusing() -> Iterator[str]:
    """The address of a server that denies everything."""

    class Denies(BaseHTTPRequestHandler):
        def _answer(self) -> None:
            body = b"<Error><Code>AccessDenied</Code><Message>Access Denied</Message></Error>"
            self.send_response(403)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        do_GET = do_HEAD = do_PUT = do_POST = _answer  # noqa: N815 (names of the library)

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002 (the library's own word)
            """Say nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Denies) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.fixture
def nobody() -> str:
    """An address where nothing listens."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{free.getsockname()[1]}"
