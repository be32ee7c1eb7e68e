"""neoxkit rebuild-manifest: what it prints and exits with."""

from __future__ import annotations

from pathlib import Path

from refusal import cut, flip, remove, run


def test_a_lost_manifest(here: Path) -> None:
    before = run("diff checkpoint hf").stdout
    remove("checkpoint/manifest.json")()
    dry = run("rebuild-manifest checkpoint --dry-run")
    assert (dry.exit_code, dry.stderr) == (0, "")
    assert dry.stdout.splitlines()[-1].endswith("nothing was written")
    assert not Path("checkpoint/manifest.json").exists()
    result = run("rebuild-manifest checkpoint")
    assert result.exit_code == 0, result.output
    assert "damage from before they cannot find" in result.stderr
    assert "model " in result.stdout.splitlines()[-1]
    assert run("verify checkpoint").exit_code == 0
    assert run("diff checkpoint hf").stdout == before


def test_of_a_run(here: Path) -> None:
    cut("run/step-00000002/manifest.json", -20)()
    assert run("inspect run").exit_code == 2
    result = run("rebuild-manifest run/step-00000002")
    assert result.exit_code == 0, result.output
    assert "from trainer/state.json: step, samples, tokens" in result.stdout
    assert "tensors have the checksum of the damaged manifest.json" in result.stdout
    assert run("train run.yaml --set steps=3").exit_code == 0
    assert run("verify run").exit_code == 0


def test_damage_that_the_old_manifest_shows(here: Path) -> None:
    flip("checkpoint/model/pp00-tp00.safetensors")()
    cut("checkpoint/manifest.json", -3)()
    result = run("rebuild-manifest checkpoint")
    assert (result.exit_code, result.stdout) == (2, "")
    assert "have another checksum" in result.stderr
    assert run("rebuild-manifest checkpoint --force").exit_code == 0


def test_refused(here: Path) -> None:
    for path, said in {
        "checkpoint": "is valid",
        "nowhere": "no such folder",
        "hf": "does not say what it holds",
    }.items():
        result = run(f"rebuild-manifest {path}")
        assert (result.exit_code, result.stdout) == (2, "")
        assert said in result.stderr
    remove("checkpoint/model/pp00-tp01.safetensors")()
    remove("checkpoint/manifest.json")()
    result = run("rebuild-manifest checkpoint")
    assert result.exit_code == 2
    assert "no piece holds" in result.stderr
