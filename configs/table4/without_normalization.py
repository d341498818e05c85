"""Table IV, row "(1) w/o Distance Matrix Norm.": no z-score of the distance matrix (section III-C).

R@1 on VGGSound-Test by sequence, in %, as the paper has it: A->V 12.5, V->A 12.7.

Command:   scav train --config table4/without_normalization --workdir RUN
           `:demo` is the same row on `chimes`.
Hardware:  paper: one V100 of 32 GB, full precision, batch 256 (its best model's; it does not say
           so for the ablations); it gives no time.
Ours:      distances are means over time and channels; summed over channels, this ablation falls
           far less (measured on a prototype of `chimes`).
           Not run by us on VGGSound.
"""

from configs import base
from configs.table1 import scav_pre_v2a


def get_config(variant: str = "max"):
    base.check_variant(variant, ("max", "demo"))
    config = scav_pre_v2a.get_config(variant)
    config = config.replace(objective={"normalize": "none"})
    if variant == "demo":
        return config.replace(optimizer={"learning_rate": 4e-3})  # ours, chosen on validation
    return config
