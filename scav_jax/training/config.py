"""A run's config: a tree of frozen dataclasses that is document, defaults and check in one.

A config file is a Python file whose `get_config()` returns a `Config`; the defaults are the paper's
set-up, so a file says what it changes:

    def get_config():
        return Config().replace(data={"path": "data/mine"}, train={"steps": 9_000})

The section `optimizer` is the arguments of `make_optimizer`, and `encoders`, `distance` and
`objective` those of the towers, the distance and the objective that they name: whatever has options
says once what they are. Every mistake on the way is one line that names the key.
"""

import ast
import contextlib
import dataclasses
import functools
import inspect
import json
import math
import types
import typing
from collections.abc import Callable, Mapping
from dataclasses import MISSING, dataclass, field
from pathlib import Path
from typing import Any

from scav_jax import distances, encoders, objectives
from scav_jax.base.documents import flatten
from scav_jax.base.doors import MissingCode
from scav_jax.base.errors import InputError, check_one_of, did_you_mean
from scav_jax.base.ranges import (
    AT_LEAST_0,
    AT_LEAST_1,
    READ,
    SHARE,
    WAIT,
    Range,
    check_ranges,
)
from scav_jax.encoders.layers import check_remat
from scav_jax.encoders.precision import check_precision
from scav_jax.features.options import OPTIONS, check_options
from scav_jax.optimizer import make_optimizer

# ---- the tree ------------------------------------------------------------------------------

TRACKERS = ("none", "tensorboard", "wandb", "trackio")  # those of `training.records`
OF_DATA = {"prefetch": AT_LEAST_0, "augment": SHARE}  # besides `features.options`
OF_TRAIN = {
    **dict.fromkeys(("steps", "log_every", "validate_every", "keep_best"), AT_LEAST_1),
    **dict.fromkeys(("checkpoint_every", "devices", "microbatch"), AT_LEAST_0),
    "max_skipped_in_row": AT_LEAST_1,
    "distance_memory_bytes": Range(1, float(2**62)),
    "preemption_deadline_s": WAIT,
}


@dataclass(frozen=True)
class Data:
    """The `data` section: which features, in which batches.

    Attributes:
      path: a directory that `scav extract` wrote.
      train_split, validation_split: names of its splits.
      batch_size: clips in a global batch, over all devices (paper: 32 to 1024 by row).
      align: "time" lays streams onto each other by the seconds that they cover (ours), "index"
        whole onto whole (the paper's wording).
      buckets: at most this many padded shapes.
      read_threads: threads that read ahead.
      features: "float16", as stored, or "float32": what batches are copied to the devices in; the
        towers compute the same.
      prefetch: batches that wait on the devices; 0 where two do not fit.
      backbone: whose features these are, as "clip_beats"; "" takes any. "clip_beats@ID" takes one
        extractor's alone, with all its weights and options: `scav inspect DATA` says the ID.
      augment: the share of training clips whose features are changed, in every step anew, in ways
        that their backbone declares free (`features.sides`): mirrored, recoloured, higher or lower.
    """

    path: str = "data/vggsound"
    train_split: str = "train"
    validation_split: str = "validation"
    batch_size: int = 256
    align: str = "time"
    buckets: int = 4
    read_threads: int = 2
    features: str = "float16"
    prefetch: int = 1
    backbone: str = ""
    augment: float = 0.0

    def __post_init__(self):
        check_options(**{name: getattr(self, name) for name in OPTIONS})
        check_ranges("data", self, OF_DATA)


