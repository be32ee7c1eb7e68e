"""From a source to an engine that is ready to answer, on one rank or several.

python -m neoxkit.serve.start ARGUMENTS     a rank after the first; only the first starts it
"""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType

import torch
import torch.distributed as dist

from neoxkit.checkpoint.dtypes import TORCH, name_of
from neoxkit.checkpoint.format import MODEL
from neoxkit.checkpoint.reader import Checkpoint
from neoxkit.checkpoint.store import Place, place
from neoxkit.config.model import ModelConfig
from neoxkit.convert.load import check_model, load_decoder
from neoxkit.convert.open import Foreign, open_any
from neoxkit.convert.tokenizer import carry, check_ids, stop_ids
from neoxkit.data.tokenizer import Tokenizer
from neoxkit.errors import ConfigError, NeoxkitError
from neoxkit.log import note
from neoxkit.machine import cores
from neoxkit.mesh import Mesh
from neoxkit.native.build import reason as why_not_native
from neoxkit.nn.decoder import Decoder, form_groups
from neoxkit.nn.kernels.paged import FLASH_PAGE
from neoxkit.nn.packing import pack
from neoxkit.nn.paged import bytes_of_token
from neoxkit.parallel.device import choose_device, running_dtype
from neoxkit.parallel.groups import LOCAL, Groups
from neoxkit.parallel.packed import Make, choose_make, half, panels, turned
from neoxkit.parallel.world import ALONE, ContactError, World, join
from neoxkit.serve.engine import Engine
from neoxkit.serve.graphs import Recorder, check_recording
from neoxkit.serve.pages import Pages
from neoxkit.serve.ranks import Followers, Leader, end_with, follow, variables
from neoxkit.serve.request import Limits
from neoxkit.serve.runner import Runner

LIMITS = Limits()
"""Those that nobody states."""

PAGE = 16
"""Tokens of a page, where the kernel leaves it open: few are computed twice, and a page's keys are a block to copy."""

MAKES: dict[str, Make | None] = {"": None, "half": half, "panels": panels, "turned": turned}
"""By the names that ranks tell each other."""

SHARE = {"cpu": 0.3, "cuda": 0.85}
"""How much of the free memory a cache may take that is given no size."""


@dataclass(frozen=True)
class Wanted:
    """What is to be run, and how: all that a rank needs to know."""

    source: str
    dtype: str | None = None
    device: str = "auto"
    tp: int = 1
    compile: bool = False
    limits: Limits = LIMITS
    assume: Mapping[str, str] | None = None
    settings: Sequence[str] = ()

    def written(self) -> str:
        """All of it, to be read."""
        return json.dumps(asdict(self))

    @staticmethod
    def read(text: str) -> Wanted:
        """What was written."""
        given = json.loads(text)
        return Wanted(**{**given, "limits": Limits(**given["limits"])})

    def open(self) -> Checkpoint | Foreign:
        """The source. Raises CheckpointError or ConversionError."""
        return open_any(place(self.source), self.assume, [Path(each) for each in self.settings])


class Serving:
    """An engine, and what turns text into its tokens and back. Close it, or use it in a `with`.

    The model's stream is of `dtype`; its weights are `kept` in one of safetensors' dtypes.
    """

    def __init__(self, wanted: Wanted, opened: Checkpoint | Foreign, folder: Place, tokenizer: Tokenizer) -> None:
        self.config: ModelConfig = opened.config
        self.folder, self.tokenizer = folder, tokenizer
        self.stop_ids = frozenset(stop_ids(folder, opened.config))
        self.name = place(wanted.source).name or wanted.source
        self._followers: Followers | None = None
        world = self._gather(wanted)
        try:
            runner = build(wanted, opened, world)
        except BaseException:
            self._part(world)
            raise
        self.dtype, self.kept = runner.model.dtype, name_of(runner.model.embed.weight.dtype)
        self._world, self._leader = world, Leader(runner, world)
        pages = Pages(runner.pages, runner.size)
        self.engine = Engine(
            self._leader.run, self.config.vocab, self.config.context, wanted.limits, pages, self._leader.beat
        )

    def _gather(self, wanted: Wanted) -> World:
        """The job that this process is the first of; the ranks that it needs are started, if nobody else did."""
        if variables(os.environ):
            world = join(wanted.device)
            if world.size != wanted.tp:
                raise ConfigError(
                    f"--tp is {wanted.tp}, and {world.size} processes were started", f"give --tp {world.size}"
                )
            return world
        if wanted.tp == 1:
            return ALONE
        self._followers = Followers(wanted.tp, [wanted.written()])
        mine = {**self._followers.environment, "RANK": "0", "LOCAL_RANK": "0"}
        os.environ.update({name: mine[name] for name in ("MASTER_ADDR", "MASTER_PORT")})
        return join(wanted.device, mine)

    def _part(self, world: World) -> None:
        if self._followers is not None:
            self._followers.close()
        if world.size > 1 and dist.is_initialized():
            dist.destroy_process_group()

    def close(self) -> None:
        """Let the other ranks go."""
        with suppress(RuntimeError):  # one of them is gone: that was said when it happened
            self._leader.end()
        self._part(self._world)

    def __enter__(self) -> Serving:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def open_engine(
    source: Place,
    tokenizer: Path | None = None,
    dtype: str | None = None,
    device: str = "auto",
    tp: int = 1,
    limits: Limits = LIMITS,
    compile: bool = False,  # noqa: A002 (the option's name)
    assume: Mapping[str, str] | None = None,
    settings: Sequence[Path] = (),
) -> Serving:
    """An engine over a checkpoint, or over anything that `import` recognises, whose tensors are converted as they load.

    `dtype` is one of safetensors' names ("BF16"); without one it is that of the weights, or on a CPU fp32 where that
    is faster. `assume` and `settings` as `open_any` takes them. With `tp` the model is divided over so many
    processes, which are started, unless a launcher has: then this returns on the first of them only, and the others
    exit when it is done.

    Raises ConfigError when there is no tokenizer, the mesh divides no head or the limits allow more context than the
    model has, ConversionError when the tokenizer makes ids that the model has no row for or the tensors are not those
    of the configuration.
    """
    wanted = Wanted(str(source), dtype, device, tp, compile, limits, assume, [str(each) for each in settings])
    if variables(os.environ) and int(os.environ.get("RANK", "0")) > 0:
        stand_by(wanted)
        raise SystemExit(0)
    opened = wanted.open()
    folder = tokenizer or opened.tokenizer
    found = None if folder is None else carry(folder)
    if folder is None or found is None or found.tokenizer is None:
        why = f": {found.why}" if found is not None and found.why else ""
        raise ConfigError(f"{tokenizer or source} has no tokenizer{why}", "name one with --tokenizer")
    check_ids(found.tokenizer, opened.config)
    if (limits.context or 0) > opened.config.context:
        raise ConfigError(
            f"--max-context {limits.context} is more than the model's context of {opened.config.context} tokens",
            "give less, or leave it out",
        )
    check_model(opened)
    choose_device(device)
    Decoder(opened.config, "meta", groups=Groups(Mesh(tp=tp)))  # raises where the heads cannot be divided
    return Serving(wanted, opened, folder, found.tokenizer)


