"""What the methods of an objective gave, which may be a stranger's: mistakes are told in a line.

All of it raises `InputError`; most is asked while the step is traced, before its first one.
"""

import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from scav_jax.base.errors import InputError
from scav_jax.objectives.objective import Metrics, Objective, Outputs, Views
from scav_jax.sequences import STREAMS, AudioVisual, Batch, Sequences

# What a line of the log has beside what `health` gives.
IN_THE_LOG = ("kind", "step", "loss", "gradient_norm", "weights_gradient_norm", "learning_rate")
IN_THE_LOG += ("skipped", "skipped_in_row", "examples_per_s", "input_share", "input_ms", "host_ms")


def expected(objective: Objective, words: str) -> InputError:
    """The error that says what was expected of an objective, and what came."""
    return InputError(f"objective {objective.name}: expected {words}")


def kind_of(leaf: Any) -> str:
    """`float32[3]`, or what else it is."""
    try:
        return f"{jnp.result_type(leaf)}{list(jnp.shape(leaf))}"
    except (TypeError, ValueError):
        return type(leaf).__name__


def is_numbers(leaf: Any) -> bool:
    """Whether it is an array, or becomes one."""
    return kind_of(leaf).endswith("]")


def _is_real(numbers: Any) -> bool:
    """Whether they are real, or booleans."""
    dtype = jnp.result_type(numbers)
    real = (jnp.floating, jnp.integer, jnp.bool_)
    return any(jnp.issubdtype(dtype, kind) for kind in real)


def returned(objective: Objective, method: str, found: Any, kind: type) -> Any:
    """What a method gave, unless it is of another kind."""
    if isinstance(found, kind):
        return found
    raise expected(objective, f"`{method}` to return {kind.__name__}, got a {type(found).__name__}")


def temperatures_of(objective: Objective) -> dict[str, float]:
    """Its learned temperatures at the start."""
    found = returned(objective, "temperatures", objective.temperatures(), dict)
    for name, value in found.items():
        good = isinstance(value, int | float) and math.isfinite(value) and value > 0
        if not (isinstance(name, str) and good):
            raise expected(
                objective,
                "`temperatures` to return numbers above 0 by names, got "
                f"{name!r:.40}: {value!r:.40}",
            )
    return found


def of_heads(objective: Objective, started: Mapping[str, PyTree]) -> PyTree:
    """The parameters of what `heads` returned, as it was started, unless it has none.

    Layers get theirs when `of_clips` first calls them.
    """
    if "params" not in started:
        raise expected(
            objective, "`of_clips` to use what `heads` returns, it does not; return None there"
        )
    _check_sizes(objective, "heads", started["params"])
    return started["params"]


def _check_sizes(objective: Objective, method: str, tree: PyTree) -> None:
    """What holds nothing is no checkpoint's."""
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        if 0 in jnp.shape(leaf):
            name = jax.tree_util.keystr(path)
            raise expected(
                objective,
                f"`{method}` to return arrays that are not empty, {name} is {kind_of(leaf)}",
            )


def memory_of(objective: Objective) -> PyTree:
    """Its memory at the start, as arrays."""
    found = objective.memory()
    for leaf in jax.tree.leaves(found):
        if not is_numbers(leaf) or not _is_real(leaf):
            raise expected(
                objective,
                "`memory` to return arrays of real numbers (of a key its `jax.random.key_data`), "
                f"got {kind_of(leaf)} in it",
            )
    _check_sizes(objective, "memory", found)
    return jax.tree.map(jnp.array, found)


def check_frozen(objective: Objective, params: PyTree) -> None:
    """Raises `InputError` where names of what is not trained are none, or nothing is trained."""
    frozen = objective.frozen
    if not (isinstance(frozen, tuple) and all(isinstance(name, str) for name in frozen)):
        raise expected(objective, f"`frozen` as a tuple of names, got {frozen!r:.40}")
    names = [
        jax.tree_util.keystr(path, simple=True, separator="/")
        for path, _ in jax.tree_util.tree_leaves_with_path(params)
    ]
    for begin in frozen:
        if not any(name.startswith(begin) for name in names):
            raise expected(
                objective, f"`frozen` to begin names of parameters, {begin!r} begins none"
            )
    if frozen and all(name.startswith(frozen) for name in names):
        raise expected(objective, f"`frozen` to leave something to train, got {frozen}")


def mixed_of(objective: Objective, found: Any, clips: int) -> Batch:
    """What `mixed` made of a batch of so many clips."""
    batch = returned(objective, "mixed", found, Batch)
    if len(batch.numbers) != clips:
        raise expected(
            objective,
            f"`mixed` to return {clips} clips, as many as it got, got {len(batch.numbers)}",
        )
    return batch


def views_of(objective: Objective, found: Any, batch: Batch) -> Views:
    """What `views` gave of a batch, which the same towers take as the batch."""
    views = returned(objective, "views", found, Views)
    features = views.features
    good = isinstance(features, dict) and features
    if good and all(isinstance(name, str) for name in features):
        if all(isinstance(view, AudioVisual) for view in features.values()):
            for name, view in features.items():
                _check_widths(objective, name, view, batch.features)
            return views
        features = {name: type(view).__name__ for name, view in features.items()}
    raise expected(
        objective,
        "`views` to return Views of a dictionary with an AudioVisual by each name, got "
        f"{features!r:.80}",
    )


def _check_widths(
    objective: Objective, name: str, view: AudioVisual, features: AudioVisual
) -> None:
    """Raises `InputError` for a view that the towers cannot take."""
    for stream, given, own in zip(STREAMS, view, features, strict=True):
        shape, width = jnp.shape(getattr(given, "values", given)), own.values.shape[-1]
        if not isinstance(given, Sequences) or len(shape) != 3 or shape[-1] != width:
            raise expected(
                objective,
                f"`views` to return Sequences with values [clips, steps, {width}], as wide as the "
                f"batch's, got {list(shape)} as {stream} of {name!r}",
            )


