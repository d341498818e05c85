"""EquiAV's losses on frozen features of `chimes`, with playing as the augmentation: ours.

Reproduces: no figure of any paper. EquiAV augments pixels (configs/equiav/demo.py); here an excerpt
is played faster or backwards, and its speed, direction, begin and extent are what the predictor is
told.

Features:  scav extract --videos data/chimes-demo/videos --backbone colours \\
               --out data/chimes-demo/colours
Command:   scav train --config equiav/playing_demo --workdir runs/playing
Hardware:  two CPU cores; a small tower, minutes.
Ours:      everything: excerpts of 0.64 s in 8 pictures and 4 steps of sound at 1, 2 and 4 times,
           the sizes of the heads, the learning rate.
"""

from configs import base

HEADS = {"hidden": 256, "intra_width": 128, "inter_width": 128, "code_width": 64, "centroid": 8}


def get_config():
    config = base.chimes_demo().replace(
        data={"path": "data/chimes-demo/colours", "backbone": "colours"},
        objective={"name": "equivariant_playing", "speeds": 3} | HEADS,
    )
    return base.interpolate(config, "visual_to_audio", when="post")
