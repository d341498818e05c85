"""Both towers of a model as functions, and as StableHLO without their parameters."""

import contextlib
from collections.abc import Callable, Iterator

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PyTree

from scav_jax.base.errors import InputError
from scav_jax.encoders import Towers
from scav_jax.retrieval.model import Model
from scav_jax.sequences import Sequences, whole_windows
from scav_jax.train_step import bound_heads
from scav_jax.training.runs import example_batch

PLATFORMS = ("cpu", "cuda", "tpu")


def tower_function(encoders: Towers, stream: str) -> Callable:
    """`(parameters of the tower, features [b, n, D], lengths [b]) -> latents [b, n, C]`.

    Features come as `Encoders.read` gives them: where the model resamples before its towers, the
    resampled stream at the steps of the other one.
    """
    tower = encoders.tower(stream)

    def latents(
        params: PyTree, features: Float[Array, "b n D"], lengths: Int[Array, " b"]
    ) -> Float[Array, "b n C"]:
        windows = jnp.zeros((*lengths.shape, 2), features.dtype)  # the towers do not read them
        padded = Sequences(values=features, lengths=lengths, windows=windows)
        return tower.apply({"params": params}, padded).values

    return latents


def serialized_tower(model: Model, stream: str) -> bytes:
    """A tower as `jax.export` serializes it: `jax.export.deserialize(...).call(...)` runs it.

    Raises:
      InputError: the library that JAX needs for that is missing.
    """
    params = model.run.params["encoders"][stream]
    tower = tower_function(model.run.encoders, stream)
    return _serialized(tower, params, width_read(model, stream))


def width_read(model: Model, stream: str) -> int:
    """How wide the features are that a tower takes."""
    stored = example_batch(model.run.config["features"]["widths"]).features
    read = jax.eval_shape(model.run.encoders.read, stored)
    return getattr(read, stream).values.shape[-1]


def serialized_kept(model: Model, stream: str) -> bytes:
    """What is kept of a stream, from its latents and its features, as a tower.

    `(parameters of the heads, latents [b, n, C], lengths [b], features [b, k, D], lengths [b],
    windows [b, 2]) -> (sequences [b, m, S], their lengths [b], embeddings [b, E])`, where features
    are those that are stored. Written where the objective keeps something else than latents and
    their mean.
    """
    run = model.run

    def kept(params: PyTree, latents: Array, lengths: Array, *features: Array):
        heads = bound_heads(run.encoders, run.objective, {"heads": params})
        whole = Sequences(latents, lengths, whole_windows(lengths))
        found, embeddings = run.objective.kept(heads, stream, whole, Sequences(*features))
        return found.values, found.lengths, embeddings

    width = model.run.config["features"]["widths"][stream]
    return _serialized(kept, run.params.get("heads", {}), run.encoders.width, width)


def _serialized(function: Callable, params: PyTree, width: int, of_features: int = 0) -> bytes:
    from jax import export as jax_export

    names = ["b", "n", *(["k"] if of_features else [])]
    constraints = [f"{name} >= 1" for name in names]
    batch, steps, *stored = jax_export.symbolic_shape(", ".join(names), constraints=constraints)
    shapes = [
        jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), params),
        jax.ShapeDtypeStruct((batch, steps, width), jnp.float32),
        jax.ShapeDtypeStruct((batch,), jnp.int32),
    ]
    if of_features:
        shapes += [
            jax.ShapeDtypeStruct((batch, *stored, of_features), jnp.float32),
            jax.ShapeDtypeStruct((batch,), jnp.int32),
            jax.ShapeDtypeStruct((batch, 2), jnp.float32),
        ]
    with _without_source_lines():
        exported = jax_export.export(jax.jit(function), platforms=PLATFORMS)(*shapes)
    try:
        return bytes(exported.serialize())
    except ImportError as error:
        raise InputError(f"export: expected the library flatbuffers, got none ({error})") from None


@contextlib.contextmanager
def _without_source_lines() -> Iterator[None]:
    """What is traced here does not say from which file of this machine it comes."""
    name = "jax_traceback_in_locations_limit"
    before = getattr(jax.config, name)
    jax.config.update(name, 0)
    try:
        yield
    finally:
        jax.config.update(name, before)
