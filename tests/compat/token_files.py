"""Run with Megatron-core: build token files in a folder, and say what it reads of those that are there.

Arguments: the folder; the documents, JSON, by the dtype that they are written in. Prints one JSON object: of each
file, the dtype, the sequences and the document index.
"""

import json
import sys
from pathlib import Path

import numpy as np
import torch
from megatron.core.datasets.indexed_dataset import IndexedDataset, IndexedDatasetBuilder

folder, given = Path(sys.argv[1]), json.loads(sys.argv[2])


def build(name, documents, dtype, modes=None):
    """A token file of documents of sequences; multimodal where modes are given."""
    builder = IndexedDatasetBuilder(f"{folder}/{name}.bin", dtype=dtype, multimodal=modes is not None)
    for sequences in documents:
        flat = torch.tensor([token for each in sequences for token in each])
        builder.add_document(flat, [len(each) for each in sequences], [0] * len(sequences))
    if modes is not None:
        builder.sequence_modes = modes
    builder.finalize(f"{folder}/{name}.idx")


ours = sorted(path.with_suffix("") for path in folder.glob("*.idx"))
for dtype, documents in given.items():
    build(f"their-{dtype}", documents, getattr(np, dtype))
words = [[[1, 2], [3]], [[4]]]
build("their-text", words, np.int32, [0, 0, 0])
build("their-images", words, np.int32, [0, 1, 0])
build("their-float32", [[[0.5]], [[-1.0]]], np.float32)
build("their-float64", [[[0.5]], [[-1.0]]], np.float64)
both = IndexedDatasetBuilder(f"{folder}/their-both.bin", dtype=np.uint16)
for _ in range(2):
    both.add_index(f"{folder}/their-uint16")
both.finalize(f"{folder}/their-both.idx")

found = {}
for prefix in ours:
    read = IndexedDataset(str(prefix), mmap=True)
    sequences = [read[number].tolist() for number in range(len(read))]
    found[prefix.name] = [read.index.dtype.__name__, sequences, read.document_indices.tolist()]
print(json.dumps(found))
