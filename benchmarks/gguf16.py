"""A model in GGUF with its matrices in f16 rather than quantized, rounded to bf16 before: for engines that read GGUF.

python gguf16.py FROM TO
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import gguf
import numpy as np
import torch


def unquantized(source: Path, destination: Path) -> None:
    """Write the same model with matrices in f16. They have the values of a copy in bf16, so greedy text is comparable.

    (A bf16 number below f16's smallest becomes zero or is rounded: 6e-8 at most is lost.)
    """
    read = gguf.GGUFReader(source)
    written = gguf.GGUFWriter(destination, read.fields["general.architecture"].contents())
    left_out = ("GGUF.", "general.architecture", "general.file_type", "general.quantization_version")
    for field in read.fields.values():
        if not field.name.startswith(left_out):
            written.add_key_value(field.name, field.contents(), *field.types[:2])  # an array's, and of its elements
    written.add_file_type(gguf.LlamaFileType.MOSTLY_F16)
    for tensor in read.tensors:
        values = torch.from_numpy(np.array(gguf.quants.dequantize(tensor.data, tensor.tensor_type)))
        rounded = values.bfloat16().float()
        written.add_tensor(tensor.name, (rounded.half() if rounded.dim() > 1 else rounded).numpy())
    written.write_header_to_file()
    written.write_kv_data_to_file()
    written.write_tensors_to_file()
    written.close()


if __name__ == "__main__":
    origin, target = map(Path, sys.argv[1:])
    aside = target.with_name(f".{target.name}.{os.getpid()}")
    unquantized(origin, aside)
    aside.rename(target)
