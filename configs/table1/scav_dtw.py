"""Table I, row "SCAV DTW".

R@1 on VGGSound-Test in %, as the paper has it:

    variant   batch   A->V Agg   A->V Seq   V->A Agg   V->A Seq
    batch32      32        9.2       12.5        9.8       13.0
    max          64        9.5       14.2       11.5       15.9

Command:   scav train --config table1/scav_dtw --workdir RUN
           `:batch32` is the left half of the table, `:demo` the same row on `chimes`.
Hardware:  paper: one V100 of 32 GB, full precision; it gives no time.
Ours:      gamma 0.1 (`base.soft_dtw`).
           Not run by us on VGGSound.
"""

from configs import base


def get_config(variant: str = "max"):
    config = base.row(variant, largest=64)
    return base.soft_dtw(config)
