"""How fast, how exact and how large is soft-DTW between all pairs of sequences?

    python scripts/benchmarks/soft_dtw.py [--quick] [--threads all] [--out FILE.json]

1,024 pairs of 62 x 62 and of 64 x 250 steps, forward and forward+backward: from given costs, which
is the recursion alone, and from latents of width 512 (32 x 32 sequences), where matrix products
are added for all contestants alike. Then DTW proper, gradients beside float64 ones from gamma 1e-3
to 10, and L_seq of B = 256 clips of 250 x 62 steps.

Peers: ott's SoftDTW under vmap; pysdtw and pytorch-softdtw-cuda, the CPU path of both (torch and
numba, float64 inside; for the second, its `soft_dtw_cuda.py` should be on PYTHONPATH); tslearn
(numba, float64). Those that are not installed are named.

One thread unless `--threads all`. Contestants take turns, so that other load hits all alike; times
are medians, of CPU time on one thread and of wall time on all; the column n says of how many.
Compilation is apart.
"""

import argparse
import json
import os
import sys


def _limit_threads() -> None:
    """One thread a library, before any of them is imported."""
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
import subprocess  # noqa: E402
import time  # noqa: E402
import warnings  # noqa: E402
from collections.abc import Callable  # noqa: E402
from dataclasses import dataclass, field  # noqa: E402
from functools import partial  # noqa: E402

import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
import numpy as np  # noqa: E402

from scav_jax.distances.dtw import dtw_matrix, soft_dtw, soft_dtw_matrix  # noqa: E402
from scav_jax.distances.warping import warping_costs  # noqa: E402
from scav_jax.objectives import sequence_loss  # noqa: E402
from scav_jax.sequences import Sequences, sequences  # noqa: E402

warnings.filterwarnings("ignore")  # of the peers

BATCH, WIDTH, GAMMA = 32, 512, 0.1
PAIRS = BATCH**2
SHAPES = ((62, 62), (64, 250))
RECOMPUTE = 2**24  # bytes: fewer than the alignments of all pairs take
GAMMAS = (1e-3, 1e-2, 0.1, 1.0, 10.0)
HIGHEST = jax.lax.Precision.HIGHEST
MIB, GIB = 2**20, 2**30


# -- measuring ------------------------------------------------------------------------------------


@dataclass
class Contestant:
    """One way to do the same work.

    Attributes:
      name: in the table.
      call: does the work once and returns when it is done.
      repeats: how often at most.
      compile_s: seconds that compilation took.
      temp_bytes: of XLA's temporary memory; None where nothing knows.
    """

    name: str
    call: Callable[[], object]
    repeats: int = 10
    compile_s: float | None = None
    temp_bytes: int | None = None
    times: list = field(default_factory=list)

    @property
    def median_ms(self) -> float:
        """Milliseconds of the whole work."""
        return 1e3 * float(np.median(self.times))


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


def race(contestants: list[Contestant], clock) -> None:
    """Every contestant once to warm up, then in turns."""
    for one in contestants:
        one.call()
    for turn in range(max(one.repeats for one in contestants)):
        for one in contestants:
            if turn < one.repeats:
                begin = clock()
                one.call()
                one.times.append(clock() - begin)


def table(title: str, contestants: list[Contestant], missing=()) -> list[dict]:
    """Prints one race and returns it as records; ratios are to the first contestant."""
    first = contestants[0].median_ms
    print(f"\n{title}\n{'':44} {'ms':>9} {'ratio':>7} {'temp MiB':>9} {'compile s':>9} {'n':>3}")
    records = []
    for one in contestants:
        temp = "-" if one.temp_bytes is None else f"{one.temp_bytes / MIB:.1f}"
        took = "-" if one.compile_s is None else f"{one.compile_s:.1f}"
        print(
            f"{one.name:44} {one.median_ms:9.1f} {one.median_ms / first:7.2f} {temp:>9} {took:>9} "
            f"{len(one.times):3}",
            flush=True,
        )
        records.append(
            {
                "work": title,
                "name": one.name,
                "ms": one.median_ms,
                "ratio": one.median_ms / first,
                "temp_bytes": one.temp_bytes,
                "compile_s": one.compile_s,
                "repeats": len(one.times),
            }
        )
    for name in missing:
        print(f"{name:44} not installed")
    return records


def verdict(bar: str, figure: str, holds: bool) -> dict:
    """Prints whether a bar is reached."""
    print(f"{'PASS' if holds else 'FAIL'}  {bar}: {figure}", flush=True)
    return {"bar": bar, "figure": figure, "holds": bool(holds)}


