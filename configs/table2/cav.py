"""Table II, row "CAV": the model of Table I, also tested zero-shot on MUSIC.

R@1 in % by aggregation, as the paper has it:

    test       A->V   V->A
    VGGSound   12.2   12.5
    MUSIC       3.8    2.8

Command:   scav train --config table2/cav --workdir RUN
           scav evaluate --run RUN --data data/vggsound --split test
           scav evaluate --run RUN --data data/music --split test
           `:demo` is the same row on `chimes`, whose zero-shot split is `unseen_instruments`.
Hardware:  paper: one V100 of 32 GB, full precision; 38 M parameters; it gives no time.
Ours:      as in configs/table1/cav.py.
           Not run by us on VGGSound.
"""

from configs import base
from configs.table1 import cav as table1


def get_config(variant: str = "max"):
    base.check_variant(variant, ("max", "demo"))
    return table1.get_config(variant)
