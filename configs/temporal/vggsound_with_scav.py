"""SCAV and temporal self-supervision in one run on VGGSound: one pair of towers, two objectives.

Reproduces: nothing; SCAV's related work suggests it, nobody has published it. Each is as in
configs/vggsound.py and configs/temporal/vggsound.py, with the features of the latter: BEATs cannot
be played, so sound is log-mel for both.

Command:   scav train --config temporal/vggsound_with_scav --workdir RUN
Hardware:  one V100 of 32 GB, or more (`scav plan` says more). Not run by us: no time, no figure.
Ours:      everything that the two have as ours, and a weight of 0.1 for the temporal part, the sum
           of ten losses (`--config.objective.temporal_weight`).
"""

from configs import base
from configs.temporal.vggsound import DATA, OPTIONS


def get_config():
    config = base.vggsound(batch_size=256).replace(data=DATA)
    config = base.with_temporal(config, **OPTIONS)
    return config.replace(objective={"temporal_weight": 0.1})
