"""What services are told, read back with their own readers. Nothing here needs a network."""

from __future__ import annotations

import json
import struct
import time
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import tiny_runs as runs

from neoxkit.config.run import RunConfig
from neoxkit.train import metrics, trackers
from neoxkit.train.loop import train
from neoxkit.train.trackers import Trackers, open_trackers

RECORDS: list[dict[str, Any]] = [
    {"step": 1, "loss": 4.0, "norm": 0.5, "tokens": 96, "lr": 1e-3, "skipped": False},
    {"step": 2, "loss": 3.5, "norm": 0.25, "tokens": 96, "lr": 2e-3, "memory": 10**9},
    {"step": 2, "valid_loss": 3.75},
]
TOLD = {
    "train/loss": {1: 4.0, 2: 3.5},
    "train/gradient_norm": {1: 0.5, 2: 0.25},
    "train/learning_rate": {1: 1e-3, 2: 2e-3},
    "train/skipped": {1: 0.0},
    "speed/memory": {2: 1e9},
    "valid/loss": {2: 3.75},
}


def config(folder: Path, **logging: Any) -> RunConfig:
    return runs.config("gpt_neox", folder, logging={"every": 1, **logging})


def tell(config: RunConfig, folder: Path, begun: int = 0, code: int = 0) -> None:
    folder.mkdir(exist_ok=True)
    opened = open_trackers(config, folder, begun)
    for record in RECORDS:
        opened.log(record)
    opened.close(code, "the loss is nan" if code else "")


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_tensorboard_reads_what_was_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    tell(config(tmp_path, tensorboard=str(tmp_path / "board")), tmp_path)
    reader = EventAccumulator(str(tmp_path / "board"))
    reader.Reload()
    found = {tag: {event.step: event.value for event in reader.Scalars(tag)} for tag in reader.Tags()["scalars"]}
    assert found.keys() == TOLD.keys()
    for name, values in TOLD.items():
        assert found[name] == pytest.approx(values)
    assert "warning" not in capsys.readouterr().err


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_tensorboard_forgets_what_a_resumed_run_makes_again(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    told = config(tmp_path, tensorboard=str(tmp_path / "board"))
    tell(told, tmp_path)
    again = open_trackers(told, tmp_path, begun=1)
    again.log({"step": 2, "loss": 3.25})
    again.close()
    reader = EventAccumulator(str(tmp_path / "board"))
    reader.Reload()
    assert [(event.step, event.value) for event in reader.Scalars("train/loss")] == [(1, 4.0), (2, 3.25)]


def log_records(file: bytes) -> Iterator[bytes]:
    """The records of a LevelDB log, which wandb's files are after a header of 7 bytes.

    Blocks are of 32 KiB; a part of a record has a checksum (4 bytes), a length (2) and a type (1):
    1 whole, 2 first, 3 middle, 4 last.
    """
    at, record = 7, b""
    while at + 7 <= len(file):
        if 32768 - at % 32768 < 7:
            at += 32768 - at % 32768
            continue
        length, kind = struct.unpack_from("<HB", file, at + 4)
        record += file[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):
            yield record
            record = b""


def offline_run(folder: Path) -> dict[str, Any]:
    """What the newest offline run of wandb says of itself: its name, group, configuration and history."""
    from wandb.proto import wandb_internal_pb2

    (file,) = sorted(folder.glob("wandb/offline-run-*/*.wandb"))[-1:]
    found: dict[str, Any] = {"history": []}
    for data in log_records(file.read_bytes()):
        record = wandb_internal_pb2.Record()
        record.ParseFromString(data)
        if record.WhichOneof("record_type") == "run":
            found["config"] = {item.key: json.loads(item.value_json) for item in record.run.config.update}
            found.update(id=record.run.run_id, project=record.run.project, group=record.run.run_group)
            found["name"] = record.run.display_name
        if record.WhichOneof("record_type") == "exit":
            found["code"] = record.exit.exit_code
        if record.WhichOneof("record_type") == "history":
            items = record.history.item
            found["history"].append({i.key or ".".join(i.nested_key): json.loads(i.value_json) for i in items})
    return found


@pytest.mark.filterwarnings("ignore")
def test_weights_and_biases_keeps_what_was_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Offline, in the run's folder; a resumed run has the same identity."""
    wandb = pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    monkeypatch.setenv("WANDB_CONFIG_DIR", str(tmp_path / "config"))
    monkeypatch.setenv("WANDB_CACHE_DIR", str(tmp_path / "cache"))
    folder = tmp_path / "small-run"
    told = config(tmp_path, wandb={"project": "tiny", "group": "pairs"})
    tell(told, folder, code=2)
    assert "warning" not in capsys.readouterr().err
    until = time.monotonic() + 60
    while "code" not in (found := offline_run(folder)) and time.monotonic() < until:
        time.sleep(0.5)  # a process of its own writes the file, and is not always waited for
    assert (found["project"], found["group"], found["name"]) == ("tiny", "pairs", "small-run")
    assert found["code"] == 2, "a run that failed is not shown as finished"
    assert found["config"]["steps"] == told.steps
    for name, values in TOLD.items():
        assert {row["_step"]: row[name] for row in found["history"] if name in row} == pytest.approx(values)
    identity = json.loads((folder / trackers.IDENTITIES).read_text())["wandb"]
    assert found["id"] == identity
    asked: dict[str, Any] = {}
    monkeypatch.setattr(wandb, "init", lambda **options: asked.update(options))
    open_trackers(told, folder, 2)
    assert (asked["id"], asked["resume"]) == (identity, "allow")


@pytest.mark.filterwarnings("ignore")
def test_comet_keeps_what_was_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("comet_ml")
    folder = tmp_path / "small-run"
    tell(config(tmp_path, comet={"project": "tiny", "offline": str(tmp_path / "comet")}), folder, code=2)
    assert "warning: Comet" not in capsys.readouterr().err
    (archive,) = (tmp_path / "comet").glob("*.zip")
    with zipfile.ZipFile(archive) as opened:
        messages = [json.loads(line) for line in opened.read("messages.json").decode().splitlines()]
        about = json.loads(opened.read("experiment.json"))
    assert about["project_name"] == "tiny"
    others = {each["payload"]["key"]: each["payload"]["value"] for each in messages if each["type"] == "log_other"}
    assert (others["exit_code"], others["ended_by"]) == (2, "the loss is nan")
    found: dict[str, dict[int, float]] = {}
    for message in messages:
        metric = message.get("payload", {}).get("metric")
        if metric and metric["metricName"] in TOLD:
            found.setdefault(metric["metricName"], {})[metric["step"]] = float(metric["metricValue"])
    assert found == {name: pytest.approx(values) for name, values in TOLD.items()}


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_run_tells_its_trackers_what_it_writes(folder: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    board = str(folder / "board")
    train(runs.config("llama", folder, f"logging.tensorboard={board}", "evaluation.every=2", steps=4), {})
    reader = EventAccumulator(board)
    reader.Reload()
    records = metrics.read(folder / "run")
    for key, name in (("loss", "train/loss"), ("valid_loss", "valid/loss"), ("perplexity", "train/perplexity")):
        told = {event.step: event.value for event in reader.Scalars(name)}
        assert told == pytest.approx({record["step"]: record[key] for record in records if key in record}, rel=1e-6)


class Failing:
    """A tracker that fails from its second record on."""

    def __init__(self) -> None:
        self.told: list[int] = []

    def log(self, step: int, values: Mapping[str, float]) -> None:
        self.told.append(step)
        if len(self.told) > 1:
            raise ConnectionError("the service\nis gone")

    def close(self, code: int, cause: str) -> None:
        raise AssertionError("it was left out")


def test_a_tracker_that_fails_is_warned_of_once(capsys: pytest.CaptureFixture[str]) -> None:
    failing = Failing()
    told: list[int] = []

    class Sound(Failing):
        def log(self, step: int, values: Mapping[str, float]) -> None:
            told.append(step)

        def close(self, code: int, cause: str) -> None:
            told.append(-1)

    opened = Trackers({"Broken": failing_opener, "Failing": lambda: failing, "Sound": Sound})
    for step in (1, 2, 3):
        opened.log({"step": step, "loss": 1.0})
    opened.close()
    assert failing.told == [1, 2]
    assert told == [1, 2, 3, -1]
    assert capsys.readouterr().err.splitlines() == [
        "warning: Broken fails, and is told nothing more in this run: no key",
        "warning: Failing fails, and is told nothing more in this run: the service is gone",
    ]


def failing_opener() -> Failing:
    raise ValueError("no key")


def test_a_tracker_that_is_not_installed_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trackers, "find_spec", lambda module: None)
    monkeypatch.setitem(__import__("sys").modules, "wandb", None)
    with pytest.raises(ModuleNotFoundError) as raised:
        open_trackers(config(tmp_path, wandb={}), tmp_path, 0)
    assert raised.value.name == "wandb"
