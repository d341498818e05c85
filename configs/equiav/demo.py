"""EquiAV on `chimes`, from pixels on, with small towers: minutes on two CPU cores.

Reproduces: no figure of the paper; what it gives is in docs/results.md.

Command:   scav train --config equiav/demo --workdir runs/equiav-demo
Features:  scav extract --videos data/chimes-demo/videos --out data/chimes-demo/pixels \
--backbone pixels --frames 10 --side 64
Hardware:  two CPU cores.

"contrast" is the same towers by the contrast across modalities alone, of clips as they are.
"""

from configs import base

VARIANTS = ("equivariant", "contrast")


def get_config(variant="equivariant"):
    base.check_variant(variant, VARIANTS)
    small = {"width": 64, "heads": 4, "visual_blocks": 2, "audio_blocks": 1, "feedforward": 128}
    config = base.equiav(base.chimes_demo(), side=64, **small)
    sizes = {"audio_frames": 384, "audio_mean": -6.2, "audio_std": 2.9}
    if variant == "contrast":
        objective = {"name": "pixels"} | sizes
    else:
        heads = {"hidden": 256, "intra_width": 128, "inter_width": 128, "code_width": 64}
        objective = {"time_mask": 72, "frequency_mask": 32, "centroid": 8} | sizes | heads
    return config.replace(
        data={"path": "data/chimes-demo/pixels", "buckets": 1, "batch_size": 32},
        objective=objective,
        optimizer={"learning_rate": 1e-3, "clip_norm": 1.0, "warmup_steps": 15},
        train={"steps": 300, "validate_every": 75, "log_every": 15, "keep_best": 2},
    )
