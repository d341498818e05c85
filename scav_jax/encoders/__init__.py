"""The two towers: features -> latents. `ENCODERS` names the kinds; all are called in one way.

sequential   the paper's: a projection MLP and a relative-position Transformer over steps
positions    relative positions: offsets between steps -> rows of a learned table
dropout      its masks, a hash of step, clip, layer and place
precision    what both compute in, and store for a gradient
products     affine maps, and norms and GELU before them, which no gradient keeps
layers       attention, and the loop over blocks
patches      EquiAV's: a ViT over the patches of a picture, and one over those of a log-mel
"""

import flax.linen as nn

from scav_jax.base.errors import check_one_of
from scav_jax.encoders.patches import PatchEncoders, PatchTower
from scav_jax.encoders.products import gelu
from scav_jax.encoders.sequential import GATE_WIDTH, Encoders, Tower

__all__ = [
    "ENCODERS",
    "GATE_WIDTH",
    "Encoders",
    "PatchEncoders",
    "PatchTower",
    "Tower",
    "Towers",
    "find",
    "gelu",
]

Towers = Encoders | PatchEncoders
ENCODERS: dict[str, type[nn.Module]] = {"sequence": Encoders, "patches": PatchEncoders}


def find(name: str) -> type[nn.Module]:
    """The class of a kind of towers, a key of `ENCODERS`; `InputError` where there is none."""
    check_one_of("encoders.name", name, ENCODERS)
    return ENCODERS[name]
