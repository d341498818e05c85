"""SCAV on `chimes`, rendered videos of struck bars that ship with us: `./scripts/demo`.

Reproduces: no figure of the paper. Its test is the situation of the paper's MUSIC test, clips of
one performance that differ only in what is struck when; the figures are ours, see docs/results.md.

Command:   scav train --config demo --workdir runs/demo
Hardware:  two CPU cores; a small tower, 325 steps, minutes.
Variants:  scav (the default). Ours, how features are read: frames (every frame), antialiased (their
           mean a step), rises (how much the picture brightens beside it), finely (frames and
           rises), augment (features change in ways that say nothing new), augmented (all of it).
           Ours, instead of the z-score: scale (the deviation of the first batches), lambda005
           (nothing, with a temperature that the distances' spread asks for).
The baseline: configs/table1/cav.py:demo. Every row of the paper's tables has such a variant.
"""

from configs import base

FRAMES, RISES = {"pre_points": 4}, {"visual_rise": 5.0}
AUGMENT = {"data": {"augment": 0.8}}
VARIANTS: dict = {
    "scav": {},
    "frames": {"encoders": FRAMES},
    "antialiased": {"encoders": FRAMES | {"pre_join": "mean"}},
    "rises": {"encoders": RISES},
    "finely": {"encoders": FRAMES | RISES},
    "augment": AUGMENT,
    "augmented": {"encoders": FRAMES | RISES} | AUGMENT,
    "scale": {"objective": {"normalize": "deviation"}},
    "lambda005": {"objective": {"normalize": "none", "temperature": 0.05}},
}


def get_config(variant: str = "scav"):
    base.check_variant(variant, tuple(VARIANTS))
    return base.chimes_demo().replace(**VARIANTS[variant])
