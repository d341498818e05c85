"""A probe as one document, and as a table for a terminal.

`probe.json` holds

    format_version, name, run, data {path, split, n, ids_sha256},
    labels {visual, audio, both: see `labels.linear_probe`}, neighbours {the same streams},
    tasks {task: see `tasks.accuracies`}, changes {change: see `changes.fingerprint`},
    left_out {part: why}, chose_C: how many of these very clips C was chosen on

Accuracies are shares in 0..1. Labels are told from the mean over time of the latents, tasks and
changes from what the objective makes of them.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from scav_jax.base.documents import write_document
from scav_jax.base.errors import InputError
from scav_jax.base.files import ids_sha256, write_atomically
from scav_jax.features import store
from scav_jax.features.clip import STREAMS
from scav_jax.features.store import Split
from scav_jax.probe import changes, tasks
from scav_jax.probe.labels import Labelled, linear_probe, neighbours, unit_or_zero
from scav_jax.report import probed
from scav_jax.retrieval.embed import Embedded, check_features, embed, mean_latents, means_of
from scav_jax.retrieval.model import Model
from scav_jax.retrieval.results import aligned
from scav_jax.training.runs import Run

FORMAT_VERSION = 1


@dataclass(frozen=True)
class ProbeSettings:
    """How to probe.

    Attributes:
      train_split, validation_split: what labels are learned from.
      changed: of how many clips changed copies are made; 0 makes none.
      videos: the folder of the sources; None is where they were extracted from.
      weights, trust: for the backbone of the copies, as `retrieval.model.load` takes them.
      batch_size: clips embedded at a time.
    """

    train_split: str = "train"
    validation_split: str = "validation"
    changed: int = 100
    videos: Path | None = None
    weights: Mapping[str, str | Path] = field(default_factory=dict)
    trust: tuple[str, ...] = ()
    batch_size: int = 64

    def __post_init__(self):
        for name, least in (("changed", 0), ("batch_size", 1)):
            if getattr(self, name) < least:
                option = f"--{name.replace('_', '-')}"
                raise InputError(f"{option}: expected at least {least}, got {getattr(self, name)}")


def probe(run: Run, data: Path, split_name: str, settings: ProbeSettings) -> dict:
    """Every figure of a run on a split.

    Raises:
      InputError: features of another extractor, a split that there is not, sources that are gone.
    """
    split = store.read(data, split_name)
    check_features(run, split)
    videos = _videos(split, settings)  # what can be wrong is said before the work
    learned_from = _learned_from(split, settings)
    if videos is not None:
        numbers = changes.chosen(split, videos, settings.changed)
        model = Model(run, settings.weights, settings.trust)
        if settings.weights:  # what was given and cannot be used is not passed over
            _ = model.backbone
    embedded = embed(run, split, settings.batch_size, progress=True)
    left_out: dict[str, str] = {}
    found: dict = {"labels": {}, "neighbours": {}, "chose_C": 0}
    try:
        if isinstance(learned_from, InputError):
            raise learned_from
        found |= _labels(run, learned_from, embedded, settings)
        found["chose_C"] = len(set(learned_from[1].ids).intersection(split.ids))
    except InputError as error:
        left_out["labels"] = str(error)
    found["tasks"] = tasks.accuracies(run, split, settings.batch_size)
    if not found["tasks"]:
        left_out["tasks"] = f"the {run.objective.name} objective has none"
    found["changes"] = {}
    if videos is not None:
        try:
            found["changes"] = changes.fingerprint(model, embedded, split, videos, numbers)
        except InputError as error:
            left_out["changed copies"] = str(error)
        else:
            lost = [change for change in changes.CHANGES if change not in found["changes"]]
            left_out |= {change: f"all {len(numbers)} copies were rejected" for change in lost}
    return {
        "format_version": FORMAT_VERSION,
        "name": run.objective.title,
        "run": str(run.path),
        "data": {
            "path": str(split.data),
            "split": split.split,
            "n": len(split),
            "ids_sha256": ids_sha256(split.ids),
        },
        **found,
        "left_out": left_out,
    }


def _videos(split: Split, settings: ProbeSettings) -> Path | None:
    """The folder of the sources, where copies are to be made."""
    if not settings.changed:
        return None
    folder = settings.videos or (Path(split.videos) if split.videos else None)
    if folder is None or not folder.is_dir():
        got = "it does not say which" if folder is None else f"{folder} is not there"
        raise InputError(
            f"--videos: expected the folder that {split.data} was extracted from, to make changed "
            f"copies of its clips, {got}; or --changed 0, for none"
        )
    return folder


def _learned_from(split: Split, settings: ProbeSettings) -> list[Split] | InputError:
    """The splits that labels are learned from, or why not; raises it where they were asked for."""
    named = (settings.train_split, settings.validation_split)
    try:
        splits = [store.read(split.data, name) for name in named]
        if shared := len(set(splits[0].ids).intersection(split.ids)):  # each would find itself
            raise InputError(
                f"--split: expected clips that labels are not learned from, {shared:,} of them are "
                f"in {splits[0].split} too"
            )
    except InputError as error:
        if named != (ProbeSettings.train_split, ProbeSettings.validation_split):
            raise
        return error
    return splits


def _labels(
    run: Run, splits: list[Split], asked: Embedded, settings: ProbeSettings
) -> dict[str, dict]:
    """Linear probe and neighbours of each stream and of both."""
    learned = [mean_latents(run, one, settings.batch_size, progress=True) for one in splits]
    means = [*learned, {stream: means_of(getattr(asked, stream)) for stream in STREAMS}]
    labels = [*(one.labels for one in splits), asked.labels]
    found: dict[str, dict] = {"labels": {}, "neighbours": {}}
    for stream in (*STREAMS, "both"):
        parts = [
            Labelled(_of_stream(one, stream), known)
            for one, known in zip(means, labels, strict=True)
        ]
        found["labels"][stream] = linear_probe(*parts)
        found["neighbours"][stream] = neighbours(parts[0], parts[2])
    return found


def _of_stream(means: dict[str, np.ndarray], stream: str) -> np.ndarray:
    """The means of latents; of both streams, each of length 1, side by side."""
    if stream != "both":
        return means[stream]
    return np.concatenate([unit_or_zero(means[one]) for one in STREAMS], axis=1)


def write(document: dict, folder: Path) -> tuple[Path, Path]:
    """Writes probe.json and probe.html of `probe`, each whole or not at all; where they are."""
    write_document(folder / probed.FILE, document)
    write_atomically(folder / "probe.html", probed.html(document))
    return folder / probed.FILE, folder / "probe.html"


def table(document: dict) -> str:
    """The document as aligned text; shares in percent."""
    data = document["data"]
    lines = [f"{document['name']} on {data['path']}, split {data['split']}: {data['n']:,} clips"]
    for title, head, rows in probed.tables(document):
        lines += ["", title, *aligned([head, *rows], words=1)]
    for note in probed.notes(document):
        lines += ["", note]
    return "\n".join(lines)
