"""Table I, row "SCAV Eucl + post(v->a)".

R@1 on VGGSound-Test in %, as the paper has it:

    variant   batch   A->V Agg   A->V Seq   V->A Agg   V->A Seq
    batch32      32        9.5       19.2        8.2       18.4
    max          96       11.4       21.3        7.8       21.3

Command:   scav train --config table1/scav_post_v2a --workdir RUN
           `:batch32` is the left half of the table, `:demo` the same row on `chimes`.
Hardware:  paper: one V100 of 32 GB, full precision; it gives no time.
Ours:      nothing beyond `base.vggsound`.
           Not run by us on VGGSound.
"""

from configs import base


def get_config(variant: str = "max"):
    config = base.row(variant, largest=96)
    return base.interpolate(config, "visual_to_audio", when="post")
