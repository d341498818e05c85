"""How fast is a search over an index, and how much does it leave out?

    python scripts/benchmarks/search.py bars            1,000 queries x 10,000 clips of 62 x 512
    python scripts/benchmarks/search.py exact           pruned share and speed, 10 k and 100 k clips
    python scripts/benchmarks/search.py table   --run RUN --data DATA --split test
    python scripts/benchmarks/search.py storage --run RUN --data DATA --split test
    python scripts/benchmarks/search.py scale           100 k and 1 M clips of 16 x 64, int8
    python scripts/benchmarks/search.py first           the first stage: products or LanceDB

`--quick` makes everything small, to see that it runs. Results are printed as they come, and written
with `--out FILE` as JSON; `search_scale.py` reads that.

Latents are generated with structure, as trained ones have: a clip belongs to one of 500 kinds; a
kind is a vector plus a random walk over time; a clip adds a random walk of its own, shared by both
its streams; each stream adds noise; each step is then normalised over channels, as by the encoders'
last layer. `--spread` says how large a clip's own walk is beside its kind's.
"""

import argparse
import json
import os
import resource
import shutil
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import numpy as np

from scav_jax.base.files import write_json
from scav_jax.index import Index, create, open_index
from scav_jax.retrieval.embed import Embedded
from scav_jax.sequences import Sequences

KINDS = 500
CHUNK_BYTES = 2**28


def generate(first: int, count: int, steps: int, width: int, spread: float = 0.7) -> Embedded:
    """Clips `first` to `first + count`; see the module."""
    kinds = np.random.default_rng(1)
    means = kinds.standard_normal((KINDS, 1, width), dtype=np.float32)
    walks = _walks(kinds, KINDS, steps, width)
    random = np.random.default_rng([2, first])
    kind = random.integers(0, KINDS, count)
    own = random.standard_normal((count, 1, width), dtype=np.float32)
    common = means[kind] + walks[kind] + spread * (own + _walks(random, count, steps, width))
    streams = {}
    for name in ("visual", "audio"):
        values = common + 0.5 * random.standard_normal(common.shape, dtype=np.float32)
        values -= values.mean(axis=2, keepdims=True)
        values /= np.sqrt(np.square(values).mean(axis=2, keepdims=True))
        lengths = np.full(count, steps, np.int32)
        windows = np.stack([0 * lengths, lengths], axis=1).astype(np.float32)
        streams[name] = Sequences(values, lengths, windows)
        streams[f"{name}_embeddings"] = values.mean(axis=1)
    numbers = range(first, first + count)
    return Embedded(
        ids=[f"clip{number:09d}" for number in numbers],
        sources=[f"videos/{number // 6:08d}.mp4" for number in numbers],
        starts=np.arange(first, first + count) % 6 * 10.0,
        ends=np.arange(first, first + count) % 6 * 10.0 + 10.0,
        labels=[f"kind {one}" for one in kind],
        **streams,
    )


def _walks(random, count: int, steps: int, width: int) -> np.ndarray:
    moves = random.standard_normal((count, steps, width), dtype=np.float32)
    return np.cumsum(moves, axis=1) / np.float32(np.sqrt(steps))


