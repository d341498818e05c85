"""Parts of one extraction that run anywhere, at any time, and become one data set.

Videos are dealt out in turn, so that every shard has its share of every folder. A shard keeps its
work in a ledger of its own, `DATA.partial/shard-00003-of-00008`, and needs nothing of the others.
"""

import os
import re
from collections import Counter
from dataclasses import dataclass, replace

from scav_jax.base.errors import InputError, listed
from scav_jax.extract.ledger import Ledger
from scav_jax.extract.manifest import Listing
from scav_jax.features.clip import fingerprint_difference

FINISHED_FILE = "finished.json"
_NAME = re.compile("shard-[0-9]{5,9}-of-([0-9]{5,9})")


@dataclass(frozen=True)
class Shard:
    """Part `index` of `count`, from 0."""

    index: int
    count: int

    def __post_init__(self):
        if self.count < 1:
            raise InputError(f"--num-shards: expected at least 1, got {self.count}")
        if not 0 <= self.index < self.count:
            raise InputError(
                f"--shard-index: expected 0 to {self.count - 1} for --num-shards {self.count}, "
                f"got {self.index}"
            )

    def __str__(self) -> str:
        return f"shard {self.index} of {self.count}"

    def ledger(self, whole: Ledger) -> Ledger:
        """Where this shard keeps its work."""
        return Ledger(whole.folder / f"shard-{self.index:05d}-of-{self.count:05d}")

    def part(self, listing: Listing) -> Listing:
        """The clips of this shard's videos, in the order of the whole list."""
        files = set(list(listing.sizes)[self.index :: self.count])
        return replace(
            listing,
            clips=[clip for clip in listing.clips if clip.file in files],
            sizes={file: size for file, size in listing.sizes.items() if file in files},
            unreadable=[],
            passed_over=Counter(),
            origin=f"{self} of {listing.origin}",
        )


def all_shards(count: int) -> list[Shard]:
    return [Shard(index, count) for index in range(count)]


def check_division(whole: Ledger, count: int | None) -> None:
    """Raises `InputError` where other work lies: in another number of shards, or in none.

    Args:
      whole: the ledger beside the data set.
      count: of shards; None for a run without shards.
    """
    others = map(_NAME.fullmatch, os.listdir(whole.folder) if whole.folder.is_dir() else [])
    counts = sorted({int(other[1]) for other in others if other})
    if [n for n in counts if n != count]:
        this = "one without shards" if count is None else f"one in {count} shards"
        raise InputError(
            f"{whole.folder} holds the work of an extraction in {counts[0]} shards, this is "
            f"{this}: go on with --num-shards {counts[0]}, remove that folder, or use another --out"
        )
    if count is not None and whole.path_of_run().exists():
        raise InputError(
            f"{whole.folder} holds the work of an extraction without shards: go on without "
            "--num-shards, remove that folder, or use another --out"
        )


def finish(shard: Shard, whole: Ledger, clips: int, rejected: int) -> list[Shard]:
    """Notes that a shard is finished; which ones are not yet."""
    shard.ledger(whole).note(FINISHED_FILE, {"clips": clips, "rejected": rejected})
    return [other for other in all_shards(shard.count) if not is_finished(other, whole)]


def is_finished(shard: Shard, whole: Ledger) -> bool:
    return (shard.ledger(whole).folder / FINISHED_FILE).exists()


def check_complete(shards: list[Shard], whole: Ledger, manifest: str) -> dict:
    """The fingerprint of all shards; `InputError` if some are missing or do not fit the others."""
    missing = [str(shard.index) for shard in shards if not is_finished(shard, whole)]
    if missing:
        raise InputError(
            f"{whole.folder}: expected {len(shards)} finished shards, {len(missing)} are not: "
            f"{listed(missing, 20)}; run --num-shards {len(shards)} --shard-index N for each, "
            "then --merge again"
        )
    runs = [_run_of(shard, whole) for shard in shards]
    for shard, run in zip(shards, runs, strict=True):
        difference = fingerprint_difference(runs[0]["fingerprint"], run["fingerprint"])
        if difference:
            raise InputError(
                f"{whole.folder}: {shards[0]} and {shard} were made by different extractors "
                f"({difference}): remove the folder of one and run that shard again"
            )
        if run["manifest"] != manifest:
            raise InputError(
                f"{whole.folder}: {shard} was made from another list of clips (files, what is in "
                "them, the CSV, --split or --clip-seconds): give the same options, or remove that "
                "shard's folder and run it again"
            )
    return runs[0]["fingerprint"]


def _run_of(shard: Shard, whole: Ledger) -> dict:
    ledger = shard.ledger(whole)
    found = ledger.read_run()
    if found is None:
        raise InputError(
            f"{ledger.path_of_run()}: expected what {shard} was made of, it is lost or damaged: "
            "run that shard again, it finds out what is its own"
        )
    return found
