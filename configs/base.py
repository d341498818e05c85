"""What the configs share: the paper's training set-up, the demo's, and what a row changes.

A row of the paper's tables is one of two set-ups (`vggsound`, `chimes_demo`), both SCAV with the
Euclidean distance interpolated visual-to-audio before the towers, plus what the row says; so a
row's file is a sentence or two. "Ours" marks what the paper leaves open.
"""

from ml_collections import ConfigDict

from scav_jax.errors import InputError, did_you_mean


def vggsound(batch_size: int) -> ConfigDict:
    """The paper's set-up (section IV) at a given batch size.

    AdamW (0.95, 0.98), learning rate 7e-4, cosine with linear warm-up over 250 k iterations,
    dropout 0.1, visual and audio Transformers of 8 and 2 blocks and width 512, MLPs of hidden
    width 2048 and 768, average of the 10 best checkpoints on 550 validation videos.

    Ours: 5 k warm-up steps, weight decay 0.01, 8 heads, feed-forward 2048, validation every 5 k
    steps and a checkpoint every 1 k, 4 padded shapes, 1 GiB of working memory for distances,
    streams laid onto each other by time (the paper's wording is `--config.data.align=index`). The
    towers have 39.3 M parameters where the paper says 38 M.
    """
    config = ConfigDict()
    config.seed = 0
    config.data = ConfigDict(
        {
            "path": "data/vggsound",
            "train_split": "train",
            "validation_split": "validation",
            "batch_size": batch_size,
            "align": "time",
            "buckets": 4,
            "read_threads": 2,
            "features": "float16",
            "prefetch": 1,
            "backbone": "clip_beats",
        }
    )
    config.encoders = ConfigDict(
        {
            "width": 512,
            "visual_blocks": 8,
            "audio_blocks": 2,
            "visual_hidden": 2048,
            "audio_hidden": 768,
            "heads": 8,
            "feedforward": 2048,
            "dropout": 0.1,
            "position_buckets": 320,
            "position_max_distance": 800,
            "conv_position": False,
            "pre_resample": None,
        }
    )
    config.objective = ConfigDict(
        {
            "name": "sequence",
            "normalize": True,
            "temperature": 1.0,
            "aggregation_temperature": 0.07,
        }
    )
    config.optimizer = ConfigDict(
        {
            "learning_rate": 7e-4,
            "warmup_steps": 5_000,
            "b1": 0.95,
            "b2": 0.98,
            "weight_decay": 0.01,
            "clip_norm": None,
        }
    )
    config.train = ConfigDict(
        {
            "steps": 250_000,
            "log_every": 100,
            "validate_every": 5_000,
            "checkpoint_every": 1_000,
            "keep_best": 10,
            "max_skipped_in_row": 5,
            "devices": 0,
            "distance_memory_bytes": 2**30,
            "preemption_deadline_s": 30.0,
            "profile": "",
            "microbatch": 0,
            "remat": False,
            "precision": "float32",
            "shard_optimizer": False,
            "shard_params": False,
        }
    )
    interpolate(config, "visual_to_audio", when="pre")
    return config


def chimes_demo() -> ConfigDict:
    """A small set-up on rendered clips (`chimes`) that ends within minutes on two CPU cores.

    All of it is ours; the figures that it gives say nothing about the paper's. Few validations and
    few averaged checkpoints, because in 325 steps the early ones are far from the end. The learning
    rate was chosen on validation, as were those that a row's demo variant sets instead
    (`scripts/benchmarks/chimes_rows.py`).
    """
    config = vggsound(batch_size=64)
    config.data.update(path="data/chimes-demo/features", backbone="")  # any: these towers are small
    config.encoders.update(
        width=128,
        heads=4,
        visual_blocks=2,
        audio_blocks=1,
        feedforward=512,
        visual_hidden=256,
        audio_hidden=256,
    )
    config.optimizer.update(learning_rate=1e-3, warmup_steps=15, clip_norm=1.0)
    config.train.update(steps=325, log_every=10, validate_every=25, checkpoint_every=0, keep_best=3)
    return config


def check_variant(variant: str, known: tuple[str, ...]) -> None:
    """Raises `InputError` unless a config has this variant."""
    if variant not in known:
        raise InputError(
            f"config variant: expected one of {', '.join(known)}, got {variant!r}."
            + did_you_mean(variant, known)
        )


def row(variant: str, *, largest: int) -> ConfigDict:
    """The set-up that a row of Table I starts from.

    Args:
      variant: "batch32" (the table's left half), "max" (its right half: the largest batch that
        fits a V100 of 32 GB) or "demo" (the same row on `chimes`).
      largest: the paper's maximum batch size of this row.
    """
    check_variant(variant, ("max", "batch32", "demo"))
    if variant == "demo":
        return chimes_demo()
    return vggsound(batch_size=32 if variant == "batch32" else largest)


def interpolate(config: ConfigDict, direction: str, *, when: str) -> None:
    """The interpolated Euclidean distance (section III-C).

    Args:
      config: changed in place.
      direction: which stream is brought to the steps of which, "visual_to_audio" or
        "audio_to_visual".
      when: "pre" interpolates the features before the towers, each clip's own streams; pairs whose
        latents still differ in length are interpolated in the same direction. "post"
        interpolates latents only, pair by pair.
    """
    config.distance = ConfigDict({"name": "euclidean", "resample": direction})
    config.encoders.pre_resample = {"pre": direction, "post": None}[when]


def soft_dtw(config: ConfigDict) -> None:
    """Soft-DTW in training, hard DTW in retrieval; gamma is ours. Nothing is interpolated."""
    config.distance = ConfigDict({"name": "soft_dtw", "gamma": 0.1})
    config.encoders.pre_resample = None


def wasserstein(config: ConfigDict) -> None:
    """The debiased Sinkhorn divergence of the work that the paper follows ([41], ZeroSwot).

    The paper gives no numbers: blur and position weight are that work's. Nothing is interpolated.
    """
    config.distance = ConfigDict({"name": "wasserstein", "blur": 0.05, "position_weight": 10.0})
    config.encoders.pre_resample = None


def cav(config: ConfigDict) -> None:
    """The aggregation-based objective; the distance then serves logs and retrieval only.

    The paper's CAV retrieves by sequence with 'the interpolated Euclidean', not saying which:
    visual-to-audio on the latents, which costs least, is ours.
    """
    config.objective.name = "aggregation"
    interpolate(config, "visual_to_audio", when="post")


def towers_38m(config: ConfigDict) -> None:
    """Towers of 38.2 M parameters, the nearest to the paper's 38 M that is a known block: BEATs'.

    Feed-forward 1536, and BEATs' convolutional position beside the relative one, which is a second
    reading of the paper's 'after adding relative positional embeddings'.
    """
    config.encoders.update(feedforward=1536, conv_position=True)
