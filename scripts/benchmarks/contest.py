"""What all benchmarks share: one thread, contestants that take turns, tables, bars.

Import it before jax: importing it limits the threads of every library to one, unless the command
line says `--threads all`.
"""

import argparse
import json
import os
import sys


def _limit_threads() -> None:
    if "all" in sys.argv or "--threads=all" in sys.argv:
        return
    for name in ("OMP", "OPENBLAS", "MKL", "NUMEXPR", "NUMBA", "VECLIB"):
        os.environ[f"{name}_NUM_THREADS"] = "1"
    flags = os.environ.get("XLA_FLAGS", "")
    os.environ["XLA_FLAGS"] = f"{flags} --xla_cpu_multi_thread_eigen=false".strip()
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})


_limit_threads()

import resource  # noqa: E402
import time  # noqa: E402
from collections.abc import Callable  # noqa: E402
from dataclasses import dataclass, field  # noqa: E402

import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
import numpy as np  # noqa: E402

from scav_jax.objectives import sequence_loss  # noqa: E402
from scav_jax.sequences import sequences  # noqa: E402

HIGHEST = jax.lax.Precision.HIGHEST
MIB, GIB = 2**20, 2**30


@dataclass
class Contestant:
    """One way to do the same work.

    Attributes:
      name: in the table.
      call: does the work once and returns when it is done.
      repeats: how often at most.
      compile_s: seconds that compilation took.
      temp_bytes: of XLA's temporary memory; None where nothing knows.
      share: of the work that `call` does; its time is divided by it.
    """

    name: str
    call: Callable[[], object]
    repeats: int = 10
    compile_s: float | None = None
    temp_bytes: int | None = None
    share: float = 1.0
    times: list = field(default_factory=list)

    @property
    def median_ms(self) -> float:
        """Milliseconds of the whole work."""
        return 1e3 * float(np.median(self.times)) / self.share


def compiled(name: str, function, *inputs, **settings) -> Contestant:
    """A contestant that is one jitted call."""
    begin = time.perf_counter()
    program = jax.jit(function).lower(*inputs).compile()
    took = time.perf_counter() - begin
    memory = program.memory_analysis()
    return Contestant(
        name,
        lambda: jax.block_until_ready(program(*inputs)),
        compile_s=took,
        temp_bytes=getattr(memory, "temp_size_in_bytes", None),
        **settings,
    )


def torch_module():
    """torch with as many threads as were asked for, or None."""
    try:
        import torch
    except ImportError:
        return None
    if "all" not in sys.argv and "--threads=all" not in sys.argv:
        torch.set_num_threads(1)
    return torch


def with_torch(name: str, function, inputs, backward: bool, expected, repeats: int) -> Contestant:
    """A contestant in torch: values of `function(*inputs)`, and gradients for the inputs."""
    torch = torch_module()
    tensors = [torch.tensor(np.asarray(x)) for x in inputs]

    def call():
        if not backward:
            with torch.no_grad():
                return function(*tensors)
        leaves = [x.clone().requires_grad_() for x in tensors]
        values = function(*leaves)
        values.sum().backward()
        return values.detach()

    agree(name, call(), expected)
    return Contestant(name, call, repeats=repeats)


def agree(name: str, result, expected) -> None:
    """A contestant that computes something else has no place in the table."""
    error = np.max(np.abs(np.asarray(result, np.float64) - np.asarray(expected, np.float64)))
    if not error <= 2e-3 * np.max(np.abs(expected)):
        raise RuntimeError(f"{name} is off by {error}")


def race(contestants: list[Contestant], clock) -> None:
    """In turns; an untimed call first, or whoever follows a large one would pay for its caches."""
    for turn in range(max(one.repeats for one in contestants)):
        for one in contestants:
            if turn < one.repeats:
                if one.repeats > 1:
                    one.call()
                begin = clock()
                one.call()
                one.times.append(clock() - begin)


