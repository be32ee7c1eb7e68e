"""What layers refuse."""

from __future__ import annotations

import pytest
import tiny_runs as runs

from neoxkit.errors import ConfigError
from neoxkit.mesh import Mesh
from neoxkit.nn.decoder import Decoder
from neoxkit.parallel.groups import Groups


@pytest.mark.parametrize("tp", [3, 4, 8])
def test_more_ranks_than_heads_are_refused(tp: int) -> None:
    """Two ranks with the same head would each add it to the stream: another network, silently."""
    model = runs.config("gpt_neox").model
    assert model.mixer.heads == 2
    with pytest.raises(ConfigError, match="attn"):
        Decoder(model, device="meta", groups=Groups(Mesh(tp=tp)))
    Decoder(model, device="meta", groups=Groups(Mesh(tp=2)))