def build(wanted: Wanted, opened: Checkpoint | Foreign, world: World) -> Runner | Recorder:
    """This rank's part of the model, and its pages. Every rank must call it."""
    device = choose_device(wanted.device)
    if device.type == "cuda" and world.size > 1:
        device = torch.device("cuda", world.local_rank)
    if device.type == "cpu" and world.size > 1 and "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(max(1, cores() // world.size))
    config = opened.config
    groups = LOCAL if world.size == 1 else form_groups(config, Mesh(tp=world.size), device)
    if device.type == "cpu" and world.first and (reason := why_not_native()):
        note(f"decoding is slower than it could be: there is no compiled code ({reason})")
    kept = TORCH[wanted.dtype or opened.dtype(MODEL + "embed.weight")]
    sizes = config.width, config.mlp.hidden
    make = MAKES[world.agree(lambda: getattr(choose_make(kept, device, *sizes), "__name__", ""))]
    if make is None and wanted.dtype is None:
        told = world.agree(lambda: str(running_dtype(kept, device, *sizes)))
        kept = next(each for each in TORCH.values() if str(each) == told)
        make = choose_make(kept, device, *sizes) if kept == torch.float32 else None
    model = load_decoder(opened, kept, device, groups)
    if make is not None:
        pack(model, make)
    size = FLASH_PAGE if device.type == "cuda" else PAGE
    count = -world.highest(-page_count(model, wanted.limits, size))  # as many as fit on every rank
    runner = Runner(model, count, size, wanted.limits.step_tokens)
    if not wanted.compile:
        return runner
    check_recording(runner, world.size)
    return Recorder(runner, wanted.limits.batch)


def page_count(model: Decoder, limits: Limits, size: int) -> int:
    """How many pages of so many tokens a cache has: as the limits say, or for as many texts as memory holds.

    Raises ConfigError when that is not even one text of the context.
    """
    config = model.config
    context = min(limits.context or config.context, config.context)
    each = -(-context // size)
    wanted = limits.batch * each if limits.cache_tokens is None else -(-limits.cache_tokens // size)
    if limits.cache_tokens is None:
        page = size * bytes_of_token(config, model.dtype, model.kv_heads)
        wanted = min(wanted, int(free_memory(model.embed.weight.device)) // page)
    return max(wanted, 1)


def free_memory(device: torch.device) -> float:
    """Bytes that a cache without a stated size may take."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0] * SHARE["cuda"]
    pages = os.sysconf("SC_AVPHYS_PAGES") if "SC_AVPHYS_PAGES" in os.sysconf_names else 2**20
    return pages * os.sysconf("SC_PAGE_SIZE") * SHARE["cpu"]


def stand_by(wanted: Wanted) -> None:
    """What a rank after the first does from its start to its end."""
    world = join(wanted.device)
    follow(build(wanted, wanted.open(), world), world)


@contextmanager
def quiet() -> Iterator[None]:
    """Say one line of what went wrong, as the command line does."""
    try:
        yield
    except ContactError:
        sys.exit(ContactError.exit_code)  # the first rank is gone, which has said why
    except NeoxkitError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the first rank decides when it is over
    end_with(lambda: os.read(0, 1))
    with quiet():
        stand_by(Wanted.read(sys.argv[1]))