@dataclass(frozen=True)
class Train:
    """The `train` section: how long, how often, on what.

    Attributes:
      steps: how many batches to train on (paper: 250 k).
      init_from: another run, whose weights this one starts from with a new optimizer: the averaged
        ones, or those of the latest checkpoint where it is not finished; "" starts anew.
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
      remat: what of each block is computed again for the gradient, see `Encoders`: "unrolled",
        "none", "blocks".
      precision: of the towers' products, see `Encoders`: "float32", "tensorfloat32", "bfloat16".
        Validation and evaluation are in float32 always.
      shard_optimizer, shard_params: cut over the devices instead of whole on each.
      tracker: who is told each line of metrics.jsonl too: "none", "tensorboard" (WORKDIR/
        tensorboard), "wandb" or "trackio" (where it is installed).
    """

    steps: int = 250_000
    init_from: str = ""
    log_every: int = 100
    validate_every: int = 5_000
    checkpoint_every: int = 1_000
    keep_best: int = 10
    max_skipped_in_row: int = 5
    devices: int = 0
    distance_memory_bytes: int = 2**30
    preemption_deadline_s: float = 30.0
    profile: str = ""
    microbatch: int = 0
    remat: str = "none"
    precision: str = "float32"
    shard_optimizer: bool = False
    shard_params: bool = False
    tracker: str = "tensorboard"

    def __post_init__(self):
        check_ranges("train", self, OF_TRAIN)
        check_one_of("train.tracker", self.tracker, TRACKERS)
        check_remat(self.remat)
        check_precision(self.precision)


@functools.cache
def settings_of(
    section: str, constructor: Callable, without: tuple[str, ...] = (), name: str | None = None
) -> Any:
    """What a constructor takes, as a frozen dataclass of its own with the same defaults.

    Args:
      section: of the config, for which this is.
      constructor: its arguments with a default are settings.
      without: arguments that come from elsewhere.
      name: of a section that belongs to what it names: the section's first key.

    Raises:
      InputError: a default that could be changed, such as a list.
    """
    fields = dataclasses.fields(constructor) if dataclasses.is_dataclass(constructor) else ()
    made = {f.name: f.default_factory for f in fields if f.default_factory is not MISSING}
    settings = []
    for p in _signature(constructor).parameters.values():
        if p.default is p.empty or p.name in without:
            continue
        default = made[p.name]() if p.name in made else p.default
        if p.name == "name" and name is not None:
            raise InputError(
                f"config.{section}: expected options called otherwise than `name`, which says "
                f"which {section} it is, {name} has one; call it otherwise"
            )
        if not _is_of_a_file(default):
            got = "not finite" if isinstance(default, float) else f"a {type(default).__name__}"
            raise InputError(
                f"config.{section}: expected options that are numbers, words or tuples, {p.name} "
                f"of {name or section} is {got}"
            )
        kind = type(default) if p.annotation is p.empty else p.annotation
        settings.append((p.name, kind, field(default=default)))
    named = [] if name is None else [("name", str, field(default=name))]
    return dataclasses.make_dataclass(section, [*named, *settings], frozen=True)()


def _is_of_a_file(default: Any) -> bool:
    """Whether a default stays what it is, and is written to config.json and read again."""
    try:
        json.dumps(default, allow_nan=False)
    except (TypeError, ValueError):
        return False
    return type(default).__hash__ is not None


def _signature(constructor: Callable) -> inspect.Signature:
    """With annotations that `from __future__ import annotations` keeps as text read again."""
    try:
        return inspect.signature(constructor, eval_str=True)
    except NameError:  # of an import for type checkers: a default says enough
        plain = inspect.signature(constructor)
        free = [p.replace(annotation=p.empty) for p in plain.parameters.values()]
        return plain.replace(parameters=free)


def distance_section(name: str) -> Any:
    """The `distance` section of a name: its options, with their defaults."""
    return settings_of("distance", distances.find(name, {}).pair, name=name)


def objective_section(name: str) -> Any:
    """The `objective` section of a name: its options, with their defaults."""
    ours = objectives.objective.OURS
    return settings_of("objective", objectives.find(name), ours, name=name)  # type: ignore[arg-type]


def encoders_section(name: str) -> Any:
    """The `encoders` section of a name: the towers' sizes, with their defaults."""
    of_train = ("name", "parent", "precision", "remat")
    return settings_of("encoders", encoders.find(name), of_train, name=name)  # type: ignore[arg-type]


