"""SCAV on `chimes`, rendered videos of struck bars that ship with us: `./scripts/demo`.

Reproduces: no figure of the paper. Its test is the situation of the paper's MUSIC test, clips of
one performance that differ only in what is struck when; the figures are ours, see docs/results.md.

Command:   python -m scav_jax.train --config configs/demo.py --workdir runs/demo
Hardware:  two CPU cores; a small tower, 325 steps, minutes.
Variants:  scav (the default); finely (every frame is read, and how much it brightened; ours);
           augmented (the same on features that change in ways that say nothing new; ours).
The baseline: configs/table1/cav.py:demo. Every row of the paper's tables has such a variant.
"""

from configs import base

FINELY = {"encoders": {"pre_points": 4, "visual_rise": 5.0}}
VARIANTS: dict = {"scav": {}, "finely": FINELY, "augmented": FINELY | {"data": {"augment": 0.8}}}


def get_config(variant: str = "scav"):
    base.check_variant(variant, tuple(VARIANTS))
    return base.chimes_demo().replace(**VARIANTS[variant])
