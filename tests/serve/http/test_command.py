"""`neoxkit serve`: what it says, what it refuses, and how it ends."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from refusal import run

TIMEOUT = 90


@contextmanager
def started(*args: str, **environment: str) -> Iterator[tuple[subprocess.Popen[str], str, list[str]]]:
    """The command while it serves: its process, the address that it told, and what it said before."""
    program = [sys.executable, "-m", "neoxkit", "serve", *args, "--port", "0", "--dtype", "fp32", "--device", "cpu"]
    variables = {**os.environ, "OMP_NUM_THREADS": "1", **environment}
    process = subprocess.Popen(program, stderr=subprocess.PIPE, text=True, env=variables)
    try:
        said = []
        while not (found := re.fullmatch(r"serving \S+ at (http://\S+/v1)\n", line := read_line(process))):
            said.append(line.rstrip("\n"))
            assert line, said
        yield process, found[1], said
    finally:
        process.kill()
        process.communicate()


def read_line(process: subprocess.Popen[str]) -> str:
    """The next line that it says; "" when it says no more."""
    assert process.stderr is not None
    return process.stderr.readline()


def ended(process: subprocess.Popen[str]) -> tuple[int, list[str]]:
    """Its exit code, and what it said last."""
    code = process.wait(TIMEOUT)
    assert process.stderr is not None
    return code, process.stderr.read().splitlines()


def test_it_serves_until_it_is_told_to_stop(model_folder: Path) -> None:
    with started(str(model_folder)) as (process, url, said):
        assert said == []
        with openai.OpenAI(base_url=url, api_key="any") as client:
            assert client.models.list().data[0].id == model_folder.name
            told = client.completions.create(model=model_folder.name, prompt="a", max_tokens=3, temperature=0)
            assert told.usage is not None
            assert told.usage.completion_tokens <= 3
        process.send_signal(signal.SIGTERM)
        assert ended(process) == (0, [])


def test_names_keys_defaults_and_a_log(model_folder: Path, tmp_path: Path) -> None:
    folder = tmp_path / "m"
    folder.mkdir()
    for path in model_folder.iterdir():
        (folder / path.name).symlink_to(path)
    (folder / "generation_config.json").unlink()
    stated = {"temperature": 0.0, "top_k": 7, "top_p": None, "do_sample": True, "min_new_tokens": 5}
    (folder / "generation_config.json").write_text(json.dumps(stated))
    options = ("--served-model-name", "one", "--served-model-name", "two", "--access-log", "--max-context", "64")
    with (
        started(str(folder), *options, NEOXKIT_API_KEY="first second") as (process, url, said),
        httpx.Client(base_url=url, verify=False, headers={"authorization": "Bearer second"}) as client,
    ):
        assert said == ["defaults of the model's generation_config.json: temperature 0, top_k 7"]
        cards = client.get("/models").json()["data"]
        assert [(card["id"], card["max_model_len"]) for card in cards] == [("one", 64), ("two", 64)]
        body: dict[str, Any] = {"prompt": "a", "max_tokens": 12}
        drawn = client.post("/completions", json={**body, "model": "two"}).json()
        assert drawn["model"] == "two"
        greedy = client.post("/completions", json={**body, "temperature": 0}).json()
        assert drawn["choices"][0]["text"] == greedy["choices"][0]["text"]  # as the file states
        assert client.get("/models", headers={"authorization": "Bearer third"}).status_code == 401
        process.send_signal(signal.SIGINT)
        code, lines = ended(process)
        assert code == 0
        assert [line.split(" ", 2)[2].split(" - ")[1] for line in lines] == [
            '"GET /v1/models HTTP/1.1" 200',
            '"POST /v1/completions HTTP/1.1" 200',
            '"POST /v1/completions HTTP/1.1" 200',
            '"GET /v1/models HTTP/1.1" 401',
        ]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_twice_it_stops_at_once(model_folder: Path, number: signal.Signals) -> None:
    with started(str(model_folder), "--max-batch", "1") as (process, url, _):
        body = {"prompt": "a", "max_tokens": 250, "n": 128, "stream": True, "ignore_eos": True}
        with (
            httpx.Client(verify=False, timeout=30) as client,
            client.stream("POST", url + "/completions", json=body) as stream,
        ):
            lines = stream.iter_lines()  # which is kept: the connection ends with it
            next(lines)
            process.send_signal(number)
            assert read_line(process) == "finishing 128 answers, for at most 30 s\n"
            process.send_signal(number)
            code, last = ended(process)
        assert code == 128 + number
        assert len(last) == 1
        assert re.fullmatch(r"\d+ answers? cut off", last[0])


def test_a_rank_that_dies_ends_the_server(model_folder: Path) -> None:
    with started(str(model_folder), "--tp", "2") as (process, url, _):
        model = model_folder.name
        with openai.OpenAI(base_url=url, api_key="any", max_retries=0, timeout=60) as client:
            told = client.completions.create(model=model, prompt="a", max_tokens=3, temperature=0)
            assert told.usage is not None
            stream = client.completions.create(model=model, prompt="ab", max_tokens=250, n=8, stream=True)
            next(iter(stream))
            (rank,) = children(process.pid)
            os.kill(rank, signal.SIGKILL)
            with pytest.raises((openai.APIError, httpx.TransportError)):
                for _ in stream:
                    pass
        code, lines = ended(process)
        assert code == 75
        assert sum(line.startswith("error: rank") for line in lines) == 1, lines


def children(parent: int) -> list[int]:
    """The processes that it started."""
    return [int(number) for number in Path(f"/proc/{parent}/task/{parent}/children").read_text().split()]


def test_an_idle_server_notices_a_dead_rank(model_folder: Path) -> None:
    with started(str(model_folder), "--tp", "2") as (process, url, _):
        with httpx.Client(verify=False) as client:
            assert client.get(url.removesuffix("v1") + "health").status_code == 200
        (rank,) = children(process.pid)
        os.kill(rank, signal.SIGKILL)
        code, lines = ended(process)
        assert code == 75
        assert sum(line.startswith("error: rank") for line in lines) == 1, lines


def refusal(command: str) -> str:
    """The one line that a command is refused with."""
    result = run(f"serve {command}")
    assert result.exit_code == 2, (result.output, result.exception)
    assert result.stdout == ""
    *before, line = result.stderr.splitlines()
    assert all(each.startswith("warning: ") for each in before)
    assert line.startswith("error: ")
    return line


def test_a_port_that_is_taken(model_folder: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        line = refusal(f"{model_folder} --port {port}")
    assert line == (
        f"error: cannot listen at 127.0.0.1 port {port}: address already in use; "
        "give another --port, or 0 for a free one"
    )


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ("--host no.such.host.invalid", "there is no host 'no.such.host.invalid'; give one of this machine's names"),
        ("--host 192.0.2.1 --port 0", "cannot listen at 192.0.2.1 port 0: cannot assign requested address; give anoth"),
        ("--host ''", "there is no host ''"),
        ("--port 65536", "65536 is not in the range 0<=x<=65535"),
        ("--max-body 12", "'12' is no size; write it as 500MB or 5GB"),
        ("--max-batch 0", "0 is not in the range x>=1"),
        ("--grace nan", "nan is not a finite number"),
        ("--api-key ''", "a key of the API is empty"),
        ("--api-key 'a b'", "a key of the API is empty, or has characters that no header carries"),
        ("--served-model-name ''", "a name of the model is empty"),
        ("--tp 5 --port 0", "do not divide over tp 5; choose a tp that divides 6"),
    ],
)
def test_what_cannot_be_served(model_folder: Path, options: str, says: str) -> None:
    assert says in refusal(f"{model_folder} --device cpu {options}")


@pytest.mark.parametrize(
    ("stated", "says"),
    [
        ({"temperature": -1}, "generation_config.json: temperature: -1 is not a number from 0"),
        ({"top_k": "many"}, "generation_config.json: top_k: 'many' is not a whole number"),
        ({"top_p": 2}, "generation_config.json: top_p: 2 is not a number above 0"),
    ],
)
def test_defaults_that_cannot_be(model_folder: Path, tmp_path: Path, stated: dict[str, Any], says: str) -> None:
    folder = tmp_path / "m"
    folder.mkdir()
    for path in model_folder.iterdir():
        if path.name != "generation_config.json":
            (folder / path.name).symlink_to(path)
    (folder / "generation_config.json").write_text(json.dumps(stated))
    assert says in refusal(f"{folder} --device cpu --port 0")


def test_a_source_that_is_none(tmp_path: Path) -> None:
    assert "error: " in refusal(f"{tmp_path / 'nothing'} --port 0")


def test_whoever_lets_all_in_is_warned(model_folder: Path) -> None:
    result = run(f"serve {model_folder} --host 0.0.0.0 --port 65536")
    assert result.exit_code == 2
    assert result.stderr.startswith("error: ")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        result = run(f"serve {model_folder} --host 0.0.0.0 --port {taken.getsockname()[1]}")
    assert result.stderr.splitlines()[0] == ("warning: without an --api-key, whoever reaches 0.0.0.0 can use the model")
