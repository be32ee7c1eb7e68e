#!/bin/sh
# From text to a Hugging Face model, in ordinary commands. `make quickstart` runs this; each command
# is shown before it runs and works the same when you type it. Everything is made in quickstart/.
# A step whose result is there is not done again: to start afresh, remove quickstart/.
set -eu
cd "$(dirname "$0")/.."
mkdir -p quickstart
started=$(date +%s)

step() { printf '\n== %s\n' "$*"; }
run() { printf '$ %s\n' "$*"; "$@"; }
once() { # once RESULT COMMAND...: run the command unless its result is there
    result=$1
    shift
    if [ -e "$result" ]; then printf '$ %s\n  (done before: %s is there)\n' "$*" "$result"; else run "$@"; fi
}

step "1. Text becomes tokens"
# The source of Python's own library is on every machine. Its modules are divided: 3 of 100 are held
# out, and a byte-level BPE of 4096 entries is trained on the others.
library=$(python -c 'import sysconfig; print(sysconfig.get_path("stdlib"))')
once quickstart/stdlib-train.json \
    neoxkit data tokenize "$library" -o quickstart/stdlib --include '*.py' --exclude '*-packages' \
    --holdout 0.03 --train-tokenizer 4096

step "2. A model learns to continue them"
once quickstart/run/loss.png neoxkit train configs/quickstart.yaml

step "3. What is in the checkpoint, and is it sound?"
run neoxkit inspect quickstart/run
run neoxkit verify quickstart/run

step "4. The checkpoint becomes a Hugging Face model"
# --check loads it with transformers and compares the logits.
once quickstart/hf/config.json neoxkit export quickstart/run quickstart/hf --check

step "5. It writes"
run neoxkit generate quickstart/run --prompt 'class Stack:
    def __init__(self):
' --tokens 120 --temperature 0.6 --seed 1

step "6. How well does it predict modules that it has never seen?"
while read -r file; do cat "$file"; done <quickstart/stdlib-heldout.files.txt >quickstart/heldout.txt
run neoxkit eval quickstart/run --perplexity quickstart/heldout.txt
python - quickstart/heldout.txt <<'END'
import lzma, sys
text = open(sys.argv[1], "rb").read()
bits = 8 * len(lzma.compress(text, preset=9)) / len(text)
print(f"xz -9 needs {bits:.3f} bits per byte for the same text")
END

cat <<END

Made in $(($(date +%s) - started)) seconds:
  quickstart/stdlib-train.bin    tokens, in the format of Megatron and GPT-NeoX
  quickstart/stdlib-tokenizer/   the tokenizer
  quickstart/run/                the checkpoint; metrics.jsonl and loss.png beside it
  quickstart/hf/                 the model as transformers loads it

Three commands to try next:
  neoxkit reshard quickstart/run quickstart/tp2 --tp 2     # cut for two devices, bit for bit the same model
  neoxkit diff quickstart/run quickstart/tp2               # which the checksums show without reading a tensor
  neoxkit generate quickstart/run --prompt 'import '       # another prompt
(neoxkit is in .venv/bin: run \`. .venv/bin/activate\` once.)
END
