"""What differs between two models: by checksum where both have one, else by reading. No torch until it reads."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from math import isfinite, prod, sqrt
from typing import TYPE_CHECKING, Any, Literal

from neoxkit.checkpoint.checksum import crc64nvme, fingerprint_of
from neoxkit.checkpoint.format import CONFIG, ITEM_BYTES, MODEL, bare
from neoxkit.checkpoint.reader import Checkpoint
from neoxkit.log import Progress, Silent, progress

if TYPE_CHECKING:
    from torch import Tensor

    from neoxkit.checkpoint import Source

_BLOCK = 2 << 20  # elements compared at a time: the differences take several times the memory of the tensors

_TOLD = ("family", "context")  # and tokens.*: what another spelling of the same model may say otherwise

Kind = Literal["only in A", "only in B", "shape", "dtype", "values"]


@dataclass(frozen=True)
class Values:
    """How far a tensor is from another. Numbers are NaN or infinite where the tensors are.

    `max` and `mean` are of the absolute difference; `relative` is its norm over the norm of A's
    tensor; `differing` counts elements that are not the same to the last bit (of another dtype: not
    the same number).
    """

    max: float
    mean: float
    relative: float
    differing: int
    elements: int


@dataclass(frozen=True)
class Row:
    """A tensor that differs. `ours` and `theirs` are what differs of it, in words: shapes, dtypes."""

    name: str
    kind: Kind
    ours: str = ""
    theirs: str = ""
    values: Values | None = None


@dataclass
class Comparison:
    """What differs, and how much does not."""

    config: dict[str, tuple[Any, Any]]
    rows: list[Row] = field(default_factory=list)
    equal: dict[str, int] = field(default_factory=dict)
    uncompared: dict[str, Literal["A", "B"]] = field(default_factory=dict)

    @property
    def counting(self) -> list[str]:
        """The options among those that differ which the logits depend on, or may."""
        return [key for key in self.config if key not in _TOLD and not key.startswith("tokens.")]

    @property
    def same(self) -> bool:
        """Whether nothing that counts differs."""
        return not self.rows and not self.counting

    def json(self) -> dict[str, Any]:
        """Ready for JSON, in which a number that is not finite is null.

        same         whether no tensor differs, and nothing of `counting`
        config       {dotted key: [A's value, B's]} of what differs
        counting     [dotted key] of those that the logits depend on, or may
        equal        {component: tensors that are equal}
        uncompared   {component: "A" or "B"}: only this one has it, so it was not compared
        tensors      [{"name", "kind", "ours", "theirs", "values"}] of what differs; kind is "only in A",
                     "only in B", "shape", "dtype" or "values"; values is null, or
                     {"max", "mean", "relative", "differing", "elements"}
        """
        return {
            "same": self.same,
            "config": {key: list(pair) for key, pair in self.config.items()},
            "counting": self.counting,
            "equal": self.equal,
            "uncompared": self.uncompared,
            "tensors": [
                {**asdict(row), "values": None if row.values is None else _finite(asdict(row.values))}
                for row in self.rows
            ],
        }

    def lines(self) -> Iterator[str]:
        """For people: a line for each difference, then one for each component."""
        yield from (f"config {key}: {ours!r} | {theirs!r}" for key, (ours, theirs) in self.config.items())
        for row in self.rows:
            yield row.name + ": " + _said(row)
        for component, count in self.equal.items():
            other = sum(_component(row.name) == component for row in self.rows)
            yield f"{component}: {count} tensors equal" + (f", {other} different" if other else "")
        yield from (f"{component}: only in {which}, not compared" for component, which in self.uncompared.items())
        yield self._verdict()

    def _verdict(self) -> str:
        if self.same:
            rest = f": no logit depends on {', '.join(self.config)}" if self.config else ""
            return "the same" + rest
        count = len(self.rows)
        tensors = [f"{count} tensor{'s' if count > 1 else ''}"] if count else []
        return "different: " + ", ".join([*tensors, *self.counting])


def compare(ours: Source, theirs: Source, values: bool = False) -> Comparison:
    """Compare configuration and tensors of two models: A (`ours`) and B (`theirs`).

    Two checkpoints are compared by their checksums, however they are cut, and no tensor is read. Of
    a source without checksums each tensor is read once. With `values`, tensors that differ in their
    numbers are read from both, to say how much. Components that only one has, such as an optimizer's
    state, are named and not compared.

    Raises CheckpointError when what is read is damaged.
    """
    found = Comparison(_config(ours, theirs))
    left, right = _by_component(ours), _by_component(theirs)
    found.uncompared.update({component: "A" for component in left if component not in right})
    found.uncompared.update({component: "B" for component in right if component not in left})
    both: list[str] = []
    for component in (each for each in left if each in right):
        found.equal[component] = 0
        mine, other = set(left[component]), set(right[component])
        found.rows += (Row(name, "only in A") for name in left[component] if name not in other)
        found.rows += (Row(name, "only in B") for name in right[component] if name not in mine)
        # in B's order where B is foreign: tensors that lie fused in one of its own follow one another
        order = left if isinstance(theirs, Checkpoint) else right
        both += (name for name in order[component] if name in mine and name in other)
    total = sum(_cost(ours, theirs, name, values) for name in both)
    if not total:
        _compare_tensors(found, ours, theirs, both, values, Silent())
        return found
    with progress("diff", total) as bar:
        _compare_tensors(found, ours, theirs, both, values, bar)
    return found


def _compare_tensors(
    found: Comparison, ours: Source, theirs: Source, names: list[str], values: bool, bar: Progress
) -> None:
    for name in names:
        row = _difference(ours, theirs, name, values, bar)
        if row is None:
            found.equal[_component(name)] += 1
        else:
            found.rows.append(row)


def _difference(ours: Source, theirs: Source, name: str, values: bool, bar: Progress) -> Row | None:
    """What differs of a tensor that both have; None when nothing does."""
    shapes = ours.spec(name).shape, theirs.spec(name).shape
    if shapes[0] != shapes[1]:
        return Row(name, "shape", str(list(shapes[0])), str(list(shapes[1])))
    mine, other = ours.dtype(name), theirs.dtype(name)
    if mine != other:
        return Row(name, "dtype", mine, other, measure(ours, theirs, name, bar) if values else None)
    if isinstance(ours, Checkpoint) and isinstance(theirs, Checkpoint):
        if ours.manifest.tensors[name].crc == theirs.manifest.tensors[name].crc:
            return None
        return Row(name, "values", values=measure(ours, theirs, name, bar) if values else None)
    if values:
        measured = measure(ours, theirs, name, bar)
        return Row(name, "values", values=measured) if measured.differing else None
    return None if _crc(ours, name, bar) == _crc(theirs, name, bar) else Row(name, "values")


def _cost(ours: Source, theirs: Source, name: str, values: bool) -> int:
    """The bytes that comparing a tensor reads."""
    if ours.spec(name).shape != theirs.spec(name).shape:
        return 0
    sources = [ours, theirs]
    if all(isinstance(source, Checkpoint) for source in sources):
        crcs = {s.manifest.tensors[name].crc for s in sources if isinstance(s, Checkpoint)}
        if len(crcs) == 1 and ours.dtype(name) == theirs.dtype(name):
            return 0
    if not values:
        same = ours.dtype(name) == theirs.dtype(name)
        sources = [source for source in sources if same and not isinstance(source, Checkpoint)]
    return sum(prod(source.spec(name).shape) * ITEM_BYTES[source.dtype(name)] for source in sources)


def fingerprint(source: Source) -> str:
    """The fingerprint of a source's weights: a checkpoint's own, or that of the checkpoint that it would become.

    Without a manifest every weight is read. Raises CheckpointError for damage.
    """
    if isinstance(source, Checkpoint):
        return source.fingerprint
    names = [name for name in source.names() if name.startswith(MODEL)]
    total = sum(prod(source.spec(name).shape) * ITEM_BYTES[source.dtype(name)] for name in names)
    with progress("fingerprint", total) as bar:
        rows = [
            (name.removeprefix(MODEL), source.dtype(name), source.spec(name).shape, _crc(source, name, bar))
            for name in names
        ]
    return fingerprint_of(rows)


def _crc(source: Source, name: str, bar: Progress) -> int:
    """A tensor's checksum: as the manifest has it, or taken from the numbers themselves."""
    if isinstance(source, Checkpoint):
        return source.manifest.tensors[name].crc
    from neoxkit.checkpoint.dtypes import octets

    crc = 0
    for _, value in source.stream(name):
        crc = crc64nvme(octets(value), crc)
        bar.advance(value.nbytes)
    return crc


