"""Servers with OpenAI's API, each a process of its own in the environment that has it. For serving.py."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from quiet import TICK

CONTEXT, BATCH = 512, 32
"""The longest text, and how many answers are worked on at once, where a server has to be told."""
START = 600.0
"""Seconds in which a server must answer."""
STOP = 20.0
"""Seconds in which it must end."""

IGNORE_EOS = {"ignore_eos": True, "stream_options": {"include_usage": True}}


@dataclass(frozen=True)
class Kind:
    """A server in a dtype: its command, which environment has it (None: this one), which form of a model it reads."""

    server: str
    dtype: str
    command: Callable[[str, str, int], list[str]]  # of a model, a dtype and a port, after the interpreter's name
    environment: str | None = None
    reads: str = "theirs"
    ignores: bool = True  # can be told to ignore the token that ends a text, and to count

    @property
    def more(self) -> dict[str, Any]:
        """What a request has beside what all have."""
        return IGNORE_EOS if self.ignores else {}

    @property
    def name(self) -> str:
        """As it is printed."""
        return f"{self.server} {self.dtype}"


def neoxkit(model: str, dtype: str, port: int) -> list[str]:
    """`neoxkit serve`."""
    limits = [f"--max-context={CONTEXT}", f"--max-batch={BATCH}", "--served-model-name=it", "--device=cpu"]
    return ["-m", "neoxkit", "serve", model, f"--port={port}", f"--dtype={dtype}", *limits]


def transformers(model: str, dtype: str, port: int) -> list[str]:
    """`transformers serve`, with continuous batching."""
    kind = {"fp32": "float32", "bf16": "bfloat16"}[dtype]
    memory = "--cb-max-memory-percent=0.1"  # of all there is; by itself it takes 0.6 for keys and values
    rest = [f"--dtype={kind}", "--device=cpu", "--host=127.0.0.1", f"--port={port}", "--log-level=error", memory]
    start = "from transformers.cli.transformers import main; main()"
    return ["-c", start, "serve", model, "--continuous-batching", *rest]


def vllm(model: str, dtype: str, port: int, compiled: bool = False) -> list[str]:
    """vLLM's server."""
    kind = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}[dtype]
    limits = [f"--max-model-len={CONTEXT}", f"--max-num-seqs={BATCH}", "--served-model-name=it"]
    rest = [f"--dtype={kind}", "--host=127.0.0.1", f"--port={port}", *limits]
    start = ["-m", "vllm.entrypoints.openai.api_server", f"--model={model}"]
    return [*start, *rest, *([] if compiled else ["--enforce-eager"])]


def vllm_compiled(model: str, dtype: str, port: int) -> list[str]:
    """vLLM's server as it is by default: its layers are compiled."""
    return vllm(model, dtype, port, compiled=True)


KINDS = (
    Kind("neoxkit", "bf16", neoxkit, None, "ours"),
    *(Kind("transformers", dtype, transformers, None, "endless", False) for dtype in ("fp32", "bf16")),
    *(Kind("vllm", dtype, vllm, "vllm") for dtype in ("fp32", "fp16")),
    Kind("vllm+compiled", "fp32", vllm_compiled, "vllm"),
)


def endless(theirs: Path, folder: Path) -> Path:
    """The same model without a token that ends a text: transformers' server has no request for that."""
    folder.mkdir()
    for path in theirs.iterdir():
        if path.name in ("config.json", "generation_config.json"):
            (folder / path.name).write_text(json.dumps({**json.loads(path.read_text()), "eos_token_id": None}))
        else:
            (folder / path.name).symlink_to(path)
    return folder


class Server:
    """A server that runs, or stands still while others are measured."""

    def __init__(self, kind: Kind, model: Path, python: Path, threads: int, said: Path) -> None:
        """Start it, and wait until it answers. Raises EOFError when it does not."""
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        self.kind, self.url = kind, f"http://127.0.0.1:{port}"
        self.model = str(model) if kind.server == "transformers" else "it"
        variables = {**os.environ, "OMP_NUM_THREADS": str(threads), "VLLM_NO_USAGE_STATS": "1"}
        variables |= {"VLLM_CPU_OMP_THREADS_BIND": "nobind", "VLLM_CPU_KVCACHE_SPACE": "1"}
        command = [str(python), *kind.command(str(model), kind.dtype, port)]
        with said.open("w") as file:
            self._process = subprocess.Popen(command, stdout=file, stderr=file, env=variables, start_new_session=True)
        begun = time.monotonic()
        while not self._answers():
            if self._process.poll() is not None or time.monotonic() - begun > START:
                self.close()
                lines = said.read_text(errors="replace").strip().splitlines()
                raise EOFError(lines[-1] if lines else f"no answer in {START:.0f} s")
            time.sleep(0.2)
        self.started = time.monotonic() - begun
        self.pause()

    def _answers(self) -> bool:
        try:
            with urllib.request.urlopen(f"{self.url}/health", timeout=5) as response:
                return bool(response.status == 200)
        except OSError:
            return False

    def pause(self) -> None:
        """Let none of its processes run."""
        os.killpg(self._process.pid, signal.SIGSTOP)

    def go_on(self) -> None:
        """Let them run."""
        os.killpg(self._process.pid, signal.SIGCONT)

    def cpu(self) -> float:
        """CPU seconds that its processes have used, those that live."""
        ticks = 0
        for path in Path("/proc").glob("[0-9]*/stat"):
            try:
                fields = path.read_text().rpartition(")")[2].split()
            except OSError:
                continue  # it has just ended
            if int(fields[3]) == self._process.pid:  # its session
                ticks += int(fields[11]) + int(fields[12])
        return ticks / TICK

    def close(self) -> None:
        """End them all."""
        if self._process.poll() is None:
            self.go_on()
            self._process.terminate()
            with suppress(subprocess.TimeoutExpired):
                self._process.wait(STOP)
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()


def python_of(kind: Kind, environments: Path) -> Path:
    """The interpreter that has it; it may not be there."""
    return Path(sys.executable) if kind.environment is None else environments / kind.environment / "bin/python"
