"""EquiAV on AudioSet-2M, with the released code's settings (JongSuk1/EquiAV, ICML 2024).

Reproduces: zero-shot retrieval after pretraining, R@1 V->A and A->V in percent (the paper's poster,
CAV-MAE's lists of 5 clips a class; their embeddings are drawn at random, ours are fixed):

    AudioSet  30.1  29.6
    VGGSound  28.5  28.4

Command:   scav train --config equiav/audioset --workdir runs/equiav
Features:  scav extract --videos AUDIOSET --out data/audioset-pixels --clip-seconds 10 \
--backbone pixels --frames 10 --side 224
Hardware:  theirs, 8 GPUs of 16 clips each. Ours: one accelerator with room for a batch of 128, or
           any with train.microbatch. Not run by us.

20 epochs of 1.9 M clips in batches of 128, of which 2 warm up. They start from a ViT-B that MAE
trained on ImageNet, which is not part of this config. "1024" is ours: eight times the batch, in
parts of 128, whose contrast sees more clips.
"""

from configs import base

CLIPS = 1_900_000
VARIANTS = {"128": 128, "1024": 1024}


def get_config(variant="128"):
    base.check_variant(variant, tuple(VARIANTS))
    size = VARIANTS[variant]
    steps = 20 * CLIPS // size
    config = base.equiav(base.vggsound(batch_size=size).replace(distance={"name": "euclidean"}))
    return config.replace(
        data={"path": "data/audioset-pixels", "buckets": 1},
        optimizer={"warmup_steps": steps // 10},
        train={
            "steps": steps,
            "microbatch": 128 if size > 128 else 0,
            "precision": "bfloat16",
            # 14 GiB instead of 82, by `scav plan --config equiav/audioset --device a100`
            "remat": "blocks",
            "validate_every": 5_000,
        },
    )
