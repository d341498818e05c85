"""Table IV, row "(3) w/ CAV & SCAV multi-tasking": both objectives at once.

R@1 on VGGSound-Test by sequence, in %, as the paper has it: A->V 15.3, V->A 15.4.

Command:   scav train --config table4/multitask --workdir RUN
           `:demo` is the same row on `chimes`.
Hardware:  paper: one V100 of 32 GB, full precision, batch 256 (its best model's; it does not say
           so for the ablations); it gives no time.
Ours:      equal weights, and a temperature for each objective (1 and 0.07).
           Not run by us on VGGSound.
"""

from configs import base
from configs.table1 import scav_pre_v2a


def get_config(variant: str = "max"):
    base.check_variant(variant, ("max", "demo"))
    config = scav_pre_v2a.get_config(variant)
    return config.replace(objective={"name": "sequence+aggregation"})
