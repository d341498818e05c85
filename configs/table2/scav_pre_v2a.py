"""Table II, row "SCAV Eucl/pre(v->a)": the model of Table I, also tested zero-shot on MUSIC.

R@1 in % by sequence, as the paper has it:

    test       A->V   V->A
    VGGSound   22.6   22.3
    MUSIC       9.3    7.3

Command:   scav train --config table2/scav_pre_v2a --workdir RUN
           scav evaluate --run RUN --data data/vggsound --split test
           scav evaluate --run RUN --data data/music --split test
           `:demo` is the same row on `chimes`, whose zero-shot split is `unseen_instruments`.
Hardware:  paper: one V100 of 32 GB, full precision; 38 M parameters; it gives no time.
Ours:      as in configs/table1/scav_pre_v2a.py.
           Not run by us on VGGSound.
"""

from configs import base
from configs.table1 import scav_pre_v2a as table1


def get_config(variant: str = "max"):
    base.check_variant(variant, ("max", "demo"))
    return table1.get_config(variant)
