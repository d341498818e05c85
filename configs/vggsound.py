"""The paper's best model: SCAV, Euclidean, pre(v->a), batch 256, on VGGSound.

Reproduces: Table I (right half), Table II and Table IV, first rows of SCAV. R@1 on the paper's
13 k VGGSound test clips, in %:

    retrieval    A->V   V->A
    Seq          22.6   22.3
    Agg          11.9   10.1
    hybrid 100   22.6   22.1   (Table III)

Command:   python -m scav_jax.train --config configs/vggsound.py --workdir runs/vggsound
Hardware:  paper: one V100 of 32 GB, full precision; it gives no time.
Variants:  configs/vggsound.py:39m (the default; 39.3 M parameters, the plain reading of the paper)
           configs/vggsound.py:38m (38.2 M, BEATs' block; the paper says 38 M)
Ours:      what `base.vggsound` lists. Not run by us: the figures are the paper's.
"""

from configs import base


def get_config(variant: str = "39m"):
    base.check_variant(variant, ("39m", "38m"))
    config = base.vggsound(batch_size=256)
    if variant == "38m":
        base.towers_38m(config)
    return config