def agree(name: str, result, expected) -> None:
    """A contestant that computes something else has no place in the table."""
    error = np.max(np.abs(np.asarray(result, np.float64) - np.asarray(expected, np.float64)))
    if not error <= 2e-3 * np.max(np.abs(expected)):
        raise RuntimeError(f"{name} is off by {error}")


# -- from given costs -----------------------------------------------------------------------------


def ours_on(costs):
    """Costs `[N, M, B]` -> `[B]`."""
    n, m, pairs = costs.shape
    return warping_costs(
        costs, jnp.full((pairs,), n, jnp.int32), jnp.full((pairs,), m, jnp.int32), GAMMA
    )


def ott_on(costs):
    """Costs `[B, N, M]` -> `[B]` by ott, whose ground cost returns what it is given."""
    from ott.geometry.costs import CostFn, SoftDTW

    @jax.tree_util.register_pytree_node_class
    class Given(CostFn):
        def all_pairs(self, x, y):
            return x

        def __call__(self, x, y):
            raise NotImplementedError

    distance = SoftDTW(gamma=GAMMA, ground_cost=Given())
    return jax.vmap(lambda cost: distance(cost, cost))(costs)


def torch_module():
    """torch with as many threads as were asked for, or None."""
    try:
        import torch
    except ImportError:
        return None
    if "all" not in sys.argv:
        torch.set_num_threads(1)
    return torch


def torch_recursions() -> dict[str, Callable]:
    """Name -> function of costs `[B, N, M]`, for the torch peers that are installed."""
    torch, found = torch_module(), {}
    if torch is None:
        return found
    try:
        from pysdtw.sdtw_cpu import SoftDTWcpu

        def by_pysdtw(costs):
            lengths = torch.tensor([costs.shape[1:]] * len(costs))
            return SoftDTWcpu.apply(costs, lengths, GAMMA, 0)

        found["pysdtw, CPU"] = by_pysdtw
    except ImportError:
        pass
    try:
        import numba

        numba.cuda.is_available()
        from soft_dtw_cuda import _SoftDTW

        found["pytorch-softdtw-cuda, CPU"] = lambda costs: _SoftDTW.apply(costs, GAMMA, 0)
    except Exception:  # its import needs parts of numba.cuda
        pass
    return found


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


def tslearn_on(costs, backward: bool, expected, repeats: int) -> Contestant | None:
    """tslearn's compiled float64 loops, pair after pair."""
    try:
        from tslearn.metrics.softdtw_variants import _njit_soft_dtw, _njit_soft_dtw_grad
    except ImportError:
        return None
    many = np.asarray(costs, np.float64)
    n, m = many.shape[1:]

    def call():
        values = np.zeros(len(many))
        for k, cost in enumerate(many):
            table = np.zeros((n + 2, m + 2))
            _njit_soft_dtw(cost, table, gamma=GAMMA)
            values[k] = table[n, m]
            if backward:
                extended = np.vstack((cost, np.zeros(m)))
                extended = np.hstack((extended, np.zeros((n + 1, 1))))
                alignment = np.zeros((n + 2, m + 2))
                alignment[n + 1, m + 1] = 1
                _njit_soft_dtw_grad(extended, table, alignment, gamma=GAMMA)
        return values

    agree("tslearn", call(), expected)
    return Contestant("tslearn, numba, float64", call, repeats=repeats)


def gradient_of(function):
    """-> (values, gradient of their sum)."""

    def both(costs):
        values, pull = jax.vjp(function, costs)
        return values, pull(jnp.ones_like(values))[0]

    return both


def transposed(function):
    """For costs as the peers have them, pairs first."""

    def ordered(costs):
        return function(jnp.moveaxis(costs, 0, -1))

    return ordered


def from_costs(shape, quick: bool, clock) -> dict:
    """Both races on given costs; returns the contestants by name for each, and the records."""
    costs = jax.jit(all_costs)(*latents(shape, 0)).reshape(PAIRS, *shape)
    pairs_last = jnp.moveaxis(costs, 0, -1) + 0.0
    expected = np.asarray(jax.jit(ours_on)(pairs_last))
    agree("ott", jax.jit(ott_on)(costs), expected)
    slow = 3 if quick else 10
    result = {}
    for work, backward in (("forward", False), ("forward and backward", True)):
        wrap = gradient_of if backward else lambda function: function
        contestants = [
            compiled("scav_jax, pairs last", wrap(ours_on), pairs_last, repeats=2 * slow),
            compiled("scav_jax, pairs first", wrap(transposed(ours_on)), costs, repeats=2 * slow),
            compiled("ott SoftDTW, vmap", wrap(ott_on), costs, repeats=slow),
        ]
        torch_peers = torch_recursions()
        contestants += [
            with_torch(name, function, [costs], backward, expected, slow)
            for name, function in torch_peers.items()
        ]
        peer = tslearn_on(costs, backward, expected, slow)
        contestants += [peer] if peer else []
        missing = {"pysdtw, CPU", "pytorch-softdtw-cuda, CPU"} - set(torch_peers)
        race(contestants, clock)
        title = f"From costs: {PAIRS} pairs of {shape[0]} x {shape[1]}, {work}"
        records = table(title, contestants, sorted(missing) + ([] if peer else ["tslearn"]))
        result[work] = {one.name: one for one in contestants}, records
    return result


