"""What 10 million and 1 billion clips would take: bytes, memory, latency, machines, on paper.

    python scripts/benchmarks/search.py bars scale first --out measured.json
    python scripts/benchmarks/search_scale.py measured.json

Nothing here is measured at that size. Costs of a byte read and of a product's operation are taken
from the measurements; the plan multiplies them:

* a clip takes the bytes that were measured, copied REPLICAS times;
* a node has `--disk`, `--memory` and `--cores`, and reads `--read` from its disk; clips are divided
  over nodes by segment, so a query goes to all of them and the k best are merged (a few kilobytes);
* `sequence` reads all sequences of a node for a batch of queries, from memory where they fit, and
  multiplies; `exact` reads all coarse sketches, takes a while for the bound of each clip, and reads
  of the rest what the bounds leave;
* `hybrid:K` reads all embeddings, or with an inverted list (IVF) the share `--probe` of them, then
  K sequences at random places in all.

Without a file it uses the figures of a quick run on 2 cores, and says so.
"""

import argparse
import json
import math
import sys
from dataclasses import dataclass
from pathlib import Path

REPLICAS = 2
MERGE_S = 2e-3  # a round of the network, and merging k of each node
SEEK_S = 1e-4  # a random read of a solid-state disk
# Of a quick run on 2 shared cores: bytes a second that a scan of int8 reads, operations a second.
# And seconds of a core that the bound of one clip takes, whatever its length.
DEFAULT = {"scan_bytes_per_s": 3e9, "flops": 6e10, "cores": 2, "pruned": 0.95, "bound_s": 8e-7}


@dataclass(frozen=True)
class ClipBytes:
    """Bytes of one clip in both streams' files, and numbers of one stream."""

    name: str
    sequence: int
    embedding: int
    coarse: int
    other: int
    numbers: int

    @property
    def total(self) -> int:
        return 2 * (self.sequence + self.embedding + self.coarse) + self.other


def clip(name: str, steps: int, width: int, size: int) -> ClipBytes:
    """What the format stores: sequences, embeddings, sketches and rows."""
    fine = max(steps * width // 8, width)
    padded = [-(-n // 64) * 64 for n in (steps * width * size, 2 * width, 2 * width, fine)]
    rows = 2 * (96 + padded[3]) + 8 + 60
    return ClipBytes(name, padded[0], padded[1], padded[2], rows, steps * width)


PRESETS = (
    clip("62 x 512, float32", 62, 512, 4),
    clip("62 x 512, int8", 62, 512, 1),
    clip("16 x 64, int8", 16, 64, 1),
)


def measured(path: Path | None) -> dict:
    """Costs of this machine."""
    costs = dict(DEFAULT)
    if path is None:
        print("no file of measurements: figures of a quick run on 2 shared cores\n")
        return costs
    found = json.loads(path.read_text())
    costs["cores"] = found["cores"]
    if "bars" in found and not found["quick"]:
        costs["flops"] = 2 * 1000 * 10_000 * 62 * 512 / found["bars"]["exhaustive"]
    for clips, one in sorted(found.get("scale", {}).items(), key=lambda pair: int(pair[0])):
        costs["scan_bytes_per_s"] = int(clips) * 16 * 64 / one["sequence"]["p50"]
        costs["pruned"] = one["exact"]["pruned"] or costs["pruned"]
        costs["bound_s"] = one["exact"]["p50"] / int(clips) * costs["cores"]
    return costs


def plan(clips: int, what: ClipBytes, costs: dict, node: argparse.Namespace) -> dict:
    """One node's share, and what a query costs there; all nodes work at once."""
    total = clips * what.total
    nodes = max(math.ceil(REPLICAS * total / node.disk), node.nodes)
    share = clips * REPLICAS / nodes
    speed = node.cores / costs["cores"]
    scan = costs["scan_bytes_per_s"] * speed
    flops = costs["flops"] * speed

    def seconds(read: float, operations: float) -> float:
        fits = share * (what.total) <= node.memory
        return max(read / (scan if fits else min(scan, node.read)), operations / flops) + MERGE_S

    # One copy of each clip answers, so of a node's clips only one in REPLICAS is asked at a time.
    asked = share / REPLICAS
    embeddings = asked * what.embedding
    chosen = node.k * what.sequence / nodes + node.k / nodes * SEEK_S * node.read / 32
    left = 1 - costs["pruned"]
    return {
        "clips": clips,
        "preset": what.name,
        "bytes": total * REPLICAS,
        "nodes": nodes,
        "node_bytes": share * what.total,
        "sequence": seconds(asked * what.sequence, 2 * asked * what.numbers),
        "exact": seconds(asked * (what.coarse + left * what.sequence), 0.0)
        + asked * costs["bound_s"] / node.cores,
        "hybrid": seconds(embeddings + chosen, 2 * asked * what.embedding / 2),
        "hybrid_ivf": seconds(node.probe * embeddings + chosen, 0.0),
        "thousand": seconds(asked * what.sequence, 2000 * asked * what.numbers),
    }


def size(count: float) -> str:
    for unit in ("B", "KB", "MB", "GB", "TB", "PB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} EB"


def duration(seconds: float) -> str:
    if seconds < 1:
        return f"{1e3 * seconds:.3g} ms"
    return f"{seconds:.3g} s" if seconds < 600 else f"{seconds / 3600:.3g} h"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("measured", type=Path, nargs="?", help="JSON of search.py")
    add = parser.add_argument
    add("--disk", type=float, default=8e12, help="bytes of a node's disk (default 8e12)")
    add("--memory", type=float, default=256e9, help="bytes of its memory (default 256e9)")
    add("--read", type=float, default=3e9, help="bytes a second of its disk (default 3e9)")
    add("--cores", type=int, default=32, help="of a node (default 32)")
    add("--nodes", type=int, default=1, help="at least so many (default: as few as hold it)")
    add("--probe", type=float, default=0.01, help="share of embeddings that IVF reads")
    add("--k", type=int, default=1000, help="of hybrid search (default 1000)")
    add("--quick", action="store_true", help="the same: nothing is measured")
    add("--out", type=Path, help="JSON")
    arguments = parser.parse_args()
    costs = measured(arguments.measured)
    print(
        f"measured on {costs['cores']} cores: {size(costs['scan_bytes_per_s'])}/s scanned, "
        f"{costs['flops'] / 1e9:.3g} GFLOP/s, bounds rule out {costs['pruned']:.1%}; a node has "
        f"{arguments.cores} cores, {size(arguments.memory)} memory, {size(arguments.disk)} disk at "
        f"{size(arguments.read)}/s; {REPLICAS} copies\n"
    )
    plans = []
    columns = ("sequence", "exact", "hybrid", "hybrid_ivf", "thousand")
    head = ["clips", "preset", "bytes", "nodes", "of a node", *columns[:4], "1,000 sequence"]
    print(" | ".join(head))
    for clips in (10**7, 10**9):
        for what in PRESETS:
            one = plan(clips, what, costs, arguments)
            plans.append(one)
            words = [f"{clips:,}", what.name, size(one["bytes"]), f"{one['nodes']:,}"]
            words += [size(one["node_bytes"]), *(duration(one[name]) for name in columns)]
            print(" | ".join(words))
    if arguments.out:
        arguments.out.write_text(json.dumps({"costs": costs, "plans": plans}, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