def measure(ours: Source, theirs: Source, name: str, bar: Progress) -> Values:
    """How far a tensor of one source is from that of another, of the same shape, block by block."""
    import torch

    total = square = base = 0.0
    most = torch.zeros((), dtype=torch.float64)
    differing = 0
    for a, b in _blocks(ours, theirs, name):
        bar.advance(a.nbytes + b.nbytes)
        apart = _apart(a, b)
        count = int(apart.sum())
        x = a.to(torch.float64 if a.dtype.itemsize >= 4 else torch.float32)
        base += float(x.square().sum(dtype=torch.float64))
        if not count:
            continue
        differing += count
        distance = (x - b.to(x.dtype)).abs_().masked_fill_(~apart, 0)
        most = torch.maximum(most, distance.max().to(torch.float64))  # keeps NaN
        total += float(distance.sum(dtype=torch.float64))
        square += float(distance.square_().sum(dtype=torch.float64))
    elements = prod(ours.spec(name).shape)
    relative = sqrt(square / base) if base else (float("inf") if square else 0.0)
    return Values(float(most), total / max(elements, 1), relative, differing, elements)


def _blocks(ours: Source, theirs: Source, name: str) -> Iterator[tuple[Tensor, Tensor]]:
    """The same boxes of a tensor from both, which together are all of it. Checkpoints are checked as they are read."""
    shape = ours.spec(name).shape
    if isinstance(ours, Checkpoint) and isinstance(theirs, Checkpoint):
        blocks = (s.stream(name, most_bytes=_BLOCK * ITEM_BYTES[s.dtype(name)]) for s in (ours, theirs))
        for (_, a), (_, b) in zip(*blocks, strict=True):
            yield a, b
    elif isinstance(ours, Checkpoint):
        for box, a in ours.stream(name, most_bytes=_BLOCK * ITEM_BYTES[ours.dtype(name)]):
            yield a, theirs.read(name, box)
    elif isinstance(theirs, Checkpoint):
        for a, b in _blocks(theirs, ours, name):
            yield b, a
    else:
        from neoxkit.spec import rows, whole

        for box in rows(whole(shape), _BLOCK):
            yield ours.read(name, box), theirs.read(name, box)


