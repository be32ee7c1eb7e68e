"""neoxkit verify: check that a checkpoint is whole and unaltered."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from neoxkit.cli import options

if TYPE_CHECKING:
    from neoxkit.convert.logits import Difference


@click.command()
@click.argument("source", type=click.Path(path_type=Path))
@click.option("--against", type=click.Path(path_type=Path), metavar="PATH",
              help="Compare the logits with those of this model too: a checkpoint, or a Hugging Face folder, which "
              "transformers runs.")  # fmt: skip
@click.option("--tolerance", type=options.Finite(min=0), default=1e-4, show_default=True, metavar="X",
              help="The greatest difference of a logit that passes.")  # fmt: skip
@options.json()
@click.pass_context
def command(ctx: click.Context, source: Path, against: Path | None, tolerance: float, as_json: bool) -> None:
    """Check that a checkpoint is whole and unaltered.

    SOURCE is a checkpoint, a run's folder (its newest checkpoint is checked) or a Hugging Face
    folder. Every file and tensor is read: checksums, names and shapes, numbers that are not finite,
    the optimizer's masters, tokenizer, trainer state. Exits with 0 when all is sound, 1 when
    something is wrong, which is said line by line, 2 when there is nothing to check.
    """
    from neoxkit.convert.verify import verify

    report = verify(source)
    compared = None
    if against is not None and report.sound:
        from neoxkit.convert.logits import logits_difference
        from neoxkit.convert.open import open_any

        compared = logits_difference(open_any(report.path), against)
    if as_json:
        import json

        said = {**report.json(), "against": _json(against, compared, tolerance)}
        click.echo(json.dumps(said, indent=2, ensure_ascii=False))
    else:
        for line in report.lines():
            click.echo(line)
        if against is not None:
            click.echo(_said(against, compared, tolerance))
    ctx.exit(0 if report.sound and (compared is None or compared.within(tolerance)) else 1)


def _said(against: Path, compared: Difference | None, tolerance: float) -> str:
    if compared is None:
        return f"logits: not compared with {against}, since something is wrong already"
    verdict = "the same as" if compared.within(tolerance) else "different from"
    numbers = f"greatest difference {compared.max:.3g}, mean {compared.mean:.3g}, greatest logit {compared.scale:.3g}"
    return f"logits: {verdict} those of {against}: {numbers}, tolerance {tolerance:g}"


def _json(against: Path | None, compared: Difference | None, tolerance: float) -> dict[str, Any] | None:
    """{"path", "max", "mean", "scale", "tolerance", "within"}; null when logits were not compared.

    A number that is not finite is null.
    """
    if against is None or compared is None:
        return None
    numbers = {"max": compared.max, "mean": compared.mean, "scale": compared.scale}
    finite = {key: value if abs(value) < float("inf") else None for key, value in numbers.items()}
    return {"path": str(against), **finite, "tolerance": tolerance, "within": compared.within(tolerance)}
