"""What a run of `scav_jax.train` is made of: sections of its config, checked and ready to train."""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

import jax

import scav_jax
from scav_jax import datasets, processes, profiling, sharding
from scav_jax.batches import training_batches
from scav_jax.config import unpack
from scav_jax.encoders import Encoders
from scav_jax.errors import InputError
from scav_jax.features import check_resampled
from scav_jax.optimizer import learning_rate_schedule, make_optimizer
from scav_jax.runs import parameter_shapes
from scav_jax.train_step import Objective


@dataclass(frozen=True)
class DataSettings:
    """The `data` section.

    Attributes:
      path: a directory that `python -m scav_jax.extract` wrote.
      train_split, validation_split: names of its splits.
      batch_size: clips in a global batch, over all devices.
      align: "time", or "index" (the paper's wording: whole streams stretched onto each other).
      buckets: at most this many padded shapes.
      read_threads: threads that read ahead.
      features: "float16", as stored, or "float32": what batches are copied to the devices in; the
        towers compute the same.
      prefetch: batches that wait on the devices; 0 where two do not fit.
      backbone: whose features these are, as "clip_beats"; "" takes any.
    """

    path: str
    train_split: str
    validation_split: str
    batch_size: int
    align: str
    buckets: int
    read_threads: int
    features: str
    prefetch: int
    backbone: str = ""


@dataclass(frozen=True)
class TrainSettings:
    """The `train` section.

    Attributes:
      steps: how many batches to train on.
      log_every: steps between lines of metrics.
      validate_every: steps between validations; each writes a checkpoint.
      checkpoint_every: steps between further checkpoints, or 0.
      keep_best: how many of the best checkpoints are kept and averaged (paper: 10).
      max_skipped_in_row: non-finite steps in a row that end the run.
      devices: how many devices to use; 0 is all.
      distance_memory_bytes: working memory of the distance matrix, beside latents and result;
        changes speed only.
      preemption_deadline_s: after SIGTERM, how many seconds there are to save in.
      profile: "start:stop" writes a trace of these steps to WORKDIR/profile; "" does not.
      microbatch: clips that are encoded at a time, over all devices, for the gradient of the whole
        batch in the memory of a part (see `gradient_cache`); 0 encodes all at once.
      remat: keeps less of each block for the gradient and computes it again.
      precision: of the towers' products, see `Encoders`: "float32", "tensorfloat32", "bfloat16".
        Validation and evaluation are in float32 always.
      shard_optimizer, shard_params: cut over the devices instead of whole on each.
    """

    steps: int
    log_every: int
    validate_every: int
    checkpoint_every: int
    keep_best: int
    max_skipped_in_row: int
    devices: int
    distance_memory_bytes: int
    preemption_deadline_s: float
    profile: str
    microbatch: int = 0
    remat: bool = False
    precision: str = "float32"
    shard_optimizer: bool = False
    shard_params: bool = False

    def __post_init__(self):
        at_least_1 = ("steps", "log_every", "validate_every", "max_skipped_in_row")
        for name in (*at_least_1, "distance_memory_bytes"):
            if getattr(self, name) < 1:
                raise InputError(f"train.{name}: expected at least 1, got {getattr(self, name)}")
        if self.preemption_deadline_s <= 0:
            raise InputError(
                f"train.preemption_deadline_s: expected more than 0, "
                f"got {self.preemption_deadline_s}"
            )


@dataclass(frozen=True)
class Setup:
    """What a config describes, ready to train."""

    config: dict
    data: DataSettings
    settings: TrainSettings
    encoders: Encoders
    objective: Objective
    training: datasets.Split
    validation: datasets.Split


def set_up(config: dict) -> Setup:
    """Builds everything that a resolved config names; every mistake is an `InputError`."""
    data = unpack("data", config["data"], DataSettings)
    settings = unpack("train", config["train"], TrainSettings)
    encoders = unpack("encoders", config["encoders"], Encoders)
    distance = dict(config["distance"])
    objective = unpack(
        "objective",
        config["objective"],
        Objective,
        distance=distance.pop("name", None),
        distance_options=distance,
    )
    training = datasets.read(Path(data.path), data.train_split)
    validation = datasets.read(Path(data.path), data.validation_split)
    for split in (training, validation):
        split.check_both_streams()
        _check_made_by(data.backbone, split)
        check_resampled(split.fingerprint, align=data.align, direction=encoders.pre_resample)
    setup = Setup(config, data, settings, encoders, objective, training, validation)
    # Sizes that do not fit fail here.
    parameter_shapes(training_encoders(setup), objective, widths(setup))
    return setup


def _check_made_by(backbone: str, split: datasets.Split) -> None:
    """Raises `InputError` where features are another backbone's than the config declares."""
    about = split.fingerprint.get("backbone")
    made_by = about.get("name") if isinstance(about, dict) else about
    if backbone and made_by != backbone:
        raise InputError(
            f"data.backbone: expected features of {backbone!r}, {split.data} has those of "
            f"{made_by!r}; extract with --backbone {backbone}, or train on what is there with "
            "--config.data.backbone="
        )


def training_encoders(setup: Setup) -> Encoders:
    """The towers as they are trained; everything else uses them in float32."""
    return setup.encoders.clone(precision=setup.settings.precision, remat=setup.settings.remat)


def widths(setup: Setup) -> dict[str, int]:
    """How wide features are, by stream."""
    return {"visual": setup.training.visual_width, "audio": setup.training.audio_width}


def resolved_config(setup: Setup) -> dict:
    """What `config.json` holds: the config, and the features it was resolved with."""
    return setup.config | {
        "features": {
            "fingerprint": setup.training.fingerprint,
            "widths": widths(setup),
            "clips": {
                setup.data.train_split: len(setup.training),
                setup.data.validation_split: len(setup.validation),
            },
        }
    }


def shared_document(setup: Setup) -> dict:
    """What all processes have to have in common: config, data and versions."""
    ids = {split.split: list(split.ids) for split in (setup.training, setup.validation)}
    return resolved_config(setup) | {
        "clips_sha256": hashlib.sha256(json.dumps(ids).encode()).hexdigest(),
        "version": {"scav_jax": scav_jax.__version__, "jax": jax.__version__},
    }


def prepare(config: dict):
    """All that can be wrong with a config, its data and the devices, before anything is written."""
    setup = set_up(config)
    processes.check_devices(setup.settings.devices)
    mesh = sharding.make_mesh(setup.settings.devices or None)
    sharding.check_batch_size(setup.data.batch_size, mesh)
    sharding.check_microbatch(setup.settings.microbatch, setup.data.batch_size, mesh)
    unpack("optimizer", config["optimizer"], make_optimizer, steps=setup.settings.steps)
    profiling.steps_of(setup.settings.profile, setup.settings.steps)
    return setup, mesh, training_dataset(setup)


def training_dataset(setup: Setup):
    """The part of each training batch that this process reads."""
    return training_batches(
        setup.training,
        batch_size=setup.data.batch_size,
        seed=setup.config["seed"],
        align=setup.data.align,
        buckets=setup.data.buckets,
        process_index=jax.process_index(),
        process_count=jax.process_count(),
        read_threads=setup.data.read_threads,
        dtype=setup.data.features,
    )


def learning_rates(optimizer: dict, steps: int):
    """Step -> learning rate, as the optimizer has it: for the log."""
    rate, warmup_steps = optimizer["learning_rate"], optimizer["warmup_steps"]
    return learning_rate_schedule(learning_rate=rate, warmup_steps=warmup_steps, steps=steps)
