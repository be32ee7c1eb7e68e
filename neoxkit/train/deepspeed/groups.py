"""What DeepSpeed calls an mpu: the groups of this process, by the names that DeepSpeed asks for."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch.distributed import ProcessGroup

from neoxkit.parallel.groups import Groups, group_of
from neoxkit.spec import Axis


class ModelParallelUnit:
    """The groups of a mesh. DeepSpeed's "model parallel" is tensor and pipeline parallel together."""

    def __init__(self, groups: Groups, device: torch.device) -> None:
        """Every process must call it: it makes the groups of one process that a mesh does without."""
        self.mesh = groups.mesh
        self._tensor = groups.along.get(Axis.TP) or group_of(self.mesh, [Axis.TP], device)
        self._data = groups.alike or group_of(self.mesh, [Axis.DP], device)
        if self.mesh.pp > 1 and self.mesh.tp > 1:
            self._model = group_of(self.mesh, [Axis.TP, Axis.PP], device)
        else:
            self._model = groups.along.get(Axis.PP) or self._tensor
        self._pipe = groups.along.get(Axis.PP) or group_of(self.mesh, [Axis.PP], device)

    def get_model_parallel_group(self) -> ProcessGroup:
        """Those who hold the other parts of the model."""
        return self._model

    def get_model_parallel_rank(self) -> int:
        """The index among them."""
        return dist.get_rank(self._model)

    def get_model_parallel_world_size(self) -> int:
        """Their number."""
        return dist.get_world_size(self._model)

    def get_tensor_model_parallel_group(self) -> ProcessGroup:
        """Those who hold the other parts of this stage."""
        return self._tensor

    def get_tensor_model_parallel_rank(self) -> int:
        """The index among them."""
        return dist.get_rank(self._tensor)

    def get_tensor_model_parallel_world_size(self) -> int:
        """Their number."""
        return dist.get_world_size(self._tensor)

    def get_data_parallel_group(self) -> ProcessGroup:
        """Those who hold the same part, and learn from other tokens."""
        return self._data

    def get_data_parallel_rank(self) -> int:
        """The index among them."""
        return dist.get_rank(self._data)

    def get_data_parallel_world_size(self) -> int:
        """Their number."""
        return dist.get_world_size(self._data)

    def get_pipeline_model_parallel_group(self) -> ProcessGroup:
        """The stages of this pipeline."""
        return self._pipe

    def get_pipeline_model_parallel_rank(self) -> int:
        """The stage."""
        return dist.get_rank(self._pipe)

    def get_pipeline_model_parallel_world_size(self) -> int:
        """The number of stages."""
        return dist.get_world_size(self._pipe)


def ensure_started(device: torch.device) -> None:
    """Start torch.distributed where this process is the only one: DeepSpeed does nothing without it."""
    if not dist.is_initialized():
        backend = "nccl" if device.type == "cuda" else "gloo"
        dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1)