def _apart(a: Tensor, b: Tensor) -> Tensor:
    """Which elements differ: in any bit, or, of another dtype, as numbers (NaN is NaN)."""
    import torch

    if a.dtype != b.dtype:
        x, y = a.to(torch.float64), b.to(torch.float64)
        return (x != y) & ~(x.isnan() & y.isnan())
    raw = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[a.dtype.itemsize]
    return a.view(raw) != b.view(raw)


def _by_component(source: Source) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for name in source.names():
        found.setdefault(_component(name), []).append(name)
    return found


def _component(name: str) -> str:
    """The component of a tensor: "optimizer/exp_avg" of "optimizer/exp_avg/embed.weight"."""
    return name.removesuffix("/" + bare(name))


def _config(ours: Source, theirs: Source) -> dict[str, tuple[Any, Any]]:
    """The options of the configurations that differ, by dotted key; None where one has no such option."""
    if isinstance(ours, Checkpoint) and isinstance(theirs, Checkpoint):
        sums = [[(f.bytes, f.crc) for f in s.manifest.files if f.path == CONFIG] for s in (ours, theirs)]
        if sums[0] and sums[0] == sums[1]:
            return {}
    a, b = (dict(_flat(source.config.model_dump(mode="json"))) for source in (ours, theirs))
    return {key: (a.get(key), b.get(key)) for key in {**a, **b} if a.get(key) != b.get(key)}


def _flat(tree: Mapping[str, Any], at: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in tree.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{at}{key}.")
        else:
            yield at + key, value


def _finite(values: dict[str, Any]) -> dict[str, Any]:
    return {key: value if isfinite(value) else None for key, value in values.items()}


def _said(row: Row) -> str:
    """What differs of a tensor, in words."""
    words = {"shape": "shape", "dtype": "dtype", "values": "values differ"}.get(row.kind, row.kind)
    said = f"{words} {row.ours} | {row.theirs}" if row.ours else words
    if (v := row.values) is None:
        return said
    return (
        f"{said}, {v.differing} of {v.elements} elements, max {v.max:.3g}, mean {v.mean:.3g}, relative {v.relative:.3g}"
    )
