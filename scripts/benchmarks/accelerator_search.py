"""A row of accelerator.py: 1,000 queries and 10,000 clips through an index's own search."""

import dataclasses
import time
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from timing import median_seconds

from scav_jax import sharding
from scav_jax.index import mesh, searching
from scav_jax.index.catalog import make_header
from scav_jax.index.encoding import Encoding
from scav_jax.index.segments import Segment
from scav_jax.index.snapshot import Snapshot
from scav_jax.retrieval.embed import Embedded
from scav_jax.sequences import Sequences

K = 10


def search(quick: bool) -> dict:
    """All compared on the device, beside a bare product and `top_k`, and the CPU's search."""
    queries, clips, steps, width = (20, 200, 6, 32) if quick else (1000, 10_000, 62, 512)
    random = np.random.default_rng(0)
    gallery, asking = (embedded(random, count, steps, width) for count in (clips, queries))
    snapshot = index_of(gallery)
    there = mesh.OnMesh(snapshot, "a2v", sharding.local_mesh(1))
    begin = time.perf_counter()
    found = there.search(asking, K)
    first = time.perf_counter() - begin
    ms = 1e3 * median_seconds(lambda: there.search(asking, K), 3)
    expected, cpu_s = searched_by_the_cpu(snapshot, asking)
    return {
        "ms": ms,
        "bare_product_ms": 1e3 * bare_seconds(asking.audio.values, gallery.visual.values),
        "cpu_ms": 1e3 * cpu_s,
        "first_s": first,
        "clips_equal_cpu": all(
            np.array_equal(getattr(found, name), getattr(expected, name))
            for name in ("query", "segment", "row")
        ),
        "scores_equal_cpu": np.array_equal(found.score, expected.score),
    }


def searched_by_the_cpu(snapshot: Snapshot, asking: Embedded):
    """-> (what was found, seconds of it), with products on the CPU too."""
    call = partial(searching.search, snapshot, asking, "a2v", K, "sequence")
    with jax.default_device(jax.local_devices(backend="cpu")[0]):
        return call()[0], median_seconds(call, 1)


def bare_seconds(queries: np.ndarray, gallery: np.ndarray) -> float:
    """Of one product and the largest of each row, all on the device."""
    queries, gallery = (jax.device_put(x.reshape(len(x), -1)) for x in (queries, gallery))

    @jax.jit
    def bare(queries, gallery):
        return jax.lax.top_k(jnp.matmul(queries, gallery.T, precision="highest"), K)

    return median_seconds(lambda: jax.block_until_ready(bare(queries, gallery)), 3)


def embedded(random: np.random.Generator, count: int, steps: int, width: int) -> Embedded:
    """Clips of random latents, the same of both streams."""
    lengths = np.full(count, steps, np.int32)
    windows = np.stack([0 * lengths, lengths], axis=1).astype(np.float32)
    values = random.standard_normal((count, steps, width), np.float32)
    names = [f"clip{number}" for number in range(count)]
    one, means = Sequences(values, lengths, windows), values.mean(axis=1)
    spans = np.zeros(count), np.ones(count)
    return Embedded(names, names, *spans, [""] * count, one, one, means, means)


def index_of(gallery: Embedded) -> Snapshot:
    """An index in memory; comparing all needs no sketches, so none are computed."""
    width = gallery.visual.values.shape[2]
    header = make_header("benchmark", ("euclidean", {"resample": "visual_to_audio"}), "float32")
    header = dataclasses.replace(header, width=width, embedding_width=width)
    encoding = Encoding("float32", np.zeros(width, np.float32), None)
    vectors = {"embeddings": gallery.visual_embeddings}
    stored = encoding.encode(gallery.visual, vectors, np.arange(len(gallery)))
    segment = Segment.in_memory({"visual": stored}, encoding, header)
    live = {segment.number: np.ones(len(gallery), bool)}
    return Snapshot(header, {segment.number: segment}, live)