# Sections that belong to what their key `name` says.
NAMED = {
    "distance": distance_section,
    "encoders": encoders_section,
    "objective": objective_section,
}


@dataclass(frozen=True)
class Config:
    """Everything that decides a run; by default the paper's best (section IV).

    Attributes:
      data, train: see `Data`, `Train`.
      encoders: which towers, and their arguments but for those that `train` has.
      distance: of which distance sequences are compared by, and its options.
      objective: what is minimised, and its options.
      optimizer: the arguments of `make_optimizer`; steps are `train.steps`.
      seed: of parameters, dropout and the order of clips: 0 to 2^32 - 1.
    """

    data: Data = Data()
    encoders: Any = field(default_factory=lambda: encoders_section("sequence"))
    distance: Any = field(default_factory=lambda: distance_section("euclidean"))
    objective: Any = field(default_factory=lambda: objective_section("sequence"))
    optimizer: Any = field(default_factory=lambda: settings_of("optimizer", make_optimizer))
    train: Train = Train()
    seed: int = 0

    def replace(self, **changes: Any) -> "Config":
        """A config with other values: `config.replace(train={"steps": 9_000}, seed=1)`.

        A section is given by the keys that change; one with another `name` starts from the
        defaults of what it names.

        Raises:
          InputError: an unknown key, or a value of another type.
        """
        return override(self, flatten(changes))


SECTIONS = tuple(f.name for f in dataclasses.fields(Config))


def as_dict(config: Config) -> dict[str, Any]:
    """The config as nested dicts, as `config.json` holds it."""
    return dataclasses.asdict(config)


def from_dict(document: Mapping[str, Any], where: str | Path) -> Config:
    """The config that a document describes; what else the document holds is left alone.

    Args:
      document: as `as_dict` made it.
      where: it is from, for messages.

    Raises:
      InputError: a key too many or too few: another version of scav_jax wrote it; or code of a
        user's that it names is not there.
    """
    values = flatten({section: document[section] for section in SECTIONS if section in document})
    try:
        config = override(Config(), values)
    except MissingCode as error:
        raise InputError(f"{where}: {error}") from None
    except InputError as error:
        raise InputError(f"{where}: written by another version of scav_jax ({error})") from None
    missing = sorted(flatten(as_dict(config)).keys() - values.keys())
    if missing:
        raise InputError(
            f"{where}: written by another version of scav_jax (expected a key {missing[0]!r}, it "
            "is missing)"
        )
    return config


def difference(expected: Mapping[str, Any], got: Mapping[str, Any]) -> str:
    """What differs between two documents, in words; "" when they are the same.

    >>> difference({"train": {"steps": 300}}, {"train": {"steps": 400}})
    'train.steps: expected 300, got 400'
    """
    old, new = (flatten(json.loads(json.dumps(document))) for document in (expected, got))
    keys = [key for key in sorted(old | new) if old.get(key, ...) != new.get(key, ...)]

    def shown(flat: dict, key: str) -> str:
        return repr(flat[key]) if key in flat else "no such key"

    return "; ".join(f"{key}: expected {shown(old, key)}, got {shown(new, key)}" for key in keys)


# ---- overrides -----------------------------------------------------------------------------


def override(config: Config, overrides: Mapping[str, Any]) -> Config:
    """A copy of a config with some values replaced.

    Args:
      config: to change.
      overrides: values by dotted key, as text (`{"train.steps": "100"}`, read as the type that the
        key has) or as they are (`{"train.steps": 100}`). "none" empties a key that may be empty.
        Names of towers, distance and objective come first, whatever the order.

    Raises:
      InputError: a key that the config does not have, a value of another type, or one out of range.
    """
    names = [f"{section}.name" for section in NAMED]
    for key in sorted(overrides, key=lambda key: key not in names):
        section, _, rest = key.partition(".")
        if section not in SECTIONS:
            _unknown(config, key, section, "the config", list(SECTIONS))
        if section == "seed":
            if key != section:
                raise InputError(f"config.{key}: seed is a value, it has no keys")
            new = _read(key, overrides[key], int)
        elif key in names:
            new, name = getattr(config, section), _read(key, overrides[key], str)
            new = new if new.name == name else NAMED[section](name)
        else:
            new = _with(getattr(config, section), section, rest, key, overrides[key], config)
        config = dataclasses.replace(config, **{section: new})
    return config


