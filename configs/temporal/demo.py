"""Temporal self-supervision on `chimes`, rendered videos of struck bars that ship with us.

Reproduces: no figure of the paper (Jenni, Black, Collomosse, AAAI 2023), which trains on pixels of
Kinetics; its tasks, on features that can be played. The figures are ours, see docs/results.md.

Features:  scav extract --videos data/chimes-demo/videos --backbone colours \\
               --out data/chimes-demo/colours
Command:   scav train --config temporal/demo --workdir runs/temporal
Then:      scav probe --run runs/temporal --split test
Hardware:  two CPU cores; a small tower, minutes.
Variants:  temporal (the default), with_scav (both in one run), and to compare, on the same
           features: scav, cav.
Ours:      everything: excerpts of 0.64 s in 8 pictures and 4 steps of sound at 1, 2 and 4 times,
           a queue of 512 clips, 2 neighbours and 64 negatives from it, weights of 1; 1,300 steps
           where the others have 325; 0.1 for the temporal part beside SCAV.
"""

from configs import base

OPTIONS = {"speeds": 3, "hidden": 128, "width": 64, "queue": 512, "positives": 2, "negatives": 64}


def get_config(variant: str = "temporal"):
    base.check_variant(variant, ("temporal", "with_scav", "scav", "cav"))
    data = {"path": "data/chimes-demo/colours", "backbone": "colours"}
    config = base.chimes_demo().replace(data=data)
    if variant == "temporal":
        config = config.replace(train={"steps": 1_300, "validate_every": 100})
        return base.temporal(config, **OPTIONS)
    if variant == "with_scav":
        return base.with_temporal(config, **OPTIONS).replace(objective={"temporal_weight": 0.1})
    return base.cav(config) if variant == "cav" else config
