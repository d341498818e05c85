"""What a side says of itself and what it gives, held against `sides`: it may be a stranger's.

What can be wrong before the work is said before it.
"""

import inspect
import json
import math
import pickle
from collections.abc import Callable, Mapping, Sequence
from numbers import Integral
from typing import Any

import numpy as np

from scav_jax.base.errors import InputError, in_a_line
from scav_jax.extract.backbones.sides import Audio, Side, Visual
from scav_jax.features.clip import PIXELS_DTYPE, STORED_DTYPE

SEE = "see scav_jax/extract/backbones/sides.py"
OURS = ("name", "options", "has_weights")  # keys of a side's fingerprint that we set


def _is_whole(value: object) -> bool:
    return isinstance(value, Integral) and not isinstance(value, bool) and int(value) >= 1


def _is_positive(value: object) -> bool:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return number and math.isfinite(value) and value > 0


def _is_size(value: object) -> bool:
    pair = isinstance(value, tuple | list) and len(value) == 2
    return value is None or (pair and all(map(_is_whole, value)))


def _is_stored(value: object) -> bool:
    try:
        return np.dtype(value) in (STORED_DTYPE, PIXELS_DTYPE) and value is not None
    except TypeError:
        return False


WHOLE, POSITIVE = "a whole number, 1 or more", "a finite number of Python, more than 0"
# Attribute -> (what it is in words, whether a value is that); the last two are of one kind each.
ATTRIBUTES: dict[str, tuple[str, Callable[[object], bool]]] = {
    "width": (WHOLE, _is_whole),
    "steps": (f"None or {WHOLE}", lambda value: value is None or _is_whole(value)),
    "dtype": ("np.float16, or np.uint8 for pixels as they are", _is_stored),
    "max_seconds": (POSITIVE, _is_positive),
    "clips_at_once": (WHOLE, _is_whole),
    "frame_size": ("None or (width, height), whole numbers of pixels", _is_size),
    "step_s": (POSITIVE, _is_positive),
}
OF_ONE_KIND = {"frame_size": Visual, "step_s": Audio}
MISSING = object()


def check_side(where: str, side: Side, kind: type[Side]) -> None:
    """Raises `InputError` for a side that does not say what it has to, or is called otherwise.

    Args:
      where: the option and the name, as "--visual my_package.dino:Dino".
      side: as it was made.
      kind: `Visual` or `Audio`.
    """
    for name, (words, is_that) in ATTRIBUTES.items():
        if not issubclass(kind, OF_ONE_KIND.get(name, kind)):
            continue
        value = getattr(side, name, MISSING)
        if value is MISSING:
            raise InputError(f"{where}: expected a side with `{name}`, it has none ({SEE})")
        if not is_that(value):
            raise InputError(f"{where}: expected `{name}` to be {words}, got {value!r:.80}")
    half = side.preparer
    if not isinstance(half, kind):
        raise InputError(
            f"{where}: expected `preparer` to be a {kind.__name__}, got a {type(half).__name__}"
        )
    _check_called(where, side, "fingerprint", [])
    if side.encode is not None:
        _check_called(where, side, "encode", ["clips"])
    methods = {"prepare": ["frames", "previous"], "shrink": ["frame"], "alike": ["frames"]}
    for method, given in (methods if kind is Visual else {"prepare": ["waveform"]}).items():
        _check_called(where, half, method, given)


def _check_called(where: str, side: Side, method: str, given: list[str]) -> None:
    wanted = f"{where}: expected a method {method}({', '.join(given)})"
    own = getattr(side, method, None)
    if not callable(own):
        raise InputError(f"{wanted}, got {own!r:.80}")
    try:
        inspect.signature(own).bind(*given)
    except TypeError as error:
        raise InputError(f"{wanted}, its own is called otherwise: {error}") from None
    except ValueError:  # of another language: it does not say
        pass


def check_sendable(where: str, side: Side) -> None:
    """Raises `InputError` for a worker's half that cannot be sent to worker processes."""
    try:
        pickle.dumps(side.preparer)
    except Exception as error:
        raise InputError(
            f"{where}: expected a side, or a `preparer`, that can be sent to worker processes "
            f"({SEE}): {in_a_line(error)}"
        ) from None


