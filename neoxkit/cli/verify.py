"""neoxkit verify: check that a checkpoint is whole and unaltered."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from neoxkit.checkpoint.store import Place
from neoxkit.cli import options

if TYPE_CHECKING:
    from neoxkit.convert.logits import Difference


@click.command()
@click.argument("source", type=options.PLACE)
@click.option("--against", type=options.PLACE, metavar="PATH",
              help="Compare the logits with those of this model too: any that "
              "SOURCE may be. transformers runs a Hugging Face folder, neoxkit the others.")  # fmt: skip
@click.option("--tolerance", type=options.Finite(min=0), default=1e-4, show_default=True, metavar="X",
              help="The greatest difference of a logit that passes.")  # fmt: skip
@options.assume()
@options.settings()
@options.json()
@click.pass_context
def command(
    ctx: click.Context,
    source: Place,
    against: Place | None,
    tolerance: float,
    assume: tuple[str, ...],
    config: tuple[Path, ...],
    as_json: bool,
) -> None:
    """Check that a checkpoint is whole and unaltered.

    SOURCE is a checkpoint, a run's folder (its newest checkpoint is checked), or the folder of a model
    that another program wrote, as `neoxkit import` takes it. Every file and tensor is read:
    checksums, names and shapes, numbers that are not finite, the optimizer's masters, tokenizer,
    trainer state. Exits with 0 when all is sound, 1 when something is wrong, which is said line by line,
    2 when there is nothing to check. SOURCE may be a URL of an object store: s3://BUCKET/FOLDER.
    """
    from neoxkit.convert.open import divide, open_any
    from neoxkit.convert.verify import verify

    known = options.assumptions(assume)
    given = [(known, config)] if against is None else divide([source, against], known, config)
    report = verify(source, *given[0])
    compared = None
    if against is not None and report.sound:
        from neoxkit.convert.logits import logits_difference

        compared = logits_difference(open_any(report.path, *given[0]), against, 64, *given[1])
    if as_json:
        import json

        said = {**report.json(), "against": against_json(against, compared, tolerance)}
        click.echo(json.dumps(said, indent=2, ensure_ascii=False))
    else:
        for line in report.lines():
            click.echo(line)
        if against is not None:
            click.echo(_said(against, compared, tolerance))
    ctx.exit(0 if report.sound and (compared is None or compared.within(tolerance)) else 1)


def _said(against: Place, compared: Difference | None, tolerance: float) -> str:
    if compared is None:
        return f"logits: not compared with {against}, since something is wrong already"
    verdict = "the same as" if compared.within(tolerance) else "different from"
    numbers = f"greatest difference {compared.max:.3g}, mean {compared.mean:.3g}, greatest logit {compared.scale:.3g}"
    return f"logits: {verdict} those of {against}: {numbers}, tolerance {tolerance:g}"


def against_json(against: Place | None, compared: Difference | None, tolerance: float) -> dict[str, Any] | None:
    """The key `against`: how far the logits are from those of another model; null when they were not compared.

    {"path", "max", "mean", "scale", "tolerance", "within"}; a number that is not finite is null.
    """
    if against is None or compared is None:
        return None
    numbers = {"max": compared.max, "mean": compared.mean, "scale": compared.scale}
    finite = {key: value if abs(value) < float("inf") else None for key, value in numbers.items()}
    return {"path": str(against), **finite, "tolerance": tolerance, "within": compared.within(tolerance)}
