"""What was found, as one document (`--json`), from the facts of single clips.

    format_version, kind ("features" or "videos"), path, clips, hours, sources, splits {name ->
    clips, hours, labels, sources, faults}, labels {name -> {split -> clips}}, seconds and
    frame_rate (least, median, mean, most, histogram), variable_frame_rate (clips), disk {bytes,
    bytes_per_clip}, faults [stage, reason, clips, listed], duplicates {what is equal -> groups,
    clips, across_splits, listed}, near_duplicates {pairs, across_splits, listed [id, split, id,
    split, similarity]}, shared_sources {count, listed}, thresholds, about

`listed` names all of them, so that what leaks can be taken out; a page shows the first.
What cannot be used is counted under `faults` only: every other figure is of usable clips.
"""

import hashlib
import itertools
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Shaped

from scav_jax.inspect.near import Signature, near_pairs

FORMAT_VERSION = 3
BINS = 24


@dataclass(frozen=True)
class Facts:
    """The facts of one clip.

    Attributes:
      id, split, label, source: as listed.
      seconds: how long it is.
      frame_rate: in Hz; 0 where there is no picture.
      digests: what -> a digest of its content; clips with the same are duplicates in that.
      variable: its frames are not evenly spaced.
      signatures: of its streams, see `near`.
    """

    id: str
    split: str
    label: str
    source: str
    seconds: float
    frame_rate: float
    digests: dict[str, str] = field(default_factory=dict)
    variable: bool = False
    signatures: dict[str, Signature] = field(default_factory=dict, compare=False)


@dataclass(frozen=True)
class Fault:
    """A clip that cannot be used, or that looks as if it should not be.

    Attributes:
      id, split: of the clip; the split is "" where it is not known.
      stage: where it turned out.
      reason: "category" or "category: details".
    """

    id: str
    split: str
    stage: str
    reason: str


def digest(values: Shaped[np.ndarray, "..."]) -> str:
    """Of frames, sound or features: 32 hexadecimal digits."""
    return hashlib.blake2b(np.ascontiguousarray(values).tobytes(), digest_size=16).hexdigest()


