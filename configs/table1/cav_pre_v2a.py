"""Table I, row "CAV + pre(v->a)".

R@1 on VGGSound-Test in %, as the paper has it:

    variant   batch   A->V Agg   A->V Seq   V->A Agg   V->A Seq
    batch32      32       10.0       10.6        9.7        7.9
    max        1024       12.1       12.2       12.1       11.6

Command:   scav train --config table1/cav_pre_v2a --workdir RUN
           `:batch32` is the left half of the table, `:demo` the same row on `chimes`.
Hardware:  paper: one V100 of 32 GB, full precision; it gives no time.
Ours:      nothing beyond `base.vggsound`.
           Not run by us on VGGSound.
"""

from configs import base


def get_config(variant: str = "max"):
    config = base.row(variant, largest=1024)
    config = base.cav(config)
    return base.interpolate(config, "visual_to_audio", when="pre")