def outputs_of(objective: Objective, found: Any, clips: int) -> Outputs:
    """What `of_clips` gave of so many clips."""
    outputs = returned(objective, "of_clips", found, Outputs)
    for path, leaf in jax.tree_util.tree_leaves_with_path(outputs):
        where = f"`of_clips` to return Outputs with arrays [{clips}, ...], as many as clips"
        if not is_numbers(leaf) or jnp.shape(leaf)[:1] != (clips,):
            raise expected(objective, f"{where}, got {kind_of(leaf)} ({_name(path)})")
    for path, leaf in jax.tree_util.tree_leaves_with_path(outputs.values):
        if not jnp.issubdtype(jnp.result_type(leaf), jnp.floating):
            raise expected(
                objective,
                "`of_clips` to return Outputs with floating point in `values`, which a gradient "
                f"is of, and anything else in `about`, got {kind_of(leaf)} (values{_name(path)})",
            )
    return outputs


def _name(path: tuple) -> str:
    return jax.tree_util.keystr(path).lstrip(".")


def loss_of(objective: Objective, *given) -> tuple[Float[Array, ""], dict]:
    """`objective.loss`, a number and a dictionary."""
    found = objective.loss(*given)
    parts = found if isinstance(found, tuple) else (found,)
    if len(parts) == 2 and jnp.shape(parts[0]) == () and isinstance(parts[1], dict):
        dtype = jnp.result_type(parts[0])
        if not jnp.issubdtype(dtype, jnp.floating):
            raise expected(objective, f"a loss in floating point, got {dtype}")
        if strange := [key for key in parts[1] if not isinstance(key, str)]:
            raise expected(objective, f"`loss` to name what it tells `health`, got {strange[0]!r}")
        return found
    got = [f"an array {list(one.shape)}" if isinstance(one, jax.Array) else type(one).__name__
           for one in parts]  # fmt: skip
    raise expected(
        objective,
        f"`loss` to return a number and a dictionary for `health`, got {', '.join(got)}",
    )


def remembered(objective: Objective, memory: PyTree, outputs: Outputs) -> PyTree:
    """`objective.remember`, of the kind of the memory before."""
    found = objective.remember(memory, outputs)
    before, after = (jax.tree.map(kind_of, tree) for tree in (memory, found))
    if jax.tree.flatten(before) == jax.tree.flatten(after):
        return found
    raise expected(
        objective, f"`remember` to return a memory like the one it is given, {before}, got {after}"
    )


def health_of(objective: Objective, aux: dict) -> Metrics:
    """`objective.health`, numbers by names that the log does not have."""
    found = returned(objective, "health", objective.health(aux), dict)
    for name, value in found.items():
        if not isinstance(name, str) or name in IN_THE_LOG:
            raise expected(
                objective,
                "`health` to name its numbers otherwise than the log names its own "
                f"({', '.join(IN_THE_LOG)}), got {name!r:.40}",
            )
        if not is_numbers(value) or not _is_real(value) or jnp.shape(value) != ():
            raise expected(
                objective, f"`health` to return a number by each name, {name} is {kind_of(value)}"
            )
    return found


def score_of(objective: Objective, found: Mapping[str, float]) -> float:
    """`objective.score` of what validation found, a finite number."""
    score = objective.score(found)
    try:
        number = float(score)
    except (TypeError, ValueError):
        number = math.nan
    if math.isfinite(number):
        return number
    raise expected(objective, f"`score` to return a finite number, got {score!r:.40}")


def shown_of(objective: Objective, batch: Batch) -> AudioVisual:
    """`objective.shown` of a batch."""
    shown = returned(objective, "shown", objective.shown(batch), AudioVisual)
    for stream in shown:
        _check_clips(objective, "shown", stream.values, len(batch.numbers), "[{}, steps, width]")
    return shown


def kept_of(objective: Objective, found: Any, clips: int) -> tuple[Sequences, Float[Array, "B E"]]:
    """What `kept`, and `embed` behind it, made of one stream of so many clips."""
    good = isinstance(found, tuple) and len(found) == 2 and isinstance(found[0], Sequences)
    if not good:
        raise expected(
            objective, f"`kept` to return Sequences and embeddings, got {type(found).__name__}"
        )
    sequence, embeddings = found
    _check_clips(objective, "kept", sequence.values, clips, "[{}, steps, width]")
    _check_clips(objective, "embed", embeddings, clips, "[{}, width]")
    return found


def _check_clips(objective: Objective, method: str, found: Any, clips: int, shape: str) -> None:
    if is_numbers(found) and jnp.issubdtype(jnp.result_type(found), jnp.floating):
        got = jnp.shape(found)
        if len(got) == shape.count(",") + 1 and got[0] == clips and 0 not in got:
            return
    words = f"`{method}` to return floating point {shape.format(clips)}"
    raise expected(objective, f"{words}, as many as clips, got {kind_of(found)}")


def decided_by(objective: Objective, *given) -> dict[str, float]:
    """`objective.decide`: finite numbers for fields that it says are `decided`."""
    found = returned(objective, "decide", objective.decide(*given), dict)
    numbers = {}
    for name, value in found.items():
        numbers[name] = float(value) if is_numbers(value) and jnp.shape(value) == () else math.nan
        if name not in objective.decided or not math.isfinite(numbers[name]):
            raise expected(
                objective,
                f"`decide` to return finite numbers by names of `decided`, {objective.decided}, "
                f"got {name!r:.40}: {value!r:.40}",
            )
    return numbers
