"""The fields of a protocol buffer, without protobuf.

Two packages that carry sentencepiece_model.proto, sentencepiece and transformers, cannot be used by one process:
protobuf allows a file to be registered once.
"""

from __future__ import annotations

from collections.abc import Iterator


def fields(data: bytes) -> Iterator[tuple[int, int | bytes]]:
    """The fields of a message in their order: the number, and a whole number or the bytes.

    Numbers are as they are written: of those below zero, 2**64 more. Raises ValueError or IndexError when it is none.
    """
    at = 0
    while at < len(data):
        tag, at = _varint(data, at)
        if tag & 7 == 0:
            value, at = _varint(data, at)
            yield tag >> 3, value
            continue
        if tag & 7 == 2:
            length, at = _varint(data, at)
        elif tag & 7 in (1, 5):
            length = 8 if tag & 7 == 1 else 4
        else:
            raise ValueError("no protocol buffer")
        if at + length > len(data):
            raise ValueError("it is cut off")
        yield tag >> 3, data[at : at + length]
        at += length


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while shift < 70:  # ten groups of 7 bits
        byte = data[at]
        value, shift, at = value | (byte & 127) << shift, shift + 7, at + 1
        if byte < 128:
            return value, at
    raise ValueError("no protocol buffer: a number without an end")