# -- from latents ---------------------------------------------------------------------------------


def latents(shape, seed: int, batch: int = BATCH, width: int = WIDTH) -> list[jax.Array]:
    """Random sequences of unit variance, as a final LayerNorm leaves them."""
    rng = np.random.default_rng(seed)
    return [jnp.asarray(rng.normal(size=(batch, steps, width)), jnp.float32) for steps in shape]


def all_costs(visual, audio):
    """Channel-averaged squared differences `[Q, K, N, M]`, as a user writes them."""
    products = jnp.einsum("qnc,kmc->qknm", visual, audio, precision=HIGHEST)
    squares = jnp.sum(visual**2, -1)[:, None, :, None] + jnp.sum(audio**2, -1)[None, :, None, :]
    return (squares - 2.0 * products) / visual.shape[-1]


def ours(visual, audio, *, gamma=GAMMA, memory_bytes=GIB):
    """All pairs of latents, every step real."""
    visual, audio = sequences(visual), sequences(audio)
    return soft_dtw_matrix(visual, audio, block=None, memory_bytes=memory_bytes, gamma=gamma)[0]


def naive(visual, audio):
    """vmap of vmap of the definition."""

    def row(v: Sequences):
        return jax.vmap(lambda a: soft_dtw(v, a, gamma=GAMMA))(sequences(audio))

    return jax.vmap(row)(sequences(visual))


def ott_on_latents(visual, audio, gamma=GAMMA):
    """vmap of vmap of ott's SoftDTW; its costs sum over channels."""
    from ott.geometry.costs import SoftDTW

    distance = SoftDTW(gamma=gamma)
    visual, audio = (x / np.sqrt(x.shape[-1]).astype(np.float32) for x in (visual, audio))
    return jax.vmap(lambda v: jax.vmap(lambda a: distance(v, a))(audio))(visual)


def torch_on_latents() -> dict[str, Callable]:
    """The torch recursions behind a batched product of all pairs of latents."""
    torch = torch_module()

    def behind_product(recursion):
        def distances(visual, audio):
            x, y = (z / z.shape[-1] ** 0.5 for z in (visual, audio))
            products = torch.einsum("qnc,kmc->qknm", x, y)
            squares = (x * x).sum(-1)[:, None, :, None] + (y * y).sum(-1)[None, :, None, :]
            costs = squares - 2.0 * products
            return recursion(costs.reshape(-1, *costs.shape[2:])).reshape(costs.shape[:2])

        return distances

    return {name: behind_product(function) for name, function in torch_recursions().items()}


def from_latents(shape, quick: bool, clock) -> dict:
    """Both races on latents; as `from_costs`."""
    inputs = latents(shape, 1)
    expected = np.asarray(jax.jit(ours)(*inputs))
    agree("ott", jax.jit(ott_on_latents)(*inputs), expected)
    slow = 3 if quick else 10
    recompute = partial(ours, memory_bytes=RECOMPUTE)
    result = {}
    for work, backward in (("forward", False), ("forward and backward", True)):

        def wrap(function, backward=backward):
            if not backward:
                return function
            return jax.value_and_grad(lambda v, a: jnp.sum(function(v, a)), (0, 1))

        contestants = [compiled("scav_jax", wrap(ours), *inputs, repeats=2 * slow)]
        if backward:
            name = f"scav_jax in {RECOMPUTE / MIB:.0f} MiB, recomputing"
            contestants.append(compiled(name, wrap(recompute), *inputs, repeats=3))
        contestants += [
            compiled("definition, vmap of vmap", wrap(naive), *inputs, repeats=slow),
            compiled("ott SoftDTW, vmap of vmap", wrap(ott_on_latents), *inputs, repeats=slow),
        ]
        contestants += [
            with_torch(name, function, inputs, backward, expected, slow)
            for name, function in torch_on_latents().items()
        ]
        race(contestants, clock)
        title = f"From latents of width {WIDTH}: the same pairs of {shape[0]} x {shape[1]}, {work}"
        result[work] = {one.name: one for one in contestants}, table(title, contestants)
    return result


