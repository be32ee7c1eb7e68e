"""lm-evaluation-harness's own command line, which knows `--model neoxkit`.

    python -m neoxkit.lm_eval --model neoxkit --model_args checkpoint=DIR --tasks arc_easy

Its next release finds the model by neoxkit's entry point; then `lm_eval --model neoxkit` does the same.
"""

from __future__ import annotations

import sys

MODEL = "neoxkit"
TARGET = "neoxkit.eval.stock:StockLM"


def main() -> None:
    """Run it. A mistake in the input is told in one line, with exit code 2."""
    from lm_eval.__main__ import cli_evaluate
    from lm_eval.api.registry import model_registry

    from neoxkit.errors import NeoxkitError

    if MODEL not in model_registry:
        model_registry.register(MODEL, target=TARGET)
    try:
        cli_evaluate()
    except NeoxkitError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)


if __name__ == "__main__":
    main()
