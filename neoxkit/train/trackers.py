"""Services that show how a run goes: TensorBoard, Weights & Biases, Comet.

Training never waits or fails for one: a tracker that raises is warned of once, and left out from then on.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

from neoxkit.config.run import RunConfig
from neoxkit.config.watching import Comet, Wandb
from neoxkit.log import warn

IDENTITIES = "trackers.json"
"""In the run's folder: what services call the run, so that a resumed run goes on in the same plots."""

NAMES = {
    "loss": "train/loss",
    "perplexity": "train/perplexity",
    "lr": "train/learning_rate",
    "norm": "train/gradient_norm",
    "parameter_norm": "train/parameter_norm",
    "noise_scale": "train/noise_scale",
    "loss_scale": "train/loss_scale",
    "skipped": "train/skipped",
    "valid_loss": "valid/loss",
    "bits_per_byte": "valid/bits_per_byte",
    "seconds": "speed/seconds",
    "tokens_per_second": "speed/tokens_per_second",
    "mfu": "speed/mfu",
    "hfu": "speed/hfu",
    "data_seconds": "speed/data_seconds",
    "wait_seconds": "speed/wait_seconds",
    "memory": "speed/memory",
}
"""What services call a measurement, by its name in metrics.jsonl."""


class Tracker(Protocol):
    """Shows numbers by name and step."""

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Show the numbers of a step."""

    def close(self, code: int, cause: str) -> None:
        """Send what is left of a run that ends with an exit code; `cause` is why, where that is not 0."""


class TensorBoard:
    """Event files in a folder, for `tensorboard --logdir`. What an earlier run of the folder wrote later is hidden."""

    def __init__(self, folder: str, begun: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(folder, purge_step=begun + 1)

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Write the numbers of a step."""
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def close(self, code: int, cause: str) -> None:
        """Write what is left. TensorBoard has no word for how a run ends."""
        self._writer.close()


class WeightsAndBiases:
    """A run of Weights & Biases; WANDB_MODE=offline writes it to the run's folder, for `wandb sync`."""

    def __init__(self, config: RunConfig, options: Wandb, folder: Path) -> None:
        import wandb

        identities = _identities(folder)
        self._run = wandb.init(
            project=options.project,
            entity=options.entity,
            group=options.group,
            name=options.name or folder.resolve().name,
            tags=list(options.tags),
            id=identities.get("wandb"),
            resume="allow",
            dir=str(folder),
            config=config.model_dump(mode="json"),
            settings=wandb.Settings(console="off", **({"base_url": options.host} if options.host else {})),
        )
        _remember(folder, "wandb", self._run.id)

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Queue the numbers of a step."""
        self._run.log(dict(values), step=step)

    def close(self, code: int, cause: str) -> None:
        """Send what is left; the run is shown as failed where the code is not 0."""
        self._run.finish(exit_code=code)


_NOTHING_ELSE: dict[str, Any] = {
    "log_code": False,
    "log_git_metadata": False,
    "log_git_patch": False,
    "auto_output_logging": False,
    "auto_metric_logging": False,
    "auto_param_logging": False,
    "parse_args": False,
}
"""What Comet would look for by itself; `parse_args` would send the command line, with whatever stands there."""


class CometExperiment:
    """An experiment of Comet; with `offline`, an archive in a folder, for `comet upload`."""

    def __init__(self, config: RunConfig, options: Comet, folder: Path) -> None:
        os.environ.setdefault("COMET_ERROR_TRACKING_ENABLE", "false")  # it would tell others of this program's errors
        import comet_ml

        known = _identities(folder).get("comet")
        # Comet refuses to write a second archive of an experiment under the key of the first.
        self._experiment = comet_ml.start(
            workspace=options.workspace,
            project_name=options.project,
            experiment_key=known if options.offline is None else None,
            mode="get_or_create" if known and options.offline is None else "create",
            online=options.offline is None,
            experiment_config=comet_ml.ExperimentConfig(
                name=options.name or folder.resolve().name,
                tags=list(options.tags),
                offline_directory=options.offline,
                **_NOTHING_ELSE,
            ),
        )
        self._experiment.log_parameters(config.model_dump(mode="json"))
        _remember(folder, "comet", self._experiment.get_key())

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Queue the numbers of a step."""
        self._experiment.log_metrics(dict(values), step=step)

    def close(self, code: int, cause: str) -> None:
        """Send what is left, and how the run ends among the "other" values: a client cannot set its state."""
        self._experiment.log_other("exit_code", code)
        if cause:
            self._experiment.log_other("ended_by", cause)
        self._experiment.end()


class Trackers:
    """Several trackers, none of which can hold up the run."""

    def __init__(self, openers: Mapping[str, Callable[[], Tracker]]) -> None:
        """`openers` make the trackers, by what a person calls them."""
        self._open: dict[str, Tracker] = {}
        for name, opener in openers.items():
            with self._forgiving(name):
                self._open[name] = opener()

    def log(self, record: Mapping[str, Any]) -> None:
        """Show what of a record of metrics.jsonl has a name there."""
        values = {NAMES[key]: float(value) for key, value in record.items() if key in NAMES}
        for name, tracker in list(self._open.items()):
            with self._forgiving(name):
                tracker.log(record["step"], values)

    def close(self, code: int = 0, cause: str = "") -> None:
        """Let each send what is left of a run that ends with an exit code, for a cause where that is not 0."""
        for name, tracker in list(self._open.items()):
            with self._forgiving(name):
                tracker.close(code, cause)
        self._open.clear()

    @contextmanager
    def _forgiving(self, name: str) -> Iterator[None]:
        """Warn of what a tracker raises, and do without it from here on."""
        try:
            yield
        except Exception as error:  # noqa: BLE001 (a client of a service may raise anything, and weeks of work go on)
            self._open.pop(name, None)
            said = " ".join(str(error).split()) or type(error).__name__
            warn(f"{name} fails, and is told nothing more in this run: {said}")


def open_trackers(config: RunConfig, folder: Path, begun: int) -> Trackers:
    """The trackers that a run asks for, of a run that goes on after step `begun`.

    Raises ModuleNotFoundError for one that is not installed.
    """
    logging = config.logging
    openers: dict[str, Callable[[], Tracker]] = {}
    if (where := logging.tensorboard) is not None:
        _require("tensorboard")
        openers["TensorBoard"] = lambda: TensorBoard(where, begun)
    if (wandb := logging.wandb) is not None:
        _require("wandb")
        openers["Weights & Biases"] = lambda: WeightsAndBiases(config, wandb, folder)
    if (comet := logging.comet) is not None:
        _require("comet_ml")
        openers["Comet"] = lambda: CometExperiment(config, comet, folder)
    return Trackers(openers)


def _require(module: str) -> None:
    if find_spec(module) is None:
        import_module(module)  # says so


def _identities(folder: Path) -> dict[str, str]:
    path = folder / IDENTITIES
    if not path.is_file():
        return {}
    found: dict[str, str] = json.loads(path.read_text(encoding="utf-8"))
    return found


def _remember(folder: Path, service: str, identity: str) -> None:
    found = {**_identities(folder), service: identity}
    (folder / IDENTITIES).write_text(json.dumps(found) + "\n", encoding="utf-8")