def table(title: str, contestants: list[Contestant], missing=()) -> list[dict]:
    """Prints one race and returns it as records; ratios are to the first contestant."""
    first = contestants[0].median_ms
    print(f"\n{title}\n{'':46} {'ms':>9} {'ratio':>7} {'temp MiB':>9} {'compile s':>9} {'n':>3}")
    records = []
    for one in contestants:
        temp = "-" if one.temp_bytes is None else f"{one.temp_bytes / MIB:.1f}"
        took = "-" if one.compile_s is None else f"{one.compile_s:.1f}"
        ratio = one.median_ms / first
        print(
            f"{one.name:46} {one.median_ms:9.1f} {ratio:7.2f} {temp:>9} {took:>9} "
            f"{len(one.times):3}",
            flush=True,
        )
        records.append(
            {
                "work": title,
                "name": one.name,
                "ms": one.median_ms,
                "ratio": ratio,
                "temp_bytes": one.temp_bytes,
                "compile_s": one.compile_s,
                "repeats": len(one.times),
            }
        )
    for name in missing:
        print(f"{name:46} not installed")
    return records


def verdict(bar: str, figure: str, holds: bool) -> dict:
    """Prints whether a bar is reached."""
    print(f"{'PASS' if holds else 'FAIL'}  {bar}: {figure}", flush=True)
    return {"bar": bar, "figure": figure, "holds": bool(holds)}


def gemm_peak(clock) -> float:
    """FLOP/s of a large float32 matrix product."""
    x = jnp.ones((2048, 2048))
    one = compiled("gemm", lambda x: jnp.matmul(x, x, precision=HIGHEST), x)
    race([one], clock)
    return 2 * 2048**3 / min(one.times)


def large_batch(matrix, execute: bool) -> dict:
    """L_seq and its gradient for B = 256 at n = 250, m = 62, width 512: bytes, and seconds.

    Args:
      matrix: visual and audio sequences -> (D, aux).
      execute: whether to run it. The peak of resident memory is this process' so far.
    """
    shapes = [jax.ShapeDtypeStruct((256, steps, 512), jnp.float32) for steps in (250, 62)]

    def loss(visual, audio):
        distances, _ = matrix(sequences(visual), sequences(audio))
        return sequence_loss(distances, jnp.zeros(()))[0]

    program = jax.jit(jax.value_and_grad(loss, (0, 1))).lower(*shapes).compile()
    figures = {"temp_bytes": program.memory_analysis().temp_size_in_bytes}
    if execute:
        keys = jax.random.split(jax.random.key(0))
        inputs = [jax.random.normal(key, x.shape) for key, x in zip(keys, shapes, strict=True)]
        begin = time.perf_counter()
        value, gradients = jax.block_until_ready(program(*inputs))
        figures["seconds"] = time.perf_counter() - begin
        figures["peak_rss_bytes"] = 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        assert np.isfinite(value) and all(bool(jnp.all(jnp.isfinite(x))) for x in gradients)
    return figures


def large_batch_verdict(name: str, figures: dict) -> dict:
    """The bar on `large_batch`: 8 GiB."""
    figure = f"{figures['temp_bytes'] / GIB:.2f} GiB temporary"
    if "seconds" in figures:
        figure += f"; executed in {figures['seconds']:.0f} s, peak RSS "
        figure += f"{figures['peak_rss_bytes'] / GIB:.2f} GiB"
    fits = max(figures["temp_bytes"], figures.get("peak_rss_bytes", 0)) < 8 * GIB
    return verdict(f"L_seq of {name}, B = 256 at 250 x 62, in 8 GiB", figure, fits)


def parse_arguments(description: str) -> argparse.Namespace:
    """The options that all benchmarks have."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--quick", action="store_true", help="fewer repeats, nothing large is run")
    parser.add_argument("--threads", choices=("one", "all"), default="one")
    parser.add_argument("--out", help="also write the figures to this JSON file")
    return parser.parse_args()


def clock_of(arguments: argparse.Namespace):
    """CPU time on one thread of a CPU, else wall time; prints what is measured on."""
    print(f"{jax.devices()[0].device_kind}, jax {jax.__version__}, threads: {arguments.threads}")
    one_thread = arguments.threads == "one" and jax.default_backend() == "cpu"
    return time.process_time if one_thread else time.perf_counter


def write(arguments: argparse.Namespace, figures: dict) -> None:
    """Figures as JSON, where asked for."""
    if arguments.out:
        about = {"device": jax.devices()[0].device_kind, "threads": arguments.threads}
        with open(arguments.out, "w") as file:
            json.dump(about | figures, file, indent=1)
