"""Where the time goes: a trace of some steps, and a table by part at the end of a run.

`config.train.profile = "100:110"` writes a trace of the steps 100 to 109 into `WORKDIR/profile`
(`jax.profiler`; xprof, TensorBoard and Perfetto read it) and times the parts of a step once, each
as a program of its own. Fused, a step can take less than their sum.
"""

import re
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax

from scav_jax.base.errors import InputError
from scav_jax.encoders import Towers
from scav_jax.objectives import Objective, Place
from scav_jax.sequences import Batch
from scav_jax.train_step import TrainState, of_clips, per_clip

FOLDER = "profile"
REPEATS = 3
NAMES = {
    "input": "waiting for input",
    "step": "steps",
    "checkpoint": "checkpoints",
    "validation": "validation",
}


def steps_of(profile: str, steps: int) -> range | None:
    """`"100:110"` -> the steps 100 to 109; "" -> None.

    Raises:
      InputError: not `start:stop` with 1 <= start < stop <= steps + 1.

    >>> steps_of("3:5", 10)
    range(3, 5)
    """
    if not profile:
        return None
    match = re.fullmatch(r"([0-9]{1,18}):([0-9]{1,18})", profile)
    if not match or not 1 <= int(match[1]) < int(match[2]) <= steps + 1:
        raise InputError(
            f"train.profile: expected start:stop with 1 <= start < stop <= {steps + 1}, such as "
            f"10:15, got {profile!r}"
        )
    return range(int(match[1]), int(match[2]))


class Trace:
    """Writes a trace of some steps; a context, so that an error closes it too.

    with Trace(workdir, steps_of(profile, steps)) as trace:
        for step in ...:
            trace.before(step)
            state, metrics = step_function(state, batch)
            trace.after(step, metrics)
    """

    def __init__(self, workdir: Path, steps: range | None):
        self._folder, self._steps, self._running = workdir / FOLDER, steps or range(0), False

    def __enter__(self) -> "Trace":
        return self

    def __exit__(self, *_) -> None:
        if self._running:
            self._running = False
            jax.profiler.stop_trace()

    def before(self, step: int) -> None:
        """Starts the trace, if it is time."""
        if not self._running and step in self._steps:
            jax.profiler.start_trace(str(self._folder))
            self._running = True

    def after(self, step: int, metrics) -> None:
        """Ends it once the last step's metrics are there."""
        if self._running and step + 1 not in self._steps:
            jax.block_until_ready(metrics)
            self.__exit__()


def parts_of_step(
    encoders: Towers,
    objective: Objective,
    optimizer: optax.GradientTransformation,
    state: TrainState,
    batch: Batch,
    *,
    memory_bytes: int,
    microbatch: int = 0,
) -> dict[str, float]:
    """Seconds of each part of a step on this batch, each compiled and timed by itself.

    Backward is the time of forward and backward together, less that of forward. With gradient
    caching the towers are timed on one microbatch and multiplied.

    Returns:
      "towers, forward", "towers, backward" (views and heads included), "loss" (distances and
      gradients included) and "optimizer"; without caching's second forward pass.
    """
    size = len(batch.numbers)
    part = microbatch or size
    some = jax.tree.map(lambda x: x[:part], batch)
    encode = partial(of_clips, encoders, objective, batch=some, rows=None, key=jax.random.key(0))
    params = per_clip(state.params)

    def pulled(params):
        values, back = jax.vjp(lambda p: encode(params=p).values, params)
        return back(values)

    def loss(log_temperature, values):
        found = outputs._replace(values=values)
        return objective.loss(log_temperature, found, state.memory, Place(memory_bytes))[0]

    def update(gradients, opt_state, params):
        with jax.numpy_dtype_promotion("standard"):  # as in `train_step`
            updates, opt_state = optimizer.update(gradients, opt_state, params)
        return optax.apply_updates(params, updates), opt_state

    outputs = jax.jit(lambda params: encode(params=params))(params)
    # Every clip's outputs are of one shape: those of one part stand for all.
    outputs = jax.tree.map(lambda x: jnp.concatenate([x] * (size // part)), outputs)
    scale = size / part
    forward = scale * _seconds(lambda params: encode(params=params), params)
    both = scale * _seconds(pulled, params)
    temperatures = state.params.get("log_temperature", {})
    return {
        "towers, forward": forward,
        "towers, backward": max(both - forward, 0.0),
        "loss": _seconds(jax.value_and_grad(loss, (0, 1)), temperatures, outputs.values),
        "optimizer": _seconds(update, state.params, state.opt_state, state.params),
    }


def _seconds(function: Callable, *arguments) -> float:
    """The median time of a compiled function."""
    compiled = jax.jit(function).lower(*arguments).compile()
    jax.block_until_ready(compiled(*arguments))
    times = []
    for _ in range(REPEATS):
        begin = time.perf_counter()
        jax.block_until_ready(compiled(*arguments))
        times.append(time.perf_counter() - begin)
    return float(np.median(times))


def table(totals: Mapping[str, float], steps: int, parts: Mapping[str, float] | None = None) -> str:
    """The run's time by part, largest first; then the parts of a step where they were timed.

    Args:
      totals: seconds by part, as `records.Meter.totals`.
      steps: how many there were.
      parts: of one step, as `parts_of_step`.
    """
    whole = sum(totals.values()) or 1.0
    lines = [f"{'time by part':<28}{'seconds':>10}{'share':>8}"]
    for name, seconds in sorted(totals.items(), key=lambda item: -item[1]):
        lines.append(f"{NAMES.get(name, name):<28}{seconds:>10.1f}{seconds / whole:>8.1%}")
    per_step = 1e3 * totals.get("step", 0.0) / max(steps - 1, 1)  # the first one is compilation
    lines.append(f"{'a step':<28}{per_step:>7.1f} ms")
    if parts:
        in_all = sum(parts.values()) or 1.0
        for name, seconds in parts.items():
            lines.append(f"  {name:<26}{1e3 * seconds:>7.1f} ms{seconds / in_all:>8.1%}")
        lines.append(f"  {'each timed alone, together':<26}{1e3 * in_all:>7.1f} ms")
    if (used := memory_in_use()) is not None:
        lines.append(f"{'memory in use, at most':<28}{used / 2**30:>7.2f} GiB on a device")
    return "\n".join(lines)


def memory_in_use() -> int | None:
    """Bytes that this process has held at most on one of its devices; None where none says."""
    known = [device.memory_stats() or {} for device in jax.local_devices()]
    peaks = [one["peak_bytes_in_use"] for one in known if "peak_bytes_in_use" in one]
    return max(peaks, default=None)
