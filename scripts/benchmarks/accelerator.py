"""Everything that is claimed of an accelerator, in one run of at most eight minutes.

    python scripts/benchmarks/accelerator.py [--minutes 8] [--only NAME ...] [--quick] [--data DATA]
                                             [--out accelerator.json]

The most important first: the training step of the paper's model beside the same towers in PyTorch
(accelerator_torch.py), search through an index, soft-DTW beside ott, ragged Euclidean distances,
the large cached batches within 32 GB, input from disk. Each row is a process of its own, so that
none has another's memory, compiles what it needs (nothing is taken from a cache; the time stands
apart), and its figures are printed and written as it ends. What is not installed or not there is
named and left out. `--quick` has small shapes: it shows on any machine that every row runs.
"""

import argparse
import dataclasses
import json
import os
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path

from timing import median_seconds

ROOT = Path(__file__).resolve().parents[2]
GIB = 2**30
LIMITED_BYTES = 32e9  # what "a V100's memory" is
REPEATS = 10
WIDTHS = {"visual": 768, "audio": 6144}


# -- rows: -> figures, in a process of their own --------------------------------------------------


def _work(batch: int, steps: int, quick: bool, **train):
    """-> (config, workload, optimizer) of the paper's model, or of a small one."""
    from scav_jax.plan import estimate
    from scav_jax.training import config_files
    from scav_jax.training.setup import optimizer_of

    config = config_files.load_file("configs/vggsound.py").replace(
        data={"batch_size": batch}, train=train
    )
    if quick:
        small = {"width": 32, "feedforward": 64, "visual_hidden": 32, "audio_hidden": 32}
        config = config.replace(encoders=small | {"visual_blocks": 1, "audio_blocks": 1})
    stored = dataclasses.replace(
        estimate.stored_features(config),
        visual=(steps, WIDTHS["visual"]),
        audio=(steps, WIDTHS["audio"]),
    )
    return config, estimate.workload(config, 1, stored), optimizer_of(config)


def step(quick: bool, batch: int, steps: int, **train) -> dict:
    """A training step: compiled, compared with the plan, run."""
    import jax

    from scav_jax.plan import trial

    if quick:
        batch, steps = 8 * max(train.get("microbatch", 0) and 2, 1), 6
        train = train | ({"microbatch": 8} if train.get("microbatch") else {})
    _, work, optimizer = _work(batch, steps, quick, **train)
    begin = time.perf_counter()
    lowered = trial.lowered_step(work, optimizer)
    traced = time.perf_counter() - begin
    program = lowered.compile()
    found = trial.compared(program, work)
    compile_s = time.perf_counter() - begin - traced
    ran = trial.run(program, work, optimizer, repeats=2 if quick else REPEATS)
    rate = ran["flops_per_s"]
    return {
        "ms": 1e3 * ran["step_s"],
        "clips_per_s": batch / ran["step_s"],
        "tflops": rate / 1e12,
        "share_of_peak": rate / peak(train.get("precision", "float32")),
        "share_of_bare_product": rate / bare_product(train.get("precision", "float32"), quick),
        "trace_s": traced,
        "compile_s": compile_s,
        "temporary_gib": found["memory_bytes"]["temporary"] / GIB,
        "planned_share": found["planned_bytes"] / found["memory_bytes"]["total"],
        "in_use_gib": (ran["memory_in_use_bytes"] or 0) / GIB,
        "device": jax.devices()[0].device_kind,
    }


def peak(precision: str) -> float:
    """FLOP/s of the card's data sheet; NaN of a device that no table has."""
    import jax

    from scav_jax.plan.devices import DEVICES

    kind = jax.devices()[0].device_kind.lower()
    for name, device in DEVICES.items():
        if name.partition("-")[2] in kind if name.startswith("tpu") else name in kind:
            return getattr(device, precision) or float("nan")
    return float("nan")


def bare_product(precision: str, quick: bool) -> float:
    """FLOP/s of a large matrix product here."""
    import jax
    import jax.numpy as jnp

    from scav_jax.encoders.layers import MATMUL_PRECISIONS

    size = 256 if quick else 8192
    dtype = jnp.bfloat16 if precision == "bfloat16" else jnp.float32
    x = jnp.ones((size, size), dtype)
    product = jax.jit(partial(jnp.matmul, precision=MATMUL_PRECISIONS[precision]))
    return 2 * size**3 / (median_seconds(lambda: product(x, x).block_until_ready(), 3))