def _with(present: Any, section: str, rest: str, key: str, value: Any, config: Config) -> Any:
    """A section with another value."""
    kinds = {f.name: f.type for f in dataclasses.fields(present)}
    if not rest:
        first = next(iter(kinds))
        raise InputError(
            f"config.{key}: expected a key of this section, as in config.{section}.{first}; "
            f"it has {', '.join(kinds)}"
        )
    first, dot, _ = rest.partition(".")
    if dot and first in kinds:
        raise InputError(f"config.{key}: {section}.{first} is a value")
    if rest not in kinds:
        _unknown(config, key, rest, section, list(kinds))
    return dataclasses.replace(present, **{rest: _read(key, value, kinds[rest])})


def _unknown(config: Config, key: str, name: str, where: str, known: list[str]) -> None:
    """Raises the `InputError` for an unknown `name`, with the nearest known key."""
    everywhere = list(flatten(as_dict(config)))
    elsewhere = [known for known in everywhere if known.split(".")[-1] == key.split(".")[-1]]
    hint = (
        (f" Did you mean {elsewhere[0]!r}?" if elsewhere else "")
        or did_you_mean(name, known)
        or did_you_mean(key, everywhere)
    )
    raise InputError(f"config.{key}: unknown key.{hint} {where} has {', '.join(known)}")


WORDS = {bool: "true or false", int: "a whole number", float: "a finite number", str: "a word"}


def _read(key: str, value: Any, kind: Any) -> Any:
    """A value, or the text of one, as its key has it; `kind` is its annotation."""
    if isinstance(kind, types.UnionType):
        kinds = [one for one in typing.get_args(kind) if one is not types.NoneType]
        if value is None or (isinstance(value, str) and value.lower() == "none"):
            return None
        (kind,) = kinds
    if typing.get_origin(kind) is tuple:
        return _read_tuple(key, value, typing.get_args(kind)[0])
    text = value.strip() if isinstance(value, str) else None
    if kind is bool and (isinstance(value, bool) or (text and text.lower() in ("true", "false"))):
        return value if text is None else text.lower() == "true"
    if kind in READ and text is not None:
        with contextlib.suppress(ValueError):
            return READ[kind](text)
    if kind is float and type(value) in (int, float):
        with contextlib.suppress(OverflowError):  # of a whole number that no float holds
            if math.isfinite(float(value)):
                return float(value)
    fits = type(value) is not int or value.bit_length() < 1024  # so that ranges can be told
    if text is None and type(value) is kind and kind is not float and fits:
        return value
    if kind is str and text is not None:
        return text
    expected = WORDS.get(kind, getattr(kind, "__name__", str(kind)))
    raise InputError(f"config.{key}: expected {expected}, got {_shown(value)}")


def _shown(value: Any) -> str:
    try:
        return repr(value)
    except ValueError:  # Python writes no whole number of so many digits
        return "a number of thousands of digits"


def _read_tuple(key: str, value: Any, kind: Any) -> tuple:
    """As `_read`, of `tuple[kind, ...]`."""
    items = value
    if isinstance(value, str):
        with contextlib.suppress(SyntaxError, ValueError, TypeError, MemoryError, RecursionError):
            items = ast.literal_eval(value)
    if not isinstance(items, tuple | list):
        raise InputError(f"config.{key}: expected a tuple such as (1, 2), got {_shown(value)}")
    return tuple(_read(key, item, kind) for item in items)
