"""Static and dynamic parts learned apart, on VGGSound with the paper's features and towers.

Reproduces: nothing; the form is ours, see docs/separate.md. What it gains on real videos, where
what is static says more, is not known.

Command:   scav train --config separate/vggsound --workdir RUN
Hardware:  one V100 of 32 GB, or more (`scav plan` says more). Not run by us: no figure.
Variants:  separate (the default); tower (the static part by a tower, as CAV has it: where it needs
           more than means).
Ours:      everything that configs/vggsound.py has as ours, temperatures from 0.07, a branch of 256
           and 64 numbers.
"""

from configs import base
from configs.separate.demo import VARIANTS as OPTIONS

VARIANTS = ("separate", "tower")


def get_config(variant: str = "separate"):
    base.check_variant(variant, VARIANTS)
    return base.separate(base.vggsound(batch_size=256), **OPTIONS[variant])