def step_in_torch(quick: bool, batch: int, steps: int, bfloat16: bool) -> dict:
    """The same in PyTorch with `torch.compile`."""
    import accelerator_torch

    config, _, _ = _work(batch, steps, quick)
    batch, steps = (8, 6) if quick else (batch, steps)
    found = accelerator_torch.step_seconds(
        config.encoders, WIDTHS, batch, steps, 2 if quick else REPEATS, bfloat16
    )
    figures = {"ms": 1e3 * found["seconds"], "clips_per_s": batch / found["seconds"]}
    in_use = (found["peak_bytes"] or 0) / GIB
    return figures | {"compile_s": found["compile_s"], "in_use_gib": in_use}


def search(quick: bool) -> dict:
    """1,000 queries over 10,000 clips of 62 x 512, all compared through an index's search."""
    import jax
    import numpy as np

    from scav_jax import sharding
    from scav_jax.index.nearest import mesh, searching
    from scav_jax.index.stored.catalog import make_header
    from scav_jax.index.stored.encoding import Encoding
    from scav_jax.index.stored.segments import Segment, Snapshot
    from scav_jax.retrieval.embed import Embedded
    from scav_jax.sequences import Sequences

    queries, clips, steps, width = (20, 200, 6, 32) if quick else (1000, 10_000, 62, 512)
    random = np.random.default_rng(0)

    def embedded(count: int) -> Embedded:
        lengths = np.full(count, steps, np.int32)
        windows = np.stack([0 * lengths, lengths], axis=1).astype(np.float32)
        values = random.standard_normal((count, steps, width), np.float32)
        names = [f"clip{number}" for number in range(count)]
        span = np.zeros(count), np.ones(count)
        one = Sequences(values, lengths, windows)
        means = values.mean(axis=1)
        return Embedded(names, names, *span, [""] * count, one, one, means, means)

    gallery, asking = embedded(clips), embedded(queries)
    header = make_header("benchmark", ("euclidean", {"resample": "visual_to_audio"}), "float32")
    header = dataclasses.replace(header, width=width, embedding_width=width)
    encoding = Encoding.of({"visual": gallery.visual}, header)
    vectors = {"embeddings": gallery.visual_embeddings}
    stored = encoding.encode(gallery.visual, vectors, np.arange(clips))
    segment = Segment.in_memory({"visual": stored}, encoding, header)
    live = {segment.number: np.ones(clips, bool)}
    snapshot = Snapshot(header, {segment.number: segment}, live)
    there = mesh.OnMesh(snapshot, "a2v", sharding.local_mesh(1))
    begin = time.perf_counter()
    there.search(asking, 10)
    first = time.perf_counter() - begin
    values = jax.device_put(gallery.visual.values.reshape(clips, -1))
    on_device = jax.device_put(asking.audio.values.reshape(queries, -1))
    bare = jax.jit(lambda q, c: jax.lax.top_k(jax.numpy.matmul(q, c.T, precision="highest"), 10))
    return {
        "ms": 1e3 * median_seconds(lambda: there.search(asking, 10), 3),
        "bare_product_ms": 1e3
        * median_seconds(lambda: jax.block_until_ready(bare(on_device, values)), 3),
        "host_ms": 1e3
        * median_seconds(lambda: searching.search(snapshot, asking, "a2v", 10, "sequence"), 1),
        "compile_s": first,
    }


def soft_dtw(quick: bool, visual_steps: int) -> dict:
    """1,024 pairs from latents, values and gradients, beside ott's SoftDTW under vmap."""
    from scav_jax.distances import pairwise
    from scav_jax.sequences import sequences

    count, width = (4, 8) if quick else (32, 512)
    visual_steps, audio_steps = (9, 6) if quick else (visual_steps, 62)
    latents = _latents((count, visual_steps, width), (count, audio_steps, width))

    def ours(visual, audio):
        return pairwise("soft_dtw", sequences(visual), sequences(audio), gamma=0.1).sum()

    def by_ott(visual, audio):
        import jax
        from ott.geometry.costs import SoftDTW

        one = SoftDTW(gamma=0.1)  # sums squares over channels, ours means them
        scale = width**-0.5
        of_row = jax.vmap(one, (None, 0))
        return jax.vmap(of_row, (0, None))(visual * scale, audio * scale).sum()

    return _with_gradients(ours, latents, quick) | {
        f"ott_{name}": value for name, value in _or_none(by_ott, latents, quick).items()
    }


