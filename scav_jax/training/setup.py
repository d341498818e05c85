"""What a config describes, checked and ready to train."""

import dataclasses
import functools
import hashlib
import json
import math
from dataclasses import dataclass
from pathlib import Path

import jax
import numpy as np
import optax

import scav_jax
from scav_jax import sharding
from scav_jax.base.errors import InputError
from scav_jax.base.ranges import Range, check_range
from scav_jax.distances import check_padding
from scav_jax.encoders import Towers
from scav_jax.features import store
from scav_jax.features.batches import covered_seconds, training_batches
from scav_jax.features.clip import check_resampled
from scav_jax.features.sides import free, pixels, playable
from scav_jax.objectives.free import NOTHING, Free
from scav_jax.objectives.objective import Material, Objective
from scav_jax.optimizer import learning_rate_schedule, make_optimizer
from scav_jax.sequences import Batch
from scav_jax.training import processes, profiling
from scav_jax.training.config import Config, Data, as_dict
from scav_jax.training.runs import build, parameter_shapes

SEEDS = Range(0, 2**32 - 1)  # of these alone JAX makes different keys


@dataclass(frozen=True)
class Setup:
    """What a config describes, ready to train."""

    config: Config
    encoders: Towers
    objective: Objective
    training: store.Split
    validation: store.Split

    @property
    def data(self) -> Data:
        """The section `data`."""
        return self.config.data


def check_config(config: Config) -> None:
    """Raises `InputError` for what is wrong with a config itself, whatever its data are."""
    check_range("seed", config.seed, SEEDS)
    build(config)
    optimizer_of(config)
    profiling.steps_of(config.train.profile, config.train.steps)


def set_up(config: Config) -> Setup:
    """Builds everything that a config names; every mistake is an `InputError`."""
    check_config(config)
    data = config.data
    training = store.read(Path(data.path), data.train_split)
    told = material(training, data.align)
    config = with_data(config, told)
    encoders, objective = build(config)
    objective = dataclasses.replace(objective, free=_augmentation(data.augment, training))
    validation = store.read(Path(data.path), data.validation_split)
    for split, of_split in ((training, told), (validation, material(validation, data.align))):
        _check_made_by(data.backbone, split)
        check_resampled(split.fingerprint, align=data.align, **encoders.reading)
        objective.check(of_split)
    setup = Setup(config, encoders, objective, training, validation)
    # Sizes that do not fit fail here.
    parameter_shapes(training_encoders(setup), objective, widths(setup))
    return setup


def with_data(config: Config, training: Material) -> Config:
    """The config with what its objective takes from the training clips, as their classes."""
    found = build(config)[1].from_data(training)
    return config.replace(objective=found) if found else config


def material(split: store.Split, align: str) -> Material:
    """What an objective is told of the features that it is to train on, which need both streams."""
    split.check_both_streams()
    spans, lengths = (
        (split.visual_spans, split.audio_spans),
        (split.visual_lengths, split.audio_lengths),
    )
    rates = [n / (span[:, 1] - span[:, 0]) for span, n in zip(spans, lengths, strict=True)]
    return Material(
        split.fingerprint,
        align,
        f"{split.data} ({split.split})",
        split.ids,
        covered_seconds(split),
        np.stack(rates, axis=1),
        playable(split.fingerprint),
        split.labels,
        pixels(split.fingerprint),
    )


def _augmentation(share: float, split: store.Split) -> Free:
    """What `data.augment` changes of these features."""
    layouts = free(split.fingerprint)
    if share and not layouts:
        raise InputError(
            f"data.augment: expected 0 for features of which no change is free, got {share:g}; "
            "those of the backbones plain, colours and clip_mel have some ('free' in a fingerprint)"
        )
    wide = {"grid": split.visual_width, "mel": split.audio_width}
    for kind, layout in layouts.items():
        if share and math.prod(layout) != wide[kind]:
            raise InputError(
                f"data.augment: expected {wide[kind]} features a step in the layout that the "
                f"backbone declares free, got {layout}; correct 'free' in its fingerprint"
            )
    return Free(share, **layouts) if share else NOTHING


