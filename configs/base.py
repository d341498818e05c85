"""What the configs share: the paper's training set-up, the demo's, and what a row changes.

A row of the paper's tables is one of two set-ups (`vggsound`, `chimes_demo`), both SCAV with the
Euclidean distance interpolated visual-to-audio before the towers, plus what the row says; so a
row's file is a sentence or two. "Ours" marks what the paper leaves open.
"""

from scav_jax.base.errors import InputError, did_you_mean
from scav_jax.training.config import Config


def vggsound(batch_size: int) -> Config:
    """The paper's set-up (section IV) at a given batch size: the defaults of `training.config`.

    AdamW (0.95, 0.98), learning rate 7e-4, cosine with linear warm-up over 250 k iterations,
    dropout 0.1, visual and audio Transformers of 8 and 2 blocks and width 512, MLPs of hidden
    width 2048 and 768, average of the 10 best checkpoints on 550 validation videos.

    Ours: 5 k warm-up steps, weight decay 0.01, 8 heads, feed-forward 2048, validation every 5 k
    steps and a checkpoint every 1 k, 4 padded shapes, 1 GiB of working memory for distances,
    streams laid onto each other by time (the paper's wording is `--config.data.align=index`). The
    towers have 39.3 M parameters where the paper says 38 M.
    """
    data = {"path": "data/vggsound", "batch_size": batch_size, "backbone": "clip_beats"}
    config = Config().replace(data=data)
    return interpolate(config, "visual_to_audio", when="pre")


def chimes_demo() -> Config:
    """A small set-up on rendered clips (`chimes`) that ends within minutes on two CPU cores.

    All of it is ours; the figures that it gives say nothing about the paper's. Few validations and
    few averaged checkpoints, because in 325 steps the early ones are far from the end. The learning
    rate was chosen on validation, as were those that a row's demo variant sets instead
    (`scripts/benchmarks/chimes_rows.py`).
    """
    return vggsound(batch_size=64).replace(
        data={"path": "data/chimes-demo/features", "backbone": ""},  # any: these towers are small
        encoders={
            "width": 128,
            "heads": 4,
            "visual_blocks": 2,
            "audio_blocks": 1,
            "feedforward": 512,
            "visual_hidden": 256,
            "audio_hidden": 256,
        },
        optimizer={"learning_rate": 1e-3, "warmup_steps": 15, "clip_norm": 1.0},
        train={
            "steps": 325,
            "log_every": 10,
            "validate_every": 25,
            "checkpoint_every": 0,
            "keep_best": 3,
        },
    )


def check_variant(variant: str, known: tuple[str, ...]) -> None:
    """Raises `InputError` unless a config has this variant."""
    if variant not in known:
        raise InputError(
            f"config variant: expected one of {', '.join(known)}, got {variant!r}."
            + did_you_mean(variant, known)
        )


def row(variant: str, *, largest: int) -> Config:
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


def interpolate(config: Config, direction: str, *, when: str) -> Config:
    """With the interpolated Euclidean distance (section III-C).

    Args:
      config: to change.
      direction: which stream is brought to the steps of which, "visual_to_audio" or
        "audio_to_visual".
      when: "pre" interpolates the features before the towers, each clip's own streams; pairs whose
        latents still differ in length are interpolated in the same direction. "post"
        interpolates latents only, pair by pair.
    """
    return config.replace(
        distance={"name": "euclidean", "resample": direction},
        encoders={"pre_resample": {"pre": direction, "post": None}[when]},
    )


def soft_dtw(config: Config) -> Config:
    """With soft-DTW in training, hard DTW in retrieval; gamma is ours. Nothing is interpolated."""
    return config.replace(
        distance={"name": "soft_dtw", "gamma": 0.1}, encoders={"pre_resample": None}
    )


def wasserstein(config: Config) -> Config:
    """With the debiased Sinkhorn divergence of the work that the paper follows ([41], ZeroSwot).

    The paper gives no numbers: blur and position weight are that work's. Nothing is interpolated.
    """
    return config.replace(
        distance={"name": "wasserstein", "blur": 0.05, "position_weight": 10.0},
        encoders={"pre_resample": None},
    )


def cav(config: Config) -> Config:
    """With the aggregation-based objective; the distance then serves logs and retrieval only.

    The paper's CAV retrieves by sequence with 'the interpolated Euclidean', not saying which:
    visual-to-audio on the latents, which costs least, is ours.
    """
    config = config.replace(objective={"name": "aggregation"})
    return interpolate(config, "visual_to_audio", when="post")


def towers_38m(config: Config) -> Config:
    """With towers of 38.2 M parameters, the nearest to the paper's 38 M that is a known block.

    BEATs': feed-forward 1536, and its convolutional position beside the relative one, which is a
    second reading of the paper's 'after adding relative positional embeddings'.
    """
    return config.replace(encoders={"feedforward": 1536, "conv_position": True})


def temporal(config: Config, **options) -> Config:
    """With temporal self-supervision; nothing is interpolated before the towers.

    Args:
      config: to change.
      options: of `objectives.temporal.Temporal`, all of them ours.
    """
    config = config.replace(objective={"name": "temporal", **options})
    return interpolate(config, "visual_to_audio", when="post")


def with_temporal(config: Config, **options) -> Config:
    """With temporal self-supervision beside SCAV, whose towers and retrieval stay as they are."""
    options = {f"temporal_{name}": value for name, value in options.items()}
    return config.replace(objective={"name": "sequence+temporal", **options})


def separate(config: Config, **options) -> Config:
    """With the static and the dynamic part of clips learned apart, for which nothing else changes.

    Args:
      config: to change.
      options: of `objectives.separate.Separate`, all of them ours.
    """
    return config.replace(objective={"name": "separate", **options})


def equiav(config: Config, **encoders) -> Config:
    """With EquiAV (Kim et al., ICML 2024) trained from pixels on, by the released code's settings.

    Two ViT-B/16, S = 16, tau 0.07, AdamW (0.9, 0.95) with weight decay 1e-5, the gradient clipped
    at 0.01, a cosine to 1e-6. Ours: warm-up from 0, where theirs starts at 2e-7; norms, biases and
    modalities' vectors are not decayed; pictures are stored at 224 pixels and crops taken of them,
    where theirs crop the file's; validation by R@1 and the average of the best checkpoints.
    """
    return config.replace(
        data={"backbone": "pixels"},
        encoders={"name": "patches"} | encoders,
        objective={"name": "equivariant"},
        optimizer={
            "learning_rate": 1e-4,
            "final_learning_rate": 1e-6,
            "b1": 0.9,
            "b2": 0.95,
            "weight_decay": 1e-5,
            "clip_norm": 0.01,
        },
    )
