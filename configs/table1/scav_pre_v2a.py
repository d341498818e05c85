"""Table I, row "SCAV Eucl + pre(v->a)".

R@1 on VGGSound-Test in %, as the paper has it:

    variant   batch   A->V Agg   A->V Seq   V->A Agg   V->A Seq
    batch32      32        8.7       18.7        7.6       18.3
    max         256       11.9       22.6       10.1       22.3

Command:   scav train --config table1/scav_pre_v2a --workdir RUN
           `:batch32` is the left half of the table, `:demo` the same row on `chimes`.
Hardware:  paper: one V100 of 32 GB, full precision; it gives no time.
Ours:      nothing beyond `base.vggsound`.
           Not run by us on VGGSound.
"""

from configs import base


def get_config(variant: str = "max"):
    config = base.row(variant, largest=256)
    return base.interpolate(config, "visual_to_audio", when="pre")