def build(path: Path, count: int, steps: int, width: int, storage: str, spread: float) -> dict:
    """An index of generated clips; how fast it was built, and what it takes."""
    index = create(path, identity="generated", storage=storage)
    chunk = max(min(count, CHUNK_BYTES // (4 * steps * width)), 1)
    generating = adding = 0.0
    for first in range(0, count, chunk):
        begin = time.perf_counter()
        part = generate(first, min(chunk, count - first), steps, width, spread)
        generating += time.perf_counter() - begin
        begin = time.perf_counter()
        index.add(part)
        adding += time.perf_counter() - begin
    size = index.info()["bytes"]
    return {
        "clips": count,
        "clips_per_second": count / adding,
        "bytes_per_clip": size / count,
        "payload_bytes_per_clip": 2
        * steps
        * width
        * {"float32": 4, "bfloat16": 2, "int8": 1}[storage],
        "seconds_generating": generating,
    }


def ask(count: int, steps: int, width: int, spread: float) -> Embedded:
    """Queries: unseen clips of the same kinds."""
    return generate(10**9, count, steps, width, spread)


def best(function, repeats: int = 3) -> float:
    """Seconds of the fastest of a few runs."""
    seconds = []
    for _ in range(repeats):
        begin = time.perf_counter()
        function()
        seconds.append(time.perf_counter() - begin)
    return min(seconds)


def own_memory() -> int:
    """Bytes that this process has to itself: mapped files are the system's."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("RssAnon"):
            return int(line.split()[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def forget(path: Path) -> None:
    """Takes an index out of the system's cache of files, as far as it allows."""
    for file in path.rglob("*"):
        if file.is_file():
            handle = os.open(file, os.O_RDONLY)
            os.fdatasync(handle)
            os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
            os.close(handle)


def say(name: str, value, unit: str = "") -> None:
    shown = f"{value:,.4g}" if isinstance(value, float) else value
    print(f"  {name:<52} {shown} {unit}", flush=True)


# ---- the bars of 1,000 x 10,000 ----------------------------------------------------------------


def bars(arguments, folder: Path) -> dict:
    clips, queries, steps, width = (400, 60, 62, 64) if arguments.quick else (10_000, 1000, 62, 512)
    print(f"{queries} queries x {clips} clips of {steps} x {width}, float32")
    found = build(folder / "bars", clips, steps, width, "float32", arguments.spread)
    index, asking = open_index(folder / "bars"), ask(queries, steps, width, arguments.spread)
    found |= naive(index, asking, clips)
    search = lambda retrieval, k=10: index.search(asking, "a2v", k, retrieval)  # noqa: E731
    begin = time.perf_counter()
    search("sequence")
    found["exhaustive_first"] = time.perf_counter() - begin
    found["exhaustive"] = best(lambda: search("sequence"))
    say("exhaustive, the first time (checks every byte)", found["exhaustive_first"], "s")
    say("exhaustive", found["exhaustive"], "s")
    for name, bar in (("gemm", "<= 1.25"), ("naive_blocked", ">= 20"), ("broadcasting", ">= 250")):
        ratio = found["exhaustive"] / found[name]
        found[f"against_{name}"] = ratio if name == "gemm" else 1 / ratio
        say(f"against {name} (bar {bar})", found[f"against_{name}"])
    found["exact"] = best(lambda: search("exact"))
    found["exact_pruned"] = index.report.pruning.share
    say("exact", found["exact"], f"s, {found['exact_pruned']:.1%} pruned")
    truth = search("sequence")
    assert search("exact") == truth, "exact differs from exhaustive"
    found["hybrid"] = []
    for k in [k for k in (1, 10, 30, 100, 300, 600, 1000, 3000, 10_000) if k <= clips]:
        seconds = best(lambda k=k: search(f"hybrid:{k}", min(k, 10)), 2)
        method, hits = index.report.method, search(f"hybrid:{k}", min(k, 10))
        right = np.mean([a[0].id == b[0].id for a, b in zip(hits, truth, strict=True)])
        ratio = seconds / found["exhaustive"]
        found["hybrid"].append({"k": k, "seconds": seconds, "of_exhaustive": ratio, "top1": right})
        say(f"hybrid:{k} ({method}), of exhaustive", ratio, f"  {seconds:.3f} s, top-1 {right:.3f}")
    return found


def naive(index: Index, asking: Embedded, clips: int) -> dict:
    """What others do, in memory: one product; differences, in blocks and plainly."""
    import jax
    import jax.numpy as jnp

    q = asking.audio.values.reshape(len(asking.ids), -1)
    parts = [
        s.streams["visual"].read("values", slice(0, len(s)))
        for s in index.snapshot.segments.values()
    ]
    x = np.concatenate(parts)
    found = {"gemm_numpy": best(lambda: q @ x.T)}
    multiply = jax.jit(lambda a, b: jnp.matmul(a, b.T, precision=jax.lax.Precision.HIGHEST))
    a, b = jnp.asarray(q), jnp.asarray(x)
    multiply(a, b).block_until_ready()
    found["gemm_xla"] = best(lambda: multiply(a, b).block_until_ready())
    found["gemm"] = min(found["gemm_numpy"], found["gemm_xla"])
    work = 2 * len(q) * len(x) * q.shape[1]
    say(
        "bare product, NumPy",
        found["gemm_numpy"],
        f"s, {work / found['gemm_numpy'] / 1e9:.1f} GFLOP/s",
    )
    say("bare product, XLA", found["gemm_xla"], f"s, {work / found['gemm_xla'] / 1e9:.1f} GFLOP/s")
    few, some = min(20, len(q)), min(60, len(x))
    share = len(q) * len(x) / (few * some)

    def broadcasting():
        return np.square(q[:few, None] - x[None, :some]).mean(axis=2)

    def blocked():
        """Differences of one pair at a time: operands and result stay in the cache."""
        out, room = np.empty((few, some), np.float32), np.empty(q.shape[1], np.float32)
        for j in range(some):
            for i in range(few):
                np.subtract(q[i], x[j], out=room)
                out[i, j] = np.dot(room, room)
        return out

    found["broadcasting"] = best(broadcasting) * share
    found["naive_blocked"] = best(blocked) * share
    note = f"s (extrapolated from {few} x {some})"
    say("NumPy broadcasting", found["broadcasting"], note)
    say("differences in the cache", found["naive_blocked"], note)
    return found


# ---- exact -------------------------------------------------------------------------------------


def exact(arguments, folder: Path) -> dict:
    found = {}
    sizes = (1000, 3000) if arguments.quick else (10_000, 100_000)
    for clips in sizes:
        path = folder / f"exact{clips}"
        build(path, clips, arguments.steps, arguments.width, arguments.storage, arguments.spread)
        index = open_index(path)
        for queries in (1, 10, 100, 1000):
            asking = ask(queries, arguments.steps, arguments.width, arguments.spread)
            results, seconds = {}, {}
            for method in ("sequence", "exact"):
                results[method] = index.search(asking, "a2v", 10, method)
                seconds[method] = best(
                    lambda m=method, i=index, a=asking: i.search(a, "a2v", 10, m)
                )
            assert results["sequence"] == results["exact"]
            one = index.report.pruning
            after = {
                "pruned": one.share,
                "after_coarse": one.after_coarse / max(one.pairs, 1),
                **seconds,
            }
            found[f"{clips}x{queries}"] = after
            faster = seconds["sequence"] / seconds["exact"]
            say(
                f"{clips} clips, {queries} queries: pruned",
                f"{one.share:.2%}",
                f"(coarse sketches leave {after['after_coarse']:.2%}), {faster:.2f} times as fast",
            )
        shutil.rmtree(path)
    return found


# ---- storage -----------------------------------------------------------------------------------


def trained_clips(arguments) -> Embedded:
    """Of a trained model where one is given."""
    if arguments.run is None:
        print("no --run: generated latents")
        clips = generate(0, 300 if arguments.quick else 3000, 24, 64, arguments.spread)
        return replace(clips, ids=list(clips.ids))
    from scav_jax.features import store
    from scav_jax.retrieval.embed import embed
    from scav_jax.training.runs import load_run

    return embed(load_run(arguments.run), store.read(arguments.data, arguments.split))


def table(arguments, folder: Path) -> dict:
    """The paper's Table III: R@1 and time over K, all clips asking for their other stream."""
    clips = trained_clips(arguments)
    index = create(folder / "table", identity="any", storage="float32")
    index.add(clips)
    ks = [k for k in (1, 10, 100, 1000) if k < len(clips.ids)]
    methods = ["aggregation", *(f"hybrid:{k}" for k in ks), "sequence", "exact"]
    print(f"{len(clips.ids)} clips, all of them as queries at once; R@1 A->V, V->A; s A->V")
    found = {}
    for method in methods:
        row = {}
        for direction in ("a2v", "v2a"):
            hits = index.search(clips, direction, 1, method)
            row[direction] = np.mean([a[0].id == i for a, i in zip(hits, clips.ids, strict=True)])
        row["seconds"] = best(lambda m=method: index.search(clips, "a2v", 1, m))
        row["done"] = index.report.method
        note = "" if row["done"] in method else f"(compares all: {row['done']})"
        say(method, f"{row['a2v']:.1%}  {row['v2a']:.1%}  {row['seconds']:.3f} s", note)
        found[method] = row
    return found


def storage(arguments, folder: Path) -> dict:
    """Agreement of rounded storage with float32, on a trained model where one is given."""
    clips, hits = trained_clips(arguments), {}
    found: dict = {"clips": len(clips.ids)}
    for name in ("float32", "bfloat16", "int8"):
        index = create(folder / f"storage-{name}", identity="any", storage=name)
        index.add(clips)
        found[f"{name}_bytes_per_clip"] = index.info()["bytes"] / len(index)
        hits[name] = {d: index.search(clips, d, 10, "sequence") for d in ("a2v", "v2a")}
        for direction in ("a2v", "v2a"):
            assert index.search(clips, direction, 10, "exact") == hits[name][direction]
            found[f"{name}_{direction}_pruned"] = index.report.pruning.share
            pairs = list(zip(hits[name][direction], hits["float32"][direction], strict=True))
            agree = float(np.mean([a[0].id == b[0].id for a, b in pairs]))
            own = [a[0].id == i for a, i in zip(hits[name][direction], clips.ids, strict=True)]
            ten = [len({x.id for x in a} & {x.id for x in b}) / len(b) for a, b in pairs]
            found[f"{name}_{direction}"] = {
                "top1_agreement": agree,
                "top10_overlap": float(np.mean(ten)),
                "recall_at_1": float(np.mean(own)),
            }
            say(
                f"{name} {direction}: top-1 agreement (bar 0.99)",
                agree,
                f"top-10 {np.mean(ten):.4f}, R@1 {np.mean(own):.4f}, "
                f"exact pruned {found[f'{name}_{direction}_pruned']:.1%}",
            )
        say(f"{name}: bytes a clip", found[f"{name}_bytes_per_clip"])
    return found


# ---- scale -------------------------------------------------------------------------------------


def scale(arguments, folder: Path) -> dict:
    found = {}
    sizes = (2000, 5000) if arguments.quick else (100_000, 1_000_000)
    steps, width = arguments.steps, arguments.width
    for clips in sizes:
        path = folder / f"scale{clips}"
        one = build(path, clips, steps, width, arguments.storage, arguments.spread)
        print(f"{clips:,} clips of {steps} x {width}, {arguments.storage}")
        say("built, clips a second", one["clips_per_second"])
        say(
            "disk, bytes a clip",
            one["bytes_per_clip"],
            f"({one['payload_bytes_per_clip']} are sequences)",
        )
        many = ask(100 if arguments.quick else 1000, steps, width, arguments.spread)
        forget(path)
        before = own_memory()
        begin = time.perf_counter()
        index = open_index(path)
        one["open_cold"] = time.perf_counter() - begin
        say("open, cold", one["open_cold"], "s")
        for method in ("aggregation", "hybrid:100", "hybrid:1000", "exact", "sequence"):
            one[method] = latency(path, many, method, arguments.quick)
            show = one[method]
            say(
                f"{method}: one query cold / p50 / p99",
                f"{show['cold'] * 1e3:.1f} / {show['p50'] * 1e3:.1f} / {show['p99'] * 1e3:.1f} ms;",
                f"{len(many.ids)} together {show['together']:.2f} s; own memory "
                f"{(show['memory'] - before) / 2**20:.0f} MiB",
            )
        one["memory_before"] = before
        one["first_stage_recall"] = recalls(index, many)
        for k, share in one["first_stage_recall"].items():
            say(f"first stage at k = {k}: recall of the right 10 / of the nearest", share)
        begin = time.perf_counter()
        list(index._rows.places("label = 'kind 7'"))
        one["filter"] = time.perf_counter() - begin
        say("a filter", one["filter"], "s")
        found[str(clips)] = one
        shutil.rmtree(path)
    return found


def latency(path: Path, many: Embedded, method: str, quick: bool) -> dict:
    """Seconds of one query, cold and warm, and of all together."""

    single = [many.take([number]) for number in range(10 if quick else 50)]
    forget(path)
    index = open_index(path)
    begin = time.perf_counter()
    index.search(single[0], "a2v", 10, method)
    cold = time.perf_counter() - begin
    index.search(single[0], "a2v", 10, method)
    seconds = []
    for one in single:
        begin = time.perf_counter()
        index.search(one, "a2v", 10, method)
        seconds.append(time.perf_counter() - begin)
        if sum(seconds) > 60:
            break
    begin = time.perf_counter()
    index.search(many, "a2v", 10, method)
    together = time.perf_counter() - begin
    share = index.report.pruning.share
    return {
        "cold": cold,
        "p50": float(np.percentile(seconds, 50)),
        "p99": float(np.percentile(seconds, 99)),
        "together": together,
        "pruned": share,
        "method": index.report.method,
        "memory": own_memory(),
    }


def recalls(index: Index, many: Embedded) -> dict:
    """Of the exact ten and of the exact first, how many the first stage has."""

    some = many.take(list(range(min(100, len(many.ids)))))
    truth = index.search(some, "a2v", 10, "exact")
    first = index.search(some, "a2v", min(3000, len(index)), "aggregation")
    result = {}
    for k in (10, 100, 300, 1000, 3000):
        sets = [{one.id for one in found[:k]} for found in first]
        ten = [len({o.id for o in t} & s) / len(t) for t, s in zip(truth, sets, strict=True)]
        one = [t[0].id in s for t, s in zip(truth, sets, strict=True)]
        result[str(k)] = f"{np.mean(ten):.3f} / {np.mean(one):.3f}"
    return result


# ---- the first stage ---------------------------------------------------------------------------


def first(arguments, folder: Path) -> dict:
    """Cosine top-100: our product over mapped files, LanceDB without and with an index."""
    import lancedb
    import pyarrow as pa

    from scav_jax.sequences import unit

    clips, width = (3000, 64) if arguments.quick else (100_000, 512)
    path = folder / "first"
    build(path, clips, 2, width, "float32", arguments.spread)
    index, asking = open_index(path), ask(100, 2, width, arguments.spread)
    index.search(asking, "a2v", 100, "aggregation")
    found = {"ours_100": best(lambda: index.search(asking, "a2v", 100, "aggregation")) / 100}

    one = asking.take([0])
    found["ours_1"] = best(lambda: index.search(one, "a2v", 100, "aggregation"))
    vectors = np.concatenate(
        [
            s.streams["visual"].read("embeddings", slice(0, len(s)))
            for s in index.snapshot.segments.values()
        ]
    )
    values = pa.FixedSizeListArray.from_arrays(pa.array(vectors.ravel()), width)
    table = lancedb.connect(str(folder / "first.lance")).create_table(
        "vectors", pa.table({"number": np.arange(clips), "vector": values})
    )
    queries = unit(asking.audio_embeddings)

    def lance():
        for query in queries[:10]:
            search = table.search(query).metric("cosine").select(["number", "_distance"])
            search.limit(100).to_arrow()

    found["lance_flat"] = best(lance) / 10
    for name, value in found.items():
        say(f"cosine top-100 of {clips}, {name}", 1e3 * value, "ms a query")
    shutil.rmtree(path)
    return found


PARTS = {
    "bars": bars,
    "table": table,
    "exact": exact,
    "storage": storage,
    "scale": scale,
    "first": first,
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("parts", nargs="*", help=f"of {', '.join(PARTS)}; default: all")
    parser.add_argument("--quick", action="store_true", help="small, to see that it runs")
    parser.add_argument("--run", type=Path, help="a trained model, for storage")
    parser.add_argument("--data", type=Path)
    parser.add_argument("--split", default="test")
    parser.add_argument("--steps", type=int, default=16, help="of exact and scale (default 16)")
    parser.add_argument("--width", type=int, default=64, help="of exact and scale (default 64)")
    parser.add_argument("--storage", default="int8", help="of exact and scale (default int8)")
    parser.add_argument("--spread", type=float, default=0.7, help="see above (default 0.7)")
    parser.add_argument("--folder", type=Path, help="where indexes are made; default: temporary")
    parser.add_argument("--out", type=Path, help="JSON")
    arguments = parser.parse_args()
    unknown = set(arguments.parts) - set(PARTS)
    if unknown:
        parser.error(f"expected parts of {', '.join(PARTS)}, got {', '.join(sorted(unknown))}")
    found = {"quick": arguments.quick, "command": " ".join(sys.argv[1:]), "cores": os.cpu_count()}
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        for name in arguments.parts or PARTS:
            print(f"\n{name}", flush=True)
            found[name] = PARTS[name](arguments, Path(folder))
    if arguments.out:
        write_json(arguments.out, json.loads(json.dumps(found, default=float)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
