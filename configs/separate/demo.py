"""Static and dynamic parts learned apart, on `chimes`: minutes on two CPU cores.

Reproduces: nothing; the form is ours, see docs/separate.md.

Command:   scav train --config separate/demo --workdir runs/separate
Features:  those of the demo (`scav datasets chimes`, `scav extract`), or of `--preset rooms`,
           `mixed` and `static`: `--config.data.path=data/chimes-rooms/features`.
Hardware:  two CPU cores.
Variants:  separate (the default); by_distance, soft_dtw, wasserstein (the dynamic part by one of
           the paper's distances, z-scored); tower (the static part by a tower, as CAV has it,
           instead of a small MLP of means); keep (towers see the mean as well); augment (features
           change in ways that say nothing new); static (the static part alone); centred (SCAV of
           features less their mean, no static part at all). SCAV itself is configs/demo.py.
Ours:      everything: 1e-3 and 325 steps as in the demo, both temperatures from 0.07.
"""

from configs import base

BY_DISTANCE = {"dynamic": "distance"}
VARIANTS = {
    "separate": {},
    "by_distance": BY_DISTANCE,
    "soft_dtw": BY_DISTANCE,
    "wasserstein": BY_DISTANCE,
    "tower": {"branch": "tower"},
    "keep": {"statics": "keep"},
    "augment": {},
    "static": {"dynamic_loss": 0.0},
    "centred": {"statics": "remove"} | BY_DISTANCE,
}
CHANGED = {
    "soft_dtw": base.soft_dtw,
    "wasserstein": base.wasserstein,
    "augment": lambda config: config.replace(data={"augment": 0.8}),
}


def get_config(variant: str = "separate"):
    base.check_variant(variant, tuple(VARIANTS))
    config = base.separate(base.chimes_demo(), **VARIANTS[variant])
    return CHANGED.get(variant, lambda config: config)(config)
