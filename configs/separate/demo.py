"""Static and dynamic parts learned apart, on `chimes`: minutes on two CPU cores.

Reproduces: nothing; the form is ours, see docs/separate.md.

Command:   python -m scav_jax.train --config configs/separate/demo.py --workdir runs/separate
Features:  those of the demo (`scav datasets chimes`, `scav extract`), or of `--preset rooms`,
           `mixed` and `static`: `--config.data.path=data/chimes-rooms/features`.
Hardware:  two CPU cores.
Variants:  separate (the default); by_distance (the dynamic part by SCAV's z-scored distance);
           tower (the static part by a tower, as CAV has it, instead of a small MLP of means);
           centred (SCAV of features less their mean, no static part at all); scale (SCAV by the
           deviation of the first batches instead of the z-score). SCAV itself is configs/demo.py.
           Towers that see the mean as well: `--config.objective.statics=keep`; the static part
           alone: `--config.objective.dynamic_loss=0`.
Ours:      everything: 1e-3 and 325 steps as in the demo, both temperatures from 0.07.
"""

from configs import base

VARIANTS = {
    "separate": {},
    "by_distance": {"dynamic": "distance"},
    "tower": {"branch": "tower"},
    "centred": {"statics": "remove", "dynamic": "distance"},
}


def get_config(variant: str = "separate"):
    base.check_variant(variant, (*VARIANTS, "scale"))
    config = base.chimes_demo()
    if variant == "scale":
        return config.replace(objective={"normalize": "deviation"})
    return base.separate(config, **VARIANTS[variant])
