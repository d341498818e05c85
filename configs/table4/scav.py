"""Table IV, row "SCAV Eucl/pre(v->a)": the model that the ablations change.

R@1 on VGGSound-Test by sequence, in %, as the paper has it: A->V 22.6, V->A 22.3.

Command:   scav train --config table4/scav --workdir RUN
           `:demo` is the same row on `chimes`.
Hardware:  paper: one V100 of 32 GB, full precision, batch 256 (its best model's; it does not say
           so for the ablations); it gives no time.
Ours:      as in configs/table1/scav_pre_v2a.py.
           Not run by us on VGGSound.
"""

from configs import base
from configs.table1 import scav_pre_v2a


def get_config(variant: str = "max"):
    base.check_variant(variant, ("max", "demo"))
    return scav_pre_v2a.get_config(variant)
