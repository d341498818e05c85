"""Table I, row "SCAV Eucl + pre(a->v)".

R@1 on VGGSound-Test in %, as the paper has it:

    variant   batch   A->V Agg   A->V Seq   V->A Agg   V->A Seq
    batch32      32        9.0       18.6        8.1       18.3
    max          64        9.7       20.8        8.3       20.5

Command:   scav train --config table1/scav_pre_a2v --workdir RUN
           `:batch32` is the left half of the table, `:demo` the same row on `chimes`.
Hardware:  paper: one V100 of 32 GB, full precision; it gives no time.
Ours:      nothing beyond `base.vggsound`.
           Not run by us on VGGSound.
"""

from configs import base


def get_config(variant: str = "max"):
    config = base.row(variant, largest=64)
    return base.interpolate(config, "audio_to_visual", when="pre")
