"""What does not change over a clip, beside what does: the static parts of distances.

`NAME+static` compares sequences `[T, C + S]` whose last S channels are constant over time, as the
objective "separate" keeps them, by any distance of the rest and their own:

    D(v, a) = D_NAME(v[:, :C], a[:, :C]) + static_weight |v[0, C:] - a[0, C:]|^2 / C
"""

import inspect
from collections.abc import Callable, Iterable, Mapping
from functools import wraps

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from scav_jax.base.errors import InputError
from scav_jax.distances.centre import typical
from scav_jax.distances.narrow import in_float32, widened
from scav_jax.sequences import Sequences

SUFFIX = "+static"
OPTIONS = {"static_width": 0, "static_weight": 1.0}


def pair_with(pair: Callable) -> Callable:
    """The definition of `NAME+static`, of that of NAME; its options are theirs and `OPTIONS`."""

    @in_float32
    @wraps(pair)
    def with_static(visual, audio, *, static_width=0, static_weight=1.0, **options):
        of_visual, of_audio = (_dynamic(stream, static_width) for stream in (visual, audio))
        apart = _static(visual, static_width) - _static(audio, static_width)
        static = jnp.sum(apart**2) / of_visual.values.shape[-1]
        return pair(of_visual, of_audio, **options) + static_weight * static

    with_static.__signature__ = _with_options(pair)  # type: ignore[attr-defined]
    return with_static


def matrix_with(matrix: Callable) -> Callable:
    """All pairs of `NAME+static`, of all pairs of NAME."""

    def with_static(visual, audio, *, static_width=0, static_weight=1.0, **options):
        of_visual, of_audio = (_dynamic(stream, static_width) for stream in (visual, audio))
        distances, aux = matrix(of_visual, of_audio, **options)
        static = squared_distances(_static(visual, static_width), _static(audio, static_width))
        static = static_weight * static / of_visual.values.shape[-1]
        return distances.astype(static.dtype) + static, aux

    return with_static


def alignment_with(alignment: Callable) -> Callable:
    """Which steps `NAME+static` compares: those of NAME."""

    def with_static(visual, audio, *, static_width=0, static_weight=1.0, **options):
        return alignment(_dynamic(visual, static_width), _dynamic(audio, static_width), **options)

    return with_static


def check_with(check: Callable[..., object] | None) -> Callable[..., None]:
    """The check of the options of `NAME+static`, of that of NAME."""

    def with_static(*, static_width=0, static_weight=1.0, **options):
        if static_width < 0:
            raise InputError(f"distance.static_width: expected at least 0, got {static_width}")
        if not 0 <= static_weight < float("inf"):
            raise InputError(f"distance.static_weight: expected 0 or more, got {static_weight}")
        if check and options:
            check(**options)

    return with_static


def squared_distances(
    visual: Float[Array, "Q S"], audio: Float[Array, "K S"]
) -> Float[Array, "Q K"]:
    """`|v - a|^2` of all pairs, at least 0; what all have in common cancels in no product."""
    centre = typical(audio)[None]
    visual, audio = visual - centre, audio - centre
    squares = [jnp.sum(one * one, axis=-1) for one in (visual, audio)]
    inner = jnp.matmul(visual, audio.T, precision=jax.lax.Precision.HIGHEST)
    return jnp.maximum(squares[0][:, None] + squares[1][None] - 2.0 * inner, 0.0)


def dynamic_part(
    name: str, options: Mapping, streams: Iterable[Sequences]
) -> tuple[str, dict, list[Sequences]]:
    """What a distance compares besides what does not change: its name, options and sequences.

    Args:
      name, options: of a distance, with a static part beside it or not.
      streams: sequences `[..., T, C + S]`, or `[..., T, C]`.
    """
    rest = {key: value for key, value in options.items() if key not in OPTIONS}
    width = options.get("static_width", 0)
    return name.removesuffix(SUFFIX), rest, [_dynamic(stream, width) for stream in streams]


def _dynamic(stream: Sequences, width: int) -> Sequences:
    channels = stream.values.shape[-1]
    if not 0 <= width < channels:
        raise InputError(
            f"distance.static_width: expected 0 to {channels - 1}, of {channels} channels, got "
            f"{width}"
        )
    return stream.replace(values=stream.values[..., : channels - width])


def _static(stream: Sequences, width: int) -> Float[Array, "*batch S"]:
    """Of 16 bits in float32, or nothing would be left of near vectors' difference."""
    values = widened(stream).values
    return values[..., 0, values.shape[-1] - width :]


def _with_options(pair: Callable) -> inspect.Signature:
    own = list(inspect.signature(pair).parameters.values())
    keyword = inspect.Parameter.KEYWORD_ONLY
    more = [
        inspect.Parameter(name, keyword, default=default, annotation=type(default))
        for name, default in OPTIONS.items()
    ]
    return inspect.Signature([*own, *more])
