"""How long `neoxkit --help` and `neoxkit inspect` take, and that neither imports torch.

    python benchmarks/start_up.py [--runs 15]

The checkpoint is a random GPT-NeoX of 24 layers, cut for tp 4 and pp 2: 388 tensors in 8 files of
weights. Limits: 0.15 s for --help, 0.3 s for inspect, as the median of the runs on an idle machine.
CPU seconds are printed beside wall seconds, since other work on the machine moves only the latter.
"""

from __future__ import annotations

import argparse
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

LIMITS = {"--help": 0.15, "inspect": 0.3}
PROBE = """
import sys
from neoxkit.cli import main
try:
    main(sys.argv[1:])
finally:
    print(sorted({"torch", "transformers"} & set(sys.modules)), file=sys.stderr)
"""


def make_checkpoint(folder: Path) -> Path:
    """A checkpoint with as many tensors and files as a real one, and little in them."""
    import transformers

    config = transformers.GPTNeoXConfig(
        vocab_size=1024, hidden_size=64, num_hidden_layers=24, num_attention_heads=4, intermediate_size=256
    )
    transformers.GPTNeoXForCausalLM(config).save_pretrained(folder / "theirs")
    destination = folder / "checkpoint"
    command = [sys.executable, "-m", "neoxkit", "import", str(folder / "theirs"), str(destination), "--tp=4", "--pp=2"]
    subprocess.run(command, check=True, capture_output=True)
    return destination


def run(command: list[str]) -> tuple[float, float]:
    """Wall and CPU seconds of a command."""
    before, begun = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    wall, after = time.perf_counter() - begun, resource.getrusage(resource.RUSAGE_CHILDREN)
    return wall, after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime


def main() -> int:
    """Measure; 1 when a median is above its limit or something slow was imported."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=15, help="of each command")
    runs = parser.parse_args().runs
    neoxkit = Path(sys.executable).with_name("neoxkit")
    failed = 0
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = make_checkpoint(Path(folder))
        for name, args in {"--help": ["--help"], "inspect": ["inspect", str(checkpoint)]}.items():
            probe = [sys.executable, "-c", PROBE, *args]
            slow = subprocess.run(probe, check=True, capture_output=True, text=True).stderr.splitlines()[-1]
            times = [run([str(neoxkit), *args]) for _ in range(runs)]
            wall, cpu = (statistics.median(column) for column in zip(*times, strict=True))
            verdict = "ok" if wall <= LIMITS[name] and slow == "[]" else "MISSED"
            failed += verdict != "ok"
            print(
                f"neoxkit {name:<8} median {wall:.3f} s (best {min(times)[0]:.3f}), CPU {cpu:.3f} s, "
                f"limit {LIMITS[name]} s, slow imports {slow}: {verdict}"
            )
    print(f"{runs} runs each; load average {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
