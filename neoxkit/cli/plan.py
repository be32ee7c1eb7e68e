"""neoxkit plan: what a run would need, before it is started."""

from __future__ import annotations

import click

from neoxkit.cli import options
from neoxkit.cli.config import FILES, SET


@click.command()
@FILES
@SET
@click.option("--devices", "--gpus", "devices", type=click.IntRange(min=1), metavar="N",
              help="Devices of the run. As many as its mesh states when left out.")  # fmt: skip
@click.option("--device", metavar="NAME", help='What they are, as torch names them: "H100", "A100-PCIE-40GB".')
@click.option("--memory", type=options.Finite(min=0, min_open=True), metavar="GB",
              help="Memory of one device. That of --device when left out.")  # fmt: skip
@click.option("--mfu", type=options.Finite(0, 1, min_open=True), default=0.4, show_default=True,
              help="The part of a device's peak that the run is thought to reach.")  # fmt: skip
@click.option("--price", type=options.Finite(min=0), metavar="AMOUNT", help="What one device costs for an hour.")
@options.json()
def command(
    files: tuple[str, ...],
    overrides: tuple[str, ...],
    devices: int | None,
    device: str | None,
    memory: float | None,
    mfu: float,
    price: float | None,
    as_json: bool,
) -> None:
    """Estimate what the run that FILES describe would need.

    Parameters, operations, the memory of a device by part, the largest micro-batch that fits, time
    and cost. Nothing is read but FILES, and, for a run of epochs, the index of its tokens. What they
    leave out that a run must have (data, a folder, steps) does not matter here, and is filled in.
    """
    from neoxkit.config.load import load_tree, validate
    from neoxkit.log import note

    tree = load_tree(files, overrides)
    assumed = fill(tree.values, devices or 1)
    config = validate(tree)
    from neoxkit.train.estimate import estimate, machine_of
    from neoxkit.train.length import lasting

    config = lasting(config)
    found = estimate(config, machine_of(config, devices, device, memory, mfu, price))
    for line in (*tree.notes, *assumed):
        note(line)
    if as_json:
        import json

        click.echo(json.dumps(found.json(), indent=2))
        return
    for line in found.lines():
        click.echo(line)


def fill(values: dict[str, object], devices: int) -> list[str]:
    """Fill in what a run must have and a plan can do without. A line for each that changes the plan."""
    nodes: dict[str, dict[str, object]] = {"data": {"train": ""}, "save": {"folder": ""}, "optimizer": {"lr": 1.0}}
    for name, node in nodes.items():
        given = values.get(name, {})
        if isinstance(given, dict):
            values[name] = {**node, **given}
    assumed = []
    if "batch" not in values:
        values["batch"] = {"size": devices}
        assumed.append(f"batch is not given: a step of {devices} samples is assumed")
    if isinstance(data := values["data"], dict) and not data["train"]:
        values.pop("epochs", None)  # of what, is not said
    if "steps" not in values and "epochs" not in values:
        values["steps"] = 1
        assumed.append("steps is not given: it is one step that is planned")
    return assumed