def told_by(name: str, side: Side) -> dict[str, Any]:
    """A side's own fingerprint: a dictionary of JSON types, the same whenever it is asked for."""
    where = f"backbone {name}: expected"
    own = side.fingerprint()
    if not isinstance(own, dict):
        raise InputError(
            f"{where} fingerprint() to return a dictionary, got a {type(own).__name__}"
        )
    if ":" not in name:
        return own
    if taken := [key for key in OURS if key in own]:
        raise InputError(
            f"{where} fingerprint() without {taken[0]!r}, which is set beside what it returns; "
            "call it otherwise"
        )
    if as_json(name, own) != as_json(name, side.fingerprint()):
        raise InputError(
            f"{where} fingerprint() to return the same whenever it is called, it does not: it is "
            "how features are recognised"
        )
    return own


def as_json(name: str, fingerprint: Mapping[str, Any]) -> dict:
    """A fingerprint as it comes back from its file."""
    try:
        return json.loads(json.dumps(fingerprint, allow_nan=False))
    except (TypeError, ValueError, RecursionError) as error:
        raise InputError(
            f"backbone {name}: expected a fingerprint of JSON types and finite numbers: {error}"
        ) from None


def an_array(side: Side, method: str, value: object) -> np.ndarray:
    """What a method gave; `InputError` where it is no array."""
    if isinstance(value, np.ndarray) and not isinstance(value, np.ma.MaskedArray):
        return value
    raise InputError(
        f"{type(side).__name__}.{method}: expected to get an array of NumPy back, got a "
        f"{type(value).__name__}"
    )


def a_picture(side: Visual, value: object) -> np.ndarray:
    """What `shrink` left of a frame."""
    picture = an_array(side, "shrink", value)
    if picture.ndim < 2:
        raise InputError(
            f"{type(side).__name__}.shrink: expected a picture [h, w, 3] back, got an array of "
            f"shape {list(picture.shape)}"
        )
    return picture


def check_rows(side: Visual, rows: np.ndarray, frames: int, method: str = "prepare") -> None:
    """Raises `InputError` for more or fewer rows than frames: their times would be wrong."""
    expected = side.steps or frames
    if len(rows) != expected and getattr(side, "width", None) != 0:
        raise InputError(
            f"{type(side).__name__}.{method}: expected a row for each frame (or as many as its "
            f"`steps` says), {expected}, got {len(rows)}"
        )


def features_of(side: Side, prepared: list[np.ndarray]) -> list[np.ndarray]:
    """The features of each clip, encoded where the side encodes."""
    if side.encode is None:
        for one in prepared:
            _check_features(side, "prepare", one)
        return prepared
    features = side.encode(prepared)
    if not isinstance(features, Sequence | np.ndarray):
        raise InputError(
            f"{type(side).__name__}.encode: expected a list of each clip's features, got a "
            f"{type(features).__name__}"
        )
    if len(features) != len(prepared):
        raise InputError(
            f"{type(side).__name__}.encode: expected features of each of {len(prepared)} clips, "
            f"got {len(features)}"
        )
    for one, given in zip(features, prepared, strict=True):
        _check_features(side, "encode", an_array(side, "encode", one))
        if isinstance(side, Visual):
            check_rows(side, one, len(given), "encode")
    return list(features)


def _check_features(side: Side, method: str, one: np.ndarray) -> None:
    """Raises `InputError` for features of another shape or kind than the side says."""
    where = f"{type(side).__name__}.{method}"
    if one.ndim != 2 or one.shape[1] != side.width:
        raise InputError(
            f"{where}: expected features [steps, {side.width}] of a clip, as its `width` says, "
            f"got an array of shape {list(one.shape)}"
        )
    if not np.can_cast(one.dtype, np.float32, "same_kind"):
        raise InputError(f"{where}: expected features that are real numbers, got {one.dtype}")
    stored = np.dtype(side.dtype)
    if (one.dtype == PIXELS_DTYPE) != (stored == PIXELS_DTYPE):
        advice = f"return them as float32, or set `dtype` to np.{PIXELS_DTYPE.__name__} for pixels"
        raise InputError(
            f"{where}: expected features for a `dtype` of {stored}, got {one.dtype}; "
            + (advice if one.dtype == PIXELS_DTYPE else f"return {stored}, or leave `dtype` out")
        )