def document(
    clips: Sequence[Facts],
    faults: Sequence[Fault],
    *,
    kind: str,
    path: str,
    disk_bytes: int,
    thresholds: dict[str, str],
    about: dict,
) -> dict:
    """Everything that was found (see the module).

    Args:
      clips: usable ones.
      faults: at most one for each other clip, and any for clips that are usable all the same.
      kind: "features" or "videos".
      path: what was inspected.
      disk_bytes: what it takes on disk.
      thresholds: name -> in words, where a fault begins.
      about: what else is known of it.
    """
    return {
        "format_version": FORMAT_VERSION,
        "kind": kind,
        "path": path,
        "clips": len(clips),
        "hours": _hours(clips),
        "sources": len({clip.source for clip in clips}),
        "splits": _splits(clips, faults),
        "labels": _labels(clips),
        "seconds": _spread([clip.seconds for clip in clips]),
        "frame_rate": _spread([clip.frame_rate for clip in clips]),
        "variable_frame_rate": sum(clip.variable for clip in clips),
        "disk": {"bytes": disk_bytes, "bytes_per_clip": disk_bytes // max(len(clips), 1)},
        "faults": _faults(faults),
        "duplicates": _duplicates(clips),
        "near_duplicates": _near_duplicates(clips),
        "shared_sources": _shared_sources(clips),
        "thresholds": thresholds,
        "about": about,
    }


def _hours(clips: Iterable[Facts]) -> float:
    return sum(clip.seconds for clip in clips) / 3600


def _splits(clips: Sequence[Facts], faults: Sequence[Fault]) -> dict[str, dict]:
    by_split: dict[str, list[Facts]] = defaultdict(list)
    for clip in clips:
        by_split[clip.split].append(clip)
    faulty = Counter(fault.split for fault in faults if fault.split)
    return {
        name: {
            "clips": len(by_split[name]),
            "hours": _hours(by_split[name]),
            "labels": len({clip.label for clip in by_split[name]} - {""}),
            "sources": len({clip.source for clip in by_split[name]}),
            "faults": faulty[name],
        }
        for name in dict.fromkeys([*by_split, *faulty])
    }


def _labels(clips: Sequence[Facts]) -> dict[str, dict[str, int]]:
    """Clips of each label and split, the label with most clips first; no label is ""."""
    counts: dict[str, Counter] = defaultdict(Counter)
    for clip in clips:
        counts[clip.label][clip.split] += 1
    order = sorted(counts, key=lambda label: (-counts[label].total(), label))
    return {label: dict(counts[label]) for label in order}


def _spread(values: Sequence[float]) -> dict:
    if not values:
        return {}
    low, high = min(values), max(values)
    pad = 0.5 if high - low < 1e-6 * max(high, 1.0) else 0.0
    counts, edges = np.histogram(values, BINS if not pad else 1, (low - pad, high + pad))
    most = Counter(round(value, 3) for value in values).most_common(8)
    return {
        "least": low,
        "median": float(np.median(values)),
        "mean": float(np.mean(values)),
        "most": high,
        "common": [[value, count] for value, count in most],
        "histogram": {"edges": edges.tolist(), "counts": counts.tolist()},
    }


def _faults(faults: Sequence[Fault]) -> list[dict]:
    """Faults by stage and category, the most frequent first."""
    groups: dict[tuple[str, str], list[Fault]] = defaultdict(list)
    for fault in faults:
        groups[fault.stage, fault.reason.partition(":")[0]].append(fault)
    order = sorted(groups, key=lambda key: (-len(groups[key]), key))
    return [
        {
            "stage": stage,
            "reason": reason,
            "clips": len(groups[stage, reason]),
            "listed": [[f.id, f.reason] for f in groups[stage, reason]],
        }
        for stage, reason in order
    ]


def _duplicates(clips: Sequence[Facts]) -> dict[str, dict]:
    """For each kind of digest, the strongest first: the groups of clips that share one.

    A group that lies within a group of a stronger kind says nothing new and is left out; those
    across splits come first.
    """
    found: dict[str, dict] = {}
    stronger: dict[str, set[int]] = defaultdict(set)  # id -> numbers of the groups it is in
    numbers = itertools.count()
    for kind in dict.fromkeys(kind for clip in clips for kind in clip.digests):
        groups = [
            group
            for group in _equal(clips, kind)
            if not set.intersection(*(stronger.get(clip.id, set()) for clip in group))
        ]
        for group, number in zip(groups, numbers, strict=False):
            for clip in group:
                stronger[clip.id].add(number)
        groups.sort(key=lambda group: (not _crosses(group), -len(group)))
        found[kind] = {
            "groups": len(groups),
            "clips": sum(map(len, groups)),
            "across_splits": sum(map(_crosses, groups)),
            "listed": [[[clip.id, clip.split] for clip in group] for group in groups],
        }
    return found


def _near_duplicates(clips: Sequence[Facts]) -> dict:
    """Pairs that are alike but not equal, of different sources; those across splits come first."""
    pairs = [
        (clips[i], clips[j], similarity)
        for i, j, similarity in near_pairs([clip.signatures for clip in clips])
        if clips[i].source != clips[j].source
        and not any(clips[i].digests.get(k) == d for k, d in clips[j].digests.items())
    ]
    pairs.sort(key=lambda pair: not _crosses(pair[:2]))
    return {
        "pairs": len(pairs),
        "across_splits": sum(_crosses(pair[:2]) for pair in pairs),
        "listed": [
            [one.id, one.split, other.id, other.split, round(similarity, 4)]
            for one, other, similarity in pairs
        ],
    }


def _equal(clips: Sequence[Facts], kind: str) -> list[list[Facts]]:
    """Groups of clips with the same digest; clips of one file are no copies of that file."""
    groups: dict[str, list[Facts]] = defaultdict(list)
    for clip in clips:
        if kind in clip.digests:
            groups[clip.digests[kind]].append(clip)
    if kind == "file":
        return [group for group in groups.values() if len({c.source for c in group}) > 1]
    return [group for group in groups.values() if len(group) > 1]


def _crosses(group: Sequence[Facts]) -> bool:
    return len({clip.split for clip in group}) > 1


def _shared_sources(clips: Sequence[Facts]) -> dict:
    """Files that have clips in more than one split."""
    splits: dict[str, set[str]] = defaultdict(set)
    for clip in clips:
        splits[clip.source].add(clip.split)
    shared = [[source, sorted(names)] for source, names in splits.items() if len(names) > 1]
    return {"count": len(shared), "listed": sorted(shared)}
