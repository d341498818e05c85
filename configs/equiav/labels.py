"""Labels by EquiAV's towers: fine-tuned with the released code's settings, or probed.

Reproduces: fine-tuning after pretraining on AudioSet-2M (the paper's tables; sound, picture, both):

    AudioSet-20K  mAP       42.4  25.7  46.6
    VGGSound      accuracy  61.0  50.7  67.1

Command:   scav train --config equiav/labels --workdir runs/equiav-labels
Then:      scav evaluate --run runs/equiav-labels --split test
Features:  as for configs/equiav/audioset.py, with a column "label"; AudioSet's with ";" between
           several.
Starts:    from runs/equiav, trained by configs/equiav/audioset.py: --config.train.init_from=RUN.
Hardware:  theirs, 8 GPUs of 32 clips each. Ours: one accelerator, with train.microbatch where it is
           small, and train.precision=float32 on a V100. Not run by us.

Theirs: 50 epochs, one of warm-up, learning rate 1e-4, half of the clips mixed with Beta(10, 10),
drop path 0.1, the binary cross-entropy for either data set, log-mels of VGGSound by its own mean
and deviation (not "linear", whose towers know AudioSet's). Ours: VGGSound, one label a clip, by the
softmax's; the layer sees the means of both towers' tokens, without the linear layer that theirs has
between; sounds are mixed as log-mels; one frame a clip is evaluated, the middle one. One stream
alone is --config.objective.streams=audio or visual.

"linear" trains a linear layer on VGGSound and leaves the towers as they are; learning rate and
steps are ours. "demo" and "demo_linear" are the same on `chimes`, from a run of
configs/equiav/demo.py: a minute on two CPU cores.
"""

from configs import base

VARIANTS = ("audioset20k", "vggsound", "linear", "demo", "demo_linear")
CLIPS = {"audioset20k": 20_000, "vggsound": 153_000, "linear": 153_000}
BATCH, EPOCHS = 256, 50


def get_config(variant="audioset20k"):
    base.check_variant(variant, VARIANTS)
    if variant.startswith("demo"):
        return _demo(frozen=variant == "demo_linear")
    epoch, frozen = CLIPS[variant] // BATCH, variant == "linear"
    config = base.equiav(base.vggsound(batch_size=BATCH).replace(distance={"name": "euclidean"}))
    several = variant == "audioset20k"
    config = config.replace(
        data={"path": f"data/{'audioset20k' if several else 'vggsound'}-pixels", "buckets": 1},
        objective={"name": "classification", "pixels": True, "multi_label": several},
        optimizer={"warmup_steps": epoch, "clip_norm": None},
        train={
            "init_from": "runs/equiav",
            "steps": (10 if frozen else EPOCHS) * epoch,
            "validate_every": epoch,
            "precision": "bfloat16",
        },
    )
    if frozen:
        return _probed(config, 1e-3)
    of_vggsound = {} if several else {"audio_mean": -4.956, "audio_std": 4.486}
    return _fine_tuned(config.replace(objective=of_vggsound))


def _fine_tuned(config):
    return config.replace(encoders={"drop_path": 0.1}, objective={"mixup": 0.5})


def _probed(config, learning_rate):
    return config.replace(
        objective={"towers": "frozen"}, optimizer={"learning_rate": learning_rate}
    )


def _demo(*, frozen):
    small = {"width": 64, "heads": 4, "visual_blocks": 2, "audio_blocks": 1, "feedforward": 128}
    config = base.equiav(base.chimes_demo(), side=64, **small)
    sizes = {"audio_frames": 384, "audio_mean": -6.2, "audio_std": 2.9}
    config = config.replace(
        data={"path": "data/chimes-demo/pixels", "buckets": 1, "batch_size": 32},
        objective={"name": "classification", "pixels": True} | sizes,
        optimizer={"learning_rate": 1e-3, "clip_norm": 1.0, "warmup_steps": 15},
        train={
            "init_from": "runs/equiav-demo",
            "steps": 300,
            "validate_every": 75,
            "log_every": 15,
            "keep_best": 2,
        },
    )
    return _probed(config, 1e-2) if frozen else _fine_tuned(config)