def ragged(quick: bool, resample: str) -> dict:
    """The Euclidean distance of 1,024 clips of 60 to 250 and 20 to 62 steps, with gradients."""
    import numpy as np

    from scav_jax.distances import pairwise
    from scav_jax.sequences import sequences

    count, width = (8, 8) if quick else (1024, 512)
    random = np.random.default_rng(0)
    lengths = [random.integers(low, high + 1, count) for low, high in ((60, 250), (20, 62))]
    latents = _latents((count, 250, width), (count, 62, width))

    def ours(visual, audio):
        both = (
            sequences(x, n.astype(np.int32)) for x, n in zip((visual, audio), lengths, strict=True)
        )
        return pairwise("euclidean", *both, resample=resample).sum()

    return _with_gradients(ours, latents, quick)


def _latents(*shapes):
    import jax

    keys = jax.random.split(jax.random.key(0), len(shapes))
    return [jax.random.normal(key, shape) for key, shape in zip(keys, shapes, strict=True)]


def _with_gradients(function, inputs, quick: bool) -> dict:
    """Milliseconds of values and gradients, seconds of compilation."""
    import jax

    begin = time.perf_counter()
    program = jax.jit(jax.value_and_grad(function, (0, 1))).lower(*inputs).compile()
    took = time.perf_counter() - begin
    call = partial(_done, program, inputs)
    return {"ms": 1e3 * median_seconds(call, 2 if quick else REPEATS), "compile_s": took}


def _done(program, inputs) -> None:
    import jax

    jax.block_until_ready(program(*inputs))


def _or_none(function, inputs, quick: bool) -> dict:
    """The same of a peer; its words where it is not installed."""
    try:
        return _with_gradients(function, inputs, quick)
    except ImportError as error:
        return {"missing": str(error)}


def from_disk(quick: bool, data: str) -> dict:
    """A run from disk: the share of a step that waits for input, after the first ten steps."""
    from scav_jax.train import loop  # noqa: F401  what it needs is named where it is missing
    from scav_jax.training.records import read_metrics

    if not data:
        raise FileNotFoundError("no --data DATA was given")
    with tempfile.TemporaryDirectory() as folder:
        steps = 20 if quick else 200
        command = [sys.executable, "-m", "scav_jax.train", "--config", "configs/vggsound.py"]
        command += ["--workdir", folder, f"--config.data.path={data}", "--config.data.backbone="]
        command += [f"--config.train.steps={steps}", "--config.train.log_every=10"]
        command += [f"--config.train.validate_every={steps}", "--config.optimizer.warmup_steps=10"]
        subprocess.run(command, check=True, cwd=ROOT, stdout=sys.stderr)
        lines = [one for one in read_metrics(Path(folder)) if "input_share" in one]
        waits = [one["input_share"] for one in lines[1:]]
    return {"input_wait_share": sum(waits) / len(waits), "steps": steps}


ROWS = {
    "step, bfloat16, batch 1,024": partial(
        step, batch=1024, steps=62, precision="bfloat16", remat="elementwise"
    ),
    "step in PyTorch, bfloat16, batch 1,024": partial(
        step_in_torch, batch=1024, steps=62, bfloat16=True
    ),
    "step, bfloat16, batch 1,024, all kept": partial(
        step, batch=1024, steps=62, precision="bfloat16"
    ),
    "step, float32, batch 256": partial(step, batch=256, steps=62),
    "step, float32, batch 256, elementwise": partial(
        step, batch=256, steps=62, remat="elementwise"
    ),
    "search, 1,000 x 10,000": search,
    "soft-DTW, 62 x 62": partial(soft_dtw, visual_steps=62),
    "soft-DTW, 250 x 62": partial(soft_dtw, visual_steps=250),
    "ragged, visual_to_audio": partial(ragged, resample="visual_to_audio"),
    "ragged, audio_to_visual": partial(ragged, resample="audio_to_visual"),
    "step in 32 GB, batch 4,096, cached": partial(step, batch=4096, steps=62, microbatch=64),
    "step in 32 GB, batch 16,384, cached, bfloat16": partial(
        step, batch=16_384, steps=62, microbatch=256, precision="bfloat16", remat="elementwise"
    ),
    "step in PyTorch, float32, batch 256": partial(
        step_in_torch, batch=256, steps=62, bfloat16=False
    ),
    "from disk": from_disk,
}


