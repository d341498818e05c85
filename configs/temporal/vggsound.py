"""Temporal self-supervision on VGGSound: CLIP frames and log-mel, which can be played.

Reproduces: the tasks of Jenni, Black, Collomosse (AAAI 2023), whose code is not public and whose
constants no source confirms. Theirs: speed and direction of both modalities, order within and
across them, contrast of videos with videos and with their sound, with positives and negatives from
past features. They train on pixels of Kinetics; a Transformer on frozen features of frames is what
Dave, Jenni and Shah argue for (arXiv:2312.13008).

Features:  scav extract --videos VIDEOS --clips clips.csv --backbone clip_mel --out \\
               data/vggsound-clip-mel --weights clip=openai/clip-vit-base-patch32
           0.7 MB a clip: 62 GB of CLIP (25 to 30 frames a second) and 38 GB of log-mel for 150 k.
Command:   scav train --config temporal/vggsound --workdir runs/temporal
Hardware:  one V100 of 16 GB, or more: two excerpts of 8 + 4 tokens a step in place of 250 + 62
           steps (3.8 GiB and 9 h at 40 % of its peak by `scav plan`). Not run by us: no figure.
Ours:      excerpts of 0.64 s at 1, 2, 4 and 8 times, a queue of 65,536 clips of which 5 are
           neighbours and 4,096 negatives, temperature 0.1, weights of 1, AdamW at 3e-4; towers,
           steps and the average of the 10 best checkpoints as in configs/vggsound.py. Clips of less
           than 1.28 s, or less than 12.5 frames a second, are refused before training.
"""

from configs import base

OPTIONS = {"speeds": 4, "queue": 65_536, "positives": 5, "negatives": 4_096}
DATA = {"path": "data/vggsound-clip-mel", "backbone": "clip_mel"}


def get_config():
    config = base.vggsound(batch_size=256).replace(data=DATA, optimizer={"learning_rate": 3e-4})
    return base.temporal(config, **OPTIONS)
