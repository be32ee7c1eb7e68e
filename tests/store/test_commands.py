"""Every command with URLs in place of folders: the same results, the same refusals, few requests."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import fsspec
import pytest
from buckets import Bucket
from refusal import run

from neoxkit.checkpoint.reader import Checkpoint
from neoxkit.convert.open import open_any
from neoxkit.data.tokenizer import tokenizer_contents
from neoxkit.train.origin import origin_of


def done(command: str) -> str:
    """What a command prints, which must succeed."""
    result = run(command)
    assert result.exit_code == 0, (command, result.output, result.exception)
    return result.stdout


def refused(command: str) -> str:
    """The one line that a command, which must refuse, says."""
    result = run(command)
    assert isinstance(result.exception, SystemExit), result.exception
    assert (result.exit_code, result.stdout) == (2, ""), result.output
    (line,) = (each for each in result.stderr.splitlines() if not each.startswith("warning: "))
    assert line.startswith("error: ")
    assert "; " in line, f"no remedy: {line}"
    return line


def test_there_and_back(store: str, model: Path, checkpoint: Path, tmp_path: Path) -> None:
    weights = Checkpoint.open(checkpoint).fingerprint
    assert done(f"import {model} {store}/a --tp 2") == f"{store}/a: model {weights}\n"
    assert done(f"reshard {store}/a {store}/b --pp 3") == f"{store}/b: model {weights}\n"
    done(f"export {store}/b {store}/hf --max-shard-size 100KB")
    assert done(f"import {store}/hf {store}/c") == f"{store}/c: model {weights}\n"
    assert done(f"reshard {store}/c {tmp_path / 'disk'}") == f"{tmp_path / 'disk'}: model {weights}\n"
    assert done(f"reshard {tmp_path / 'disk'} {store}/d --tp 2") == f"{store}/d: model {weights}\n"
    for name in "abcd":
        assert "sound" in done(f"verify {store}/{name}")
    assert "sound" in done(f"verify {store}/hf")
    assert "the same" in done(f"diff {store}/a {store}/b")
    assert "the same" in done(f"diff {store}/hf {model} --values")


def test_what_is_there_is_what_a_disk_would_hold(bucket: Bucket, model: Path, tmp_path: Path) -> None:
    done(f"import {model} {bucket}/a --tp 2")
    done(f"import {model} {tmp_path / 'a'} --tp 2")
    theirs, ours = (
        bucket.objects("a"),
        {
            path.relative_to(tmp_path / "a").as_posix(): path.read_bytes()
            for path in (tmp_path / "a").rglob("*")
            if path.is_file()
        },
    )
    assert sorted(theirs) == sorted(ours)
    assert theirs["config.json"] == ours["config.json"]
    shutil.rmtree(tmp_path / "a")
    for name, data in theirs.items():
        (tmp_path / "a" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "a" / name).write_bytes(data)
    assert "sound" in done(f"verify {tmp_path / 'a'}")
    assert not bucket.uploads()


def test_an_export_is_the_same(bucket: Bucket, checkpoint: Path, tmp_path: Path) -> None:
    done(f"export {checkpoint} {tmp_path / 'out'} --max-shard-size 100KB")
    done(f"export {checkpoint} {bucket}/out --max-shard-size 100KB")
    assert bucket.objects("out") == {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}


def test_logits_are_compared_with_a_copy(bucket: Bucket, checkpoint: Path) -> None:
    assert "logits the same" in done(f"export {checkpoint} {bucket}/hf --check")
    assert "logits: the same" in done(f"verify {checkpoint} --against {bucket}/hf")


def test_inspect(store: str, checkpoint: Path) -> None:
    done(f"reshard {checkpoint} {store}/a --tp 2")
    here, there = (json.loads(done(f"inspect --json --tensors {each}")) for each in (checkpoint, f"{store}/a"))
    assert there["path"] == f"{store}/a"
    for key in ("kind", "family", "model", "parameters", "components", "config", "tensors"):
        assert there[key] == here[key], key
    assert [file["path"] for file in there["files"]] == [file["path"] for file in here["files"]]


def test_a_run(bucket: Bucket, checkpoint: Path) -> None:
    for step in (1, 12):
        bucket.copy_in(checkpoint, f"run/step-{step:08d}")
    bucket.put("run/step-00000020/model/x.safetensors", b"not finished")
    result = run(f"inspect {bucket}/run")
    assert f"path         {bucket}/run/step-00000012" in result.stdout
    assert "step-00000020 is passed over" in result.stderr
    assert Checkpoint.open(f"{bucket}/run").path.name == "step-00000012"


def test_a_file_url_is_a_path(checkpoint: Path, tmp_path: Path) -> None:
    done(f"reshard file://{checkpoint} file://{tmp_path / 'out'}")
    assert (tmp_path / "out" / "manifest.json").is_file()


def test_what_exists_is_not_replaced(store: str, model: Path, checkpoint: Path) -> None:
    done(f"reshard {checkpoint} {store}/a --tp 2")
    before = Checkpoint.open(f"{store}/a").manifest
    assert "exists" in refused(f"reshard {checkpoint} {store}/a")
    assert "exists" in refused(f"export {checkpoint} {store}/a")
    assert "is no Hugging Face model" in refused(f"export {checkpoint} {store}/a --force")
    assert Checkpoint.open(f"{store}/a").manifest == before
    done(f"reshard {checkpoint} {store}/a --pp 3 --force")
    assert "sound" in done(f"verify {store}/a")
    fs, _ = fsspec.url_to_fs(store)
    names = {name.partition("/a/")[2] for name in fs.find(f"{store}/a")}
    assert names == {"manifest.json", *(file.path for file in Checkpoint.open(f"{store}/a").manifest.files)}
    done(f"export {checkpoint} {store}/hf")
    done(f"export {checkpoint} {store}/hf --force")
    assert "is not a checkpoint" in refused(f"import {model} {store}/hf --force")


@pytest.mark.parametrize("name", ["model/pp00-tp01.safetensors", "config.json"])
def test_a_flipped_bit(bucket: Bucket, checkpoint: Path, name: str) -> None:
    bucket.copy_in(checkpoint, "a")
    data = bytearray(bucket.objects("a")[name])
    data[-9] ^= 1
    bucket.put(f"a/{name}", bytes(data))
    assert f"{bucket}/a/{name}" in refused(f"reshard {bucket}/a {bucket}/b")
    result = run(f"verify {bucket}/a")
    assert result.exit_code == 1
    assert f"bad: {bucket}/a/{name}: damaged: its checksum is" in result.stdout
    assert not bucket.objects("b")
    assert not bucket.uploads()


@pytest.mark.parametrize("command", ["inspect {}/a", "reshard {}/a {}/b", "generate {}/a --prompt x"])
def test_an_object_that_is_missing_or_short(bucket: Bucket, checkpoint: Path, command: str) -> None:
    bucket.copy_in(checkpoint, "a")
    name = "model/pp00-tp01.safetensors"
    bucket.put(f"a/{name}", bucket.objects("a")[name][:-1])
    assert f"{bucket}/a/{name}: cut short" in refused(command.format(bucket, bucket))
    bucket.client.delete_object(Bucket=bucket.name, Key=f"a/{name}")
    assert f"{bucket}/a/{name}: the file is missing" in refused(command.format(bucket, bucket))


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("s3://no-such-bucket/a", "s3://no-such-bucket/a: The specified bucket does not exist; check the name"),
        ("s3://", "it names no bucket"),
        ("https://example.org/a", "a web server does not list its files"),
        ("carrier-pigeon://bucket/a", "Protocol not known"),
    ],
)
def test_no_such_place(s3: Any, checkpoint: Path, url: str, says: str) -> None:
    assert says in refused(f"inspect {url}")
    assert says in refused(f"reshard {checkpoint} {url}")


def test_nothing_is_there(store: str) -> None:
    assert f"{store}/a: no such file or folder" in refused(f"inspect {store}/a")
    assert f"{store}/a: no such file or folder" in refused(f"import {store}/a {store}/b")


def test_access_is_denied(s3: Any, refusing: str, checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", refusing)
    _new_connections()
    assert "s3://secret/a: the store refuses: Access Denied" in refused("inspect s3://secret/a")
    assert "s3://secret/a: the store refuses: Access Denied" in refused(f"reshard {checkpoint} s3://secret/a")
    _new_connections()


def test_no_credentials(bucket: Bucket, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    _new_connections()
    assert "Unable to locate credentials; check the address, the credentials" in refused(f"inspect {bucket}/a")
    _new_connections()


def test_nobody_answers(s3: Any, nobody: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", nobody)
    monkeypatch.setattr("s3fs.S3FileSystem.retries", 1)
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    _new_connections()
    assert "s3://bucket/a: Could not connect to the endpoint" in refused("inspect s3://bucket/a")
    _new_connections()


@pytest.fixture(autouse=True)
def _of_this_test() -> Iterator[None]:
    """fsspec keeps connections for the whole process; those of a test that set the environment must go."""
    _new_connections()
    yield
    _new_connections()


def _new_connections() -> None:
    from s3fs import S3FileSystem

    S3FileSystem.clear_instance_cache()


def test_what_is_not_installed(s3: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "s3fs", None)
    from fsspec.registry import _registry

    monkeypatch.delitem(_registry, "s3", raising=False)
    assert refused("inspect s3://bucket/a").endswith("pip install 'neoxkit[s3]'")
    monkeypatch.setitem(sys.modules, "gcsfs", None)
    assert "install gcsfs" in refused("inspect gs://bucket/a")
    monkeypatch.setitem(sys.modules, "fsspec", None)
    assert refused("inspect s3://bucket/a").endswith("pip install 'neoxkit[s3]'")


def test_pickles_stay_on_disks(bucket: Bucket, model: Path) -> None:
    bucket.put("bin/config.json", (model / "config.json").read_bytes())
    bucket.put("bin/pytorch_model.bin", b"")
    assert "a file of torch.save, which is read from a disk only" in refused(f"import {bucket}/bin {bucket}/out")
    bucket.put("neox/global_step3/mp_rank_00_model_states.pt", b"")
    assert "a gpt-neox checkpoint, which is read from a disk only" in refused(f"import {bucket}/neox {bucket}/out")
    bucket.put("meta/params.json", b"{}")
    bucket.put("meta/consolidated.00.pth", b"")
    assert "which are read from a disk only" in refused(f"import {bucket}/meta {bucket}/out")


def test_generate(store: str, checkpoint: Path) -> None:
    done(f"reshard {checkpoint} {store}/a")
    said = done(f"generate {store}/a --prompt 'a b' --max-tokens 3")
    assert said == done(f"generate {checkpoint} --prompt 'a b' --max-tokens 3")


def test_a_run_begins_with_weights_of_a_store(store: str, checkpoint: Path, tmp_path: Path) -> None:
    done(f"reshard {checkpoint} {store}/a")
    config = Checkpoint.open(checkpoint).config
    given = {"load": f"{store}/a", "save": SimpleNamespace(folder=str(tmp_path / "run")), "model": config}
    origin = origin_of(SimpleNamespace(**given))  # type: ignore[arg-type]
    assert isinstance(origin.source, Checkpoint)
    assert origin.lineage[0][-1]["source"] == f"{store}/a"
    assert tokenizer_contents(origin.tokenizer) == tokenizer_contents(checkpoint / "tokenizer")  # type: ignore[arg-type]
    origin.close()


def requests(caplog: pytest.LogCaptureFixture, command: str) -> list[str]:
    """What the server was asked for by a command: "GET a/manifest.json", and LIST."""
    caplog.clear()
    with caplog.at_level("INFO", logger="werkzeug"):
        done(command)
    found = [re.search(r"([A-Z]+) (/\S*) HTTP", record.message) for record in caplog.records]
    asked = [(each[1], each[2]) for each in found if each]
    return sorted("LIST" if "list-type" in path else f"{verb} {path.split('/', 2)[2]}" for verb, path in asked)


def test_few_requests(bucket: Bucket, model: Path, checkpoint: Path, caplog: pytest.LogCaptureFixture) -> None:
    """An index is read with a request for each file that is part of it, and one that lists them."""
    bucket.copy_in(checkpoint, "a")
    bucket.copy_in(model, "hf")
    assert requests(caplog, f"inspect {bucket}/a") == [
        "GET a/config.json",
        "GET a/manifest.json",
        "GET a/tokenizer/tokenizer.json",
        "LIST",
    ]
    assert requests(caplog, f"diff {bucket}/a {bucket}/a") == ["GET a/manifest.json"] * 2 + ["LIST"] * 2
    files = sorted(path.name for path in model.glob("model-*"))
    assert len(files) > 1
    small = ["config.json", *files, "model.safetensors.index.json", "tokenizer.json"]
    assert requests(caplog, f"inspect {bucket}/hf") == [*(f"GET hf/{name}" for name in small), "LIST"]
    asked = requests(caplog, f"verify {bucket}/a")
    assert asked.count("LIST") == 1
    assert asked.count("GET a/model/pp00-tp00.safetensors") == 4  # its tensors once, its header three times
    asked = requests(caplog, f"reshard {bucket}/a {bucket}/b --tp 2")
    assert asked.count("GET a/model/pp00-tp00.safetensors") == 2
    assert [each for each in asked if each.startswith("P") and each.endswith("b/manifest.json")] == [
        "PUT b/manifest.json"
    ]
    assert len(asked) < 35


def test_a_disk_needs_no_fsspec(checkpoint: Path) -> None:
    code = (
        "import sys; from neoxkit.convert.describe import describe; from pathlib import Path\n"
        f"describe(Path({str(checkpoint)!r})); import neoxkit.cli.options\n"
        "assert not {'fsspec', 's3fs', 'torch'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_list_that_leads_out(bucket: Bucket, model: Path) -> None:
    """Names of objects may hold `..`: no copy for transformers may be made outside its folder."""
    bucket.copy_in(model, "hf")
    bucket.put("hf/../../escaped", b"x")
    from neoxkit.checkpoint.store import place
    from neoxkit.checkpoint.store_input import on_disk
    from neoxkit.errors import CheckpointError

    with pytest.raises(CheckpointError, match="leads out of the folder"), on_disk(place(f"{bucket}/hf")):
        pass


def test_values_are_read_from_python(store: str, checkpoint: Path) -> None:
    done(f"reshard {checkpoint} {store}/a")
    from neoxkit.checkpoint.store import place

    with Checkpoint.open(f"{store}/a") as there, Checkpoint.open(checkpoint) as here:
        for name in here.names():
            assert there.read(name).equal(here.read(name))
    assert open_any(place(f"{store}/a")).names() == here.names()
