"""Views: parts of a clip played at another speed or backwards, made of its stored features.

A view reads whole steps of a stored sequence: `E(x)[I]`, which for features that see one moment
only is `E(x[I])`, exactly. Nothing is interpolated and no step is read twice, since both would
tell the speed. Stacked log-mel is unstacked, played frame by frame and stacked again: a stride of
2^k frames is a hop of 2^k x 10 ms, what extraction of the changed sound would have given.

Beside its tokens a view has the second at which each was read. That is all that is known of it:
speed, direction and order are derived from times and spans and stored nowhere.

Functions are of one clip, for `vmap`. Time is in seconds from the clip's start.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from scav_jax.sequences import AudioVisual, Sequences, whole_windows

FORWARD, BACKWARD = 0, 1
ORDERED, OVERLAPPING, REVERSED = 0, 1, 2
ORDERS = 3
MIN_OVERLAP = 0.5  # of the shorter span, in common at least where two overlap
TOLERANCE_S = 1e-4  # spans come in float32
SNAPPED = 1e-3  # steps: paces and places that differ by less are the same


class Excerpt(NamedTuple):
    """A part of a clip, and how it is played.

    Attributes:
      span: (begin, end) in seconds.
      speed: k, played 2^k times as fast.
      direction: `FORWARD` or `BACKWARD`.
    """

    span: Float[Array, "2"]
    speed: Int[Array, ""]
    direction: Int[Array, ""]


class View(NamedTuple):
    """An excerpt as the towers see it, and when each of its tokens was read."""

    sequence: Sequences
    times: Float[Array, " tokens"]


# ---- which excerpts -------------------------------------------------------------------------


def covered(clip: AudioVisual, seconds: Float[Array, "2"]) -> Float[Array, "2"]:
    """(begin, end) of what both streams have steps for, inside `seconds`, which windows cover.

    A step is kept where its centre is shared, so a window may reach half a step beyond the steps.
    """
    begins, ends = zip(*(_covered_by(stream, seconds) for stream in clip), strict=True)
    return jnp.stack([jnp.maximum(*begins), jnp.minimum(*ends)])


def _covered_by(stream: Sequences, seconds: Float[Array, "2"]) -> tuple[Array, Array]:
    step_s = (seconds[1] - seconds[0]) / stream.windows[1]
    first = seconds[0] - stream.windows[0] * step_s
    last = first + stream.lengths.astype(jnp.float32) * step_s
    return jnp.maximum(seconds[0], first), jnp.minimum(seconds[1], last)


def possible_speeds(
    duration: Float[Array, ""], window_s: float, speeds: int
) -> Bool[Array, "speeds speeds"]:
    """Which pairs of speeds have spans that fit into a clip side by side."""
    lengths = _lengths(window_s, speeds)
    return lengths[:, None] + lengths[None] <= duration + TOLERANCE_S


def speed_prior(
    duration: Float[Array, ""], window_s: float, speeds: int
) -> Float[Array, " speeds"]:
    """How probable each speed is in an excerpt of `draw_pair`; zeros where no pair fits."""
    possible = possible_speeds(duration, window_s, speeds).astype(jnp.float32)
    return jnp.sum(possible, axis=1) / jnp.maximum(jnp.sum(possible), 1.0)


def _lengths(window_s: float, speeds: int) -> Float[Array, " speeds"]:
    return window_s * 2.0 ** jnp.arange(speeds, dtype=jnp.float32)


def draw_pair(
    key: Array, seconds: Float[Array, "2"], window_s: float, speeds: int
) -> tuple[Excerpt, Excerpt, Bool[Array, ""]]:
    """Two excerpts of a clip of which order, speeds and directions are independent.

    The order is drawn first, uniformly. The pair of speeds is uniform over the pairs whose spans
    fit side by side, whatever the order: spans that overlap could be longer, and then speeds would
    tell the order. Begins are uniform over what is possible then.

    Args:
      key: the clip's.
      seconds: of `covered`.
      window_s: length of a span at normal speed.
      speeds: how many; the last is 2^(speeds - 1) times.

    Returns:
      Both excerpts, and whether any pair fits; where none does, they are no views of the clip.
    """
    keys = jax.random.split(key, 5)
    begin, duration = seconds[0], seconds[1] - seconds[0]
    possible = possible_speeds(duration, window_s, speeds)
    fits = possible[0, 0]
    logits = jnp.where(possible | ~fits, 0.0, -jnp.inf).reshape(-1)
    pair = jnp.stack(jnp.divmod(jax.random.categorical(keys[0], logits), speeds)).astype(jnp.int32)
    lengths = _lengths(window_s, speeds)[pair]
    order = jax.random.randint(keys[1], (), 0, ORDERS)
    begins = jnp.where(
        order == OVERLAPPING,
        _overlapping(keys[2], lengths, duration),
        _side_by_side(keys[3], lengths, duration, order),
    )
    directions = jax.random.randint(keys[4], (2,), 0, 2)
    first, second = (
        Excerpt(begin + begins[i] + jnp.stack([jnp.zeros(()), lengths[i]]), pair[i], directions[i])
        for i in (0, 1)
    )
    return first, second, fits


def _side_by_side(key, lengths: Float[Array, "2"], duration, order) -> Float[Array, "2"]:
    """Begins of two spans of which the first comes first (`ORDERED`), or last."""
    slack = jnp.maximum(duration - jnp.sum(lengths), 0.0)
    low, high = jnp.sort(jax.random.uniform(key, (2,))) * slack
    return jnp.where(
        order == ORDERED,
        jnp.stack([low, high + lengths[0]]),
        jnp.stack([high + lengths[1], low]),
    )


def _overlapping(key, lengths: Float[Array, "2"], duration) -> Float[Array, "2"]:
    """Begins of two spans that have `MIN_OVERLAP` of the shorter one in common, or more."""
    draw = jax.random.uniform(key, (2,))
    shared = MIN_OVERLAP * jnp.min(lengths)
    first = draw[0] * jnp.maximum(duration - lengths[0], 0.0)
    least = jnp.maximum(first + shared - lengths[1], 0.0)
    most = jnp.minimum(first + lengths[0] - shared, duration - lengths[1])
    return jnp.stack([first, least + draw[1] * jnp.maximum(most - least, 0.0)])


# ---- what is read ---------------------------------------------------------------------------


def play(
    source: Sequences, seconds: Float[Array, "2"], excerpt: Excerpt, tokens: int, frames: int = 1
) -> View:
    """An excerpt of one stream in `tokens` tokens, in the order in which it is played.

    Token j stands for the j-th of equal parts of the span and reads the step that the part's
    centre lies in. A part must be as long as a step or longer.

    Args:
      source: `[T, D]`; its window is what `seconds` covers. Padding is not read.
      seconds: (begin, end) of the window.
      excerpt: which part, and how.
      tokens: n.
      frames: that are stacked in a step, each of which is read by itself; 1 reads whole steps.

    Returns:
      The view, `[n, D]`; the time of a token is the mean of its frames'.
    """
    apart = unstacked(source, frames)
    count = tokens * frames
    rate = apart.windows[1] / (seconds[1] - seconds[0])  # steps a second
    pace = (excerpt.span[1] - excerpt.span[0]) / count * rate
    # Equal distances at a whole pace, however the pace was rounded.
    pace = jnp.where(jnp.abs(pace - jnp.round(pace)) < SNAPPED, jnp.round(pace), pace)
    start = apart.windows[0] + (excerpt.span[0] - seconds[0]) * rate + 0.5 * pace + SNAPPED
    order = jnp.arange(count, dtype=jnp.float32)
    order = jnp.where(excerpt.direction == BACKWARD, count - 1 - order, order)
    index = jnp.floor(start) + jnp.floor(start - jnp.floor(start) + order * pace)
    index = jnp.clip(index.astype(jnp.int32), 0, apart.lengths - 1)
    times = seconds[0] + (index.astype(jnp.float32) + 0.5 - apart.windows[0]) / rate
    length = jnp.asarray(tokens, jnp.int32)
    values = apart.values[index].reshape(tokens, -1)
    times = jnp.mean(times.reshape(tokens, frames), axis=1)
    return View(Sequences(values, length, whole_windows(length)), times)


def at_rate(
    source: Sequences, seconds: Float[Array, "2"], token_s: float, frames: int = 1
) -> Sequences:
    """The whole of one stream at the rate that views have at normal speed.

    That is what a model of views is shown when it is used: more steps a second would look like slow
    motion. The result is padded to as many steps as the source.

    Args:
      source, seconds, frames: as for `play`.
      token_s: seconds a token.
    """
    tokens = source.values.shape[0]
    begin, end = _covered_by(source, seconds)
    count = (end - begin) / token_s
    span = jnp.stack([begin, begin + token_s * tokens])
    whole = Excerpt(span, jnp.zeros((), jnp.int32), jnp.asarray(FORWARD))
    length = jnp.clip(jnp.floor(count + SNAPPED).astype(jnp.int32), 1, tokens)
    windows = jnp.stack([seconds[0] - begin, seconds[1] - seconds[0]]) / token_s
    played = play(source, seconds, whole, tokens, frames).sequence
    return played.replace(lengths=length, windows=windows)


def unstacked(source: Sequences, frames: int) -> Sequences:
    """`[T, frames F] -> [T frames, F]`: the frames that lie side by side in each step."""
    if frames == 1:
        return source
    values = source.values.reshape(-1, source.values.shape[-1] // frames)
    return Sequences(values, source.lengths * frames, source.windows * frames)


# ---- controls: what is left where time is taken away ----------------------------------------


def still(source: Sequences, frames: int = 1) -> Sequences:
    """One moment of a stream for all of it: the middle step, or frame."""
    apart = unstacked(source, frames)
    values = jnp.broadcast_to(apart.values[apart.lengths // 2][None], apart.values.shape)
    return source.replace(values=values.reshape(source.values.shape))


def shuffled(key: Array, source: Sequences, frames: int = 1) -> Sequences:
    """The steps (frames) of a view in an order of chance; all of them must be real."""
    apart = unstacked(source, frames)
    order = jax.random.permutation(key, apart.values.shape[0])
    return source.replace(values=apart.values[order].reshape(source.values.shape))


# ---- what is true of a view -----------------------------------------------------------------


def speed_of(times: Float[Array, " tokens"], token_s: float) -> Float[Array, ""]:
    """k, from how many seconds of the clip pass in a token that is `token_s` at normal speed."""
    passed = jnp.abs(times[-1] - times[0]) / (times.shape[0] - 1)
    return jnp.log2(passed / token_s)


def direction_of(times: Float[Array, " tokens"]) -> Int[Array, ""]:
    """`FORWARD` or `BACKWARD`."""
    return jnp.where(times[-1] < times[0], BACKWARD, FORWARD)


def order_of(first: Float[Array, "2"], second: Float[Array, "2"]) -> Int[Array, ""]:
    """`ORDERED` where the first span ends before the second begins, or as it begins.

    `REVERSED` is the same the other way round; whatever is left is `OVERLAPPING`. Of the clip's own
    time, whichever way the spans are played.
    """
    before, after = first[1] <= second[0] + TOLERANCE_S, second[1] <= first[0] + TOLERANCE_S
    return jnp.where(before, ORDERED, jnp.where(after, REVERSED, OVERLAPPING))