def _check_made_by(backbone: str, split: store.Split) -> None:
    """Raises `InputError` where features are another backbone's than the config declares."""
    about = split.fingerprint.get("backbone")
    made_by = about.get("name") if isinstance(about, dict) else about
    name, _, extractor = backbone.partition("@")
    if name and made_by != name:
        raise InputError(
            f"data.backbone: expected features of {name!r}, {split.data} has those of "
            f"{made_by!r}; extract with --backbone {name}, or train on what is there with "
            "--config.data.backbone="
        )
    if extractor and split.fingerprint_id != extractor:
        raise InputError(
            f"data.backbone: expected features of the extractor {extractor}, {split.data} has "
            f"those of {split.fingerprint_id}; extract with the same weights and options, or train "
            f"on what is there with --config.data.backbone={name}"
        )


def training_encoders(setup: Setup) -> Towers:
    """The towers as they are trained; everything else uses them in float32."""
    train_config = setup.config.train
    return setup.encoders.clone(precision=train_config.precision, remat=train_config.remat)


def widths(setup: Setup) -> dict[str, int]:
    """How wide features are, by stream."""
    return {"visual": setup.training.visual_width, "audio": setup.training.audio_width}


def resolved_config(setup: Setup, start: dict | None = None) -> dict:
    """What `config.json` holds: the config, and the features that it was resolved with.

    Args:
      setup: of the config.
      start: of which weights it starts (see `training.start`); None for new ones.
    """
    return as_dict(setup.config) | {
        "start": start,
        "features": {
            "fingerprint": setup.training.fingerprint,
            "widths": widths(setup),
            "content": {"train": setup.training.content, "validation": setup.validation.content},
            "clips": {
                setup.data.train_split: len(setup.training),
                setup.data.validation_split: len(setup.validation),
            },
        },
    }


def shared_document(setup: Setup) -> dict:
    """What all processes have to have in common: config, data and versions."""
    ids = {split.split: list(split.ids) for split in (setup.training, setup.validation)}
    return resolved_config(setup) | {
        "clips_sha256": hashlib.sha256(json.dumps(ids).encode()).hexdigest(),
        "version": {"scav_jax": scav_jax.__version__, "jax": jax.__version__},
    }


def prepare_training(config: Config):
    """All that can be wrong with a config, its data and the devices, before anything is written."""
    setup = set_up(config)
    objective = setup.objective
    check_padding(objective.distance, objective.distance_options, setup.encoders.width)
    processes.check_devices(setup.config.train.devices)
    mesh = sharding.make_mesh(setup.config.train.devices or None)
    sharding.check_cuts(setup.data.batch_size, setup.config.train.microbatch, mesh.size)
    return setup, mesh, training_dataset(setup)


def training_dataset(setup: Setup):
    """The part of each training batch that this process reads, with what its clips' labels say."""
    labels, targets = setup.training.labels, setup.objective.targets

    def labelled(batch: Batch) -> Batch:
        return batch._replace(targets=targets([labels[number] for number in batch.numbers]))

    batches = training_batches(
        setup.training,
        batch_size=setup.data.batch_size,
        seed=setup.config.seed,
        align=setup.data.align,
        buckets=setup.data.buckets,
        process=(jax.process_index(), jax.process_count()),
        read_threads=setup.data.read_threads,
        dtype=setup.data.features,
    )
    return batches.map(labelled) if setup.objective.classes else batches


def optimizer_of(config: Config) -> optax.GradientTransformation:
    """The optimizer of a config; the same one for an equal config, whose step is compiled once."""
    return _optimizer(config.train.steps, config.optimizer)


@functools.lru_cache(maxsize=2)
def _optimizer(steps: int, section) -> optax.GradientTransformation:
    return make_optimizer(steps=steps, **dataclasses.asdict(section))


def learning_rates(config: Config) -> optax.Schedule:
    """Step -> learning rate, as the optimizer has it: for the log."""
    schedule = learning_rate_schedule(
        learning_rate=config.optimizer.learning_rate,
        warmup_steps=config.optimizer.warmup_steps,
        final_learning_rate=config.optimizer.final_learning_rate,
        steps=config.train.steps,
    )
    return jax.jit(schedule)  # op by op, a line of the log would take as long as a small step