def hard(quick: bool, clock) -> list[dict]:
    """DTW proper, the retrieval form, forward only."""
    visual, audio = latents(SHAPES[0], 2)

    def own(v, a):
        return dtw_matrix(sequences(v), sequences(a), block=None, memory_bytes=GIB)[0]

    contestants = [compiled("scav_jax", own, visual, audio)]
    missing = []
    try:
        from tslearn.metrics import cdist_dtw

        v, a = (np.asarray(x, np.float64) / np.sqrt(WIDTH) for x in (visual, audio))
        agree("tslearn", cdist_dtw(v[:4], a[:4]) ** 2, jax.jit(own)(visual[:4], audio[:4]))
        contestants.append(
            Contestant("tslearn cdist_dtw, numba, float64", lambda: cdist_dtw(v, a), repeats=3)
        )
    except ImportError:
        missing.append("tslearn")
    race(contestants, clock)
    title = f"DTW from latents of width {WIDTH}: {PAIRS} pairs of 62 x 62, forward"
    return table(title, contestants, missing)


# -- accuracy -------------------------------------------------------------------------------------


def matching(shape, seed: int, batch: int) -> list[jax.Array]:
    """Sequences that show the same course of events, at their own pace and with noise."""
    rng = np.random.default_rng(seed)
    course = rng.normal(size=(batch, max(shape), WIDTH))
    return [
        jnp.asarray(
            course[:, np.arange(steps) * max(shape) // steps]
            + 0.3 * rng.normal(size=(batch, steps, WIDTH)),
            jnp.float32,
        )
        for steps in shape
    ]


def gradient_errors(inputs, gamma: float) -> dict[str, float]:
    """Of ours and of ott's, relative to the largest entry of ours in float64."""

    def gradients(function, values):
        weights = np.random.default_rng(5).normal(size=(len(values[0]), len(values[1])))

        def total(v, a):
            return jnp.sum(function(v, a, gamma=gamma) * jnp.asarray(weights, v.dtype))

        return [np.asarray(x) for x in jax.jit(jax.grad(total, (0, 1)))(*values)]

    exact = [np.asarray(x, np.float64) for x in inputs]
    with jax.enable_x64(True):
        expected = gradients(ours, [jnp.asarray(x) for x in exact])
    errors = {}
    for name, function in (("scav_jax", ours), ("ott", ott_on_latents)):
        results = gradients(function, inputs)
        errors[name] = max(
            float(np.max(np.abs(x - y)) / np.max(np.abs(y)))
            for x, y in zip(results, expected, strict=True)
        )
    return errors


def accuracy(quick: bool) -> list[dict]:
    """Gradients in float32 against float64, by gamma."""
    title = "Gradients in float32 against float64, largest relative error, 16 pairs of 64 x 250"
    print(f"\n{title}\n{'latents':>10} {'gamma':>8} {'scav_jax':>10} {'ott':>10}")
    records = []
    for kind, make in (("unrelated", latents), ("matching", matching)):
        inputs = make(SHAPES[1], 3, batch=4)
        for gamma in GAMMAS[:: 2 if quick else 1]:
            errors = gradient_errors(inputs, gamma)
            print(f"{kind:>10} {gamma:8} {errors['scav_jax']:10.1e} {errors['ott']:10.1e}")
            records.append({"latents": kind, "gamma": gamma, **errors})
    return records


# -- memory ---------------------------------------------------------------------------------------


def large_batch(execute: bool) -> dict:
    """L_seq and its gradient for B = 256 at n = 250, m = 62, width 512."""
    shapes = [jax.ShapeDtypeStruct((256, steps, WIDTH), jnp.float32) for steps in (250, 62)]

    def loss(v, a):
        return sequence_loss(ours(v, a), jnp.zeros(()))[0]

    program = jax.jit(jax.value_and_grad(loss, (0, 1))).lower(*shapes).compile()
    figures = {"temp_bytes": program.memory_analysis().temp_size_in_bytes}
    if execute:
        keys = jax.random.split(jax.random.key(0))
        v, a = (jax.random.normal(key, x.shape) for key, x in zip(keys, shapes, strict=True))
        begin = time.perf_counter()
        value, gradients = jax.block_until_ready(program(v, a))
        figures["seconds"] = time.perf_counter() - begin
        figures["peak_rss_bytes"] = 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        assert np.isfinite(value) and all(bool(jnp.all(jnp.isfinite(x))) for x in gradients)
    return figures


def large_batch_alone(execute: bool) -> dict:
    """`large_batch` in a process of its own, whose peak memory is its own."""
    command = [sys.executable, __file__, "--large-batch", *sys.argv[1:]]
    command += [] if execute else ["--quick"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


# -- all ------------------------------------------------------------------------------------------


def gemm_peak(clock) -> float:
    """FLOP/s of a large float32 matrix product."""
    x = jnp.ones((2048, 2048))
    one = compiled("gemm", lambda x: jnp.matmul(x, x, precision=HIGHEST), x)
    race([one], clock)
    return 2 * 2048**3 / min(one.times)


def speed_bars(costs: dict, from_: str, shape) -> list[dict]:
    """The bars on one kind of input and one shape, forward and backward."""
    contestants = costs["forward and backward"][0]
    own, *_ = contestants.values()
    ott = next(one for name, one in contestants.items() if name.startswith("ott"))
    ratio = ott.median_ms / own.median_ms
    least = 3 if shape == SHAPES[0] else 10
    where = f"{shape[0]} x {shape[1]} from {from_}"
    bars = [verdict(f"{where}: >= {least}x ott", f"{ratio:.1f}x", ratio >= least)]
    if shape == SHAPES[0]:
        for name, one in contestants.items():
            if "sdtw" in name or "softdtw" in name:
                ratio = one.median_ms / own.median_ms
                bars.append(verdict(f"{where}: >= 3x {name}", f"{ratio:.1f}x", ratio >= 3))
    else:
        share = own.temp_bytes / ott.temp_bytes
        figure = f"{own.temp_bytes / MIB:.0f} of {ott.temp_bytes / MIB:.0f} MiB, 1/{1 / share:.0f}"
        bars.append(verdict(f"{where}: <= 1/8 of ott's memory", figure, share <= 1 / 8))
    return bars


def main() -> None:
    """Runs everything and prints the bars."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="fewer repeats, nothing large is run")
    parser.add_argument("--threads", choices=("one", "all"), default="one")
    parser.add_argument("--out", help="also write the figures to this JSON file")
    parser.add_argument("--large-batch", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.large_batch:
        print(json.dumps(large_batch(not arguments.quick)))
        return
    one_thread = arguments.threads == "one" and jax.default_backend() == "cpu"
    clock = time.process_time if one_thread else time.perf_counter
    print(f"{jax.devices()[0].device_kind}, jax {jax.__version__}, threads: {arguments.threads}")
    by_input = {
        (kind, shape): measure(shape, arguments.quick, clock)
        for kind, measure in (("costs", from_costs), ("latents", from_latents))
        for shape in SHAPES
    }
    races = [x for both in by_input.values() for _, records in both.values() for x in records]
    races += hard(arguments.quick, clock)
    peak = gemm_peak(clock)
    own = by_input["latents", SHAPES[0]]["forward and backward"][0]["scav_jax"]
    share = 3 * 2 * PAIRS * 62 * 62 * WIDTH / (own.median_ms / 1e3) / peak
    print(f"\nGEMM peak {peak / 1e9:.0f} GFLOP/s; 62 x 62 from latents reaches {share:.0%} of it")
    errors = accuracy(arguments.quick)
    memory = large_batch_alone(not arguments.quick)
    print("\nBars, forward and backward")
    bars = [bar for key, both in by_input.items() for bar in speed_bars(both, *key)]
    worst = max(x["scav_jax"] for x in errors)
    bars.append(verdict("gradients within 1e-3 of float64", f"{worst:.1e}", worst <= 1e-3))
    figure = f"{memory['temp_bytes'] / GIB:.2f} GiB temporary"
    if "seconds" in memory:
        figure += f"; executed in {memory['seconds']:.0f} s, peak RSS "
        figure += f"{memory['peak_rss_bytes'] / GIB:.2f} GiB"
    fits = max(memory["temp_bytes"], memory.get("peak_rss_bytes", 0)) < 8 * GIB
    bars.append(verdict("L_seq, B = 256 at 250 x 62, in 8 GiB", figure, fits))
    if arguments.out:
        figures = {
            "device": jax.devices()[0].device_kind,
            "threads": arguments.threads,
            "races": races,
            "gemm_peak": peak,
            "gemm_share": share,
            "gradient_errors": errors,
            "memory": memory,
            "bars": bars,
        }
        with open(arguments.out, "w") as file:
            json.dump(figures, file, indent=1)


if __name__ == "__main__":
    main()
