"""What the ranks of tests have imported when they begin: a fork server loads it, once. See jobs.py."""

import gc
from importlib.util import find_spec

import torch
import torch._dynamo  # an optimizer of torch's imports it when it is made: 4 CPU-seconds

import neoxkit.train.loop

__all__ = ["neoxkit"]

torch.set_num_threads(1)
if find_spec("deepspeed") is not None:
    import neoxkit.train.deepspeed.pipeline
    from neoxkit.train.deepspeed.engine import load_deepspeed

    load_deepspeed(torch.device("cpu"))
    import deepspeed.runtime.zero.muon.original_muon  # noqa: F401 (as ZeRO does when it begins)

# A rank need not look through what all of them share: DeepSpeed collects garbage whenever it begins and ends an engine,
# half a second each time.
gc.collect()
gc.freeze()
