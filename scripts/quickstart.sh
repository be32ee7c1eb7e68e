#!/bin/sh
# From text to a Hugging Face model, in ordinary commands. `make quickstart` runs this; each command
# is shown before it runs, and does the same when you type it. Everything is made in quickstart/.
# What is there is not made again: to start afresh, remove quickstart/.
set -eu
cd "$(dirname "$0")/.."
mkdir -p quickstart
started=$(date +%s)

step() { printf '\n== %s\n' "$*"; }
show() { # show COMMAND...: print it as one would type it
    printf '$'
    for word; do
        case $word in *[!A-Za-z0-9_./=-]*) printf " '%s'" "$word" ;; *) printf ' %s' "$word" ;; esac
    done
    printf '\n'
}
run() { show "$@" && "$@"; }
once() { # once RESULT COMMAND...: run it, unless its result is there
    result=$1
    shift
    if [ -e "$result" ]; then show "$@" && echo "done before: $result is there"; else run "$@"; fi
}

step "1. Text becomes tokens"
# The source of Python's own library is on every machine (its tests are not, so they are left out). 3 of
# 100 of its modules are held out; a byte-level BPE of 4096 entries is trained on the others.
library=$(python -c 'import sysconfig; print(sysconfig.get_path("stdlib"))')
once quickstart/stdlib-train.json \
    neoxkit data tokenize "$library" -o quickstart/stdlib --include '*.py' \
    --exclude '*-packages' --exclude test --exclude tests --exclude idle_test --holdout 0.03 \
    --train-tokenizer 4096

step "2. A model learns to continue them"
# Stopped and started again, a run goes on where it was, bit for bit.
run neoxkit train configs/quickstart.yaml

step "3. What is in the checkpoint, and is it sound?"
run neoxkit inspect quickstart/run
run neoxkit verify quickstart/run

step "4. The checkpoint becomes a Hugging Face model"
# --check loads it with transformers and compares the logits.
if [ quickstart/run/latest -nt quickstart/hf/config.json ]; then rm -rf quickstart/hf; fi
once quickstart/hf/config.json neoxkit export quickstart/run quickstart/hf --check

step "5. It writes"
run neoxkit generate quickstart/run --prompt 'def read_file(path):' --max-tokens 120 --temperature 0.7 --seed 1
echo

step "6. How well does it foretell modules that it has never seen?"
run neoxkit eval quickstart/run --files-from quickstart/stdlib-heldout.files.txt
python - quickstart/stdlib-heldout.files.txt <<'END'
import lzma, pathlib, sys
files = pathlib.Path(sys.argv[1]).read_text(encoding="utf-8").splitlines()
text = b"".join(pathlib.Path(file).read_bytes() for file in files)
bits = 8 * len(lzma.compress(text, preset=9)) / len(text)
print(f"xz -9, given the same {len(files)} files at once, needs {bits:.3f} bits per byte")
END

cat <<END

In $(($(date +%s) - started)) seconds this made:
  quickstart/stdlib-train.bin, .idx   tokens, in the format that Megatron and GPT-NeoX read
  quickstart/stdlib-tokenizer/        their tokenizer
  quickstart/run/                     the checkpoint, with metrics.jsonl and the curve of the loss, loss.png
  quickstart/hf/                      the model as transformers loads it

Three commands to try next (. .venv/bin/activate makes neoxkit known to your shell):
  neoxkit reshard quickstart/run quickstart/tp2 --tp 2        cut for two devices, the same model bit for bit
  neoxkit diff quickstart/run quickstart/tp2                  which the checksums show without reading a tensor
  neoxkit generate quickstart/run --prompt 'import '          another prompt
END
