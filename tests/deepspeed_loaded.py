"""What processes of the DeepSpeed tests import: a fork server loads it, once, and they begin with it."""

import deepspeed_ranks
import torch

import neoxkit.train.deepspeed.pipeline
from neoxkit.train.deepspeed.engine import load_deepspeed

__all__ = ["deepspeed_ranks", "neoxkit"]

torch.set_num_threads(1)
load_deepspeed(torch.device("cpu"))