# -- the run --------------------------------------------------------------------------------------


def environment(name: str, memory_bytes: float) -> dict:
    """Of a row's process."""
    environ = dict(os.environ, JAX_ENABLE_COMPILATION_CACHE="false", PYTHONPATH=str(ROOT))
    environ["XLA_PYTHON_CLIENT_PREALLOCATE"] = "false"
    if "32 GB" in name and memory_bytes > LIMITED_BYTES:
        environ["XLA_PYTHON_CLIENT_MEM_FRACTION"] = f"{LIMITED_BYTES / memory_bytes:.4f}"
    return environ


def memory_of_card() -> float:
    """Bytes, as the driver says; 0 where there is none."""
    command = ["nvidia-smi", "--query-gpu=memory.total", "--format=csv,noheader,nounits"]
    try:
        found = subprocess.run(command, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return 0.0
    return float(found.stdout.split()[0]) * 2**20


def run_row(name: str, arguments: argparse.Namespace, left_s: float, memory_bytes: float) -> dict:
    """One row in a process; {"missing": why} where it gives no figures."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "row.json"
        command = [sys.executable, __file__, "--row", name, "--out", str(file)]
        command += ["--data", arguments.data] + (["--quick"] if arguments.quick else [])
        try:
            subprocess.run(
                command, cwd=ROOT, timeout=left_s, env=environment(name, memory_bytes), check=True
            )
        except subprocess.TimeoutExpired:
            return {"missing": f"no time: {left_s:.0f} s were left"}
        except subprocess.CalledProcessError as error:
            return {"missing": f"exit code {error.returncode}"}
        return json.loads(file.read_text())


def child(arguments: argparse.Namespace) -> None:
    """Writes the figures of one row, or why there are none."""
    row = ROWS[arguments.row]
    try:
        found = row(arguments.quick, **({"data": arguments.data} if row is from_disk else {}))
    except (ImportError, FileNotFoundError) as error:
        found = {"missing": str(error)}
    Path(arguments.out).write_text(json.dumps(found))


def in_words(name: str, figures: dict) -> str:
    words = [
        f"{key} {value:.4g}" if isinstance(value, float) else f"{key} {value}"
        for key, value in figures.items()
    ]
    return f"{name:46} " + ", ".join(words)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=8.0, help="of everything (default 8)")
    parser.add_argument("--only", nargs="+", default=[], help="rows, by how their names begin")
    parser.add_argument("--quick", action="store_true", help="small, to see that it runs")
    parser.add_argument("--data", default="", help="features to train on, for the row from disk")
    parser.add_argument("--out", default="accelerator.json", help="the figures (accelerator.json)")
    parser.add_argument("--row", choices=list(ROWS), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.row:
        child(arguments)
        return
    end, found = time.monotonic() + 60 * arguments.minutes, {}
    memory_bytes = memory_of_card()
    for name in ROWS:
        if arguments.only and not name.startswith(tuple(arguments.only)):
            continue
        left = end - time.monotonic()
        found[name] = (
            run_row(name, arguments, left, memory_bytes) if left > 5 else {"missing": "no time"}
        )
        print(in_words(name, found[name]), flush=True)
        Path(arguments.out).write_text(json.dumps(found, indent=1))
    first, peer = (found.get(name, {}).get("clips_per_s") for name in list(ROWS)[:2])
    if first and peer:
        print(f"clips a second beside PyTorch: {first / peer:.2f}x")


if __name__ == "__main__":
    main()
