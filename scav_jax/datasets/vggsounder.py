"""VGGSounder (Zverev et al., ICCV 2025): what else is heard and seen in VGGSound's test clips.

Its CSV has a row for each clip and class, `video_id,label,modality,background_music,static_image,
voice_over`, where the modality says whether the class is heard (A), seen (V) or both (AV) and the
last three are facts about the clip. Beside a list `clips.csv` it becomes `annotations.csv`,
keyed by the clips' ids: `id,label,audible,visible,background_music,static_image,voice_over` with 1
and 0.
"""

from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from scav_jax.base.errors import InputError
from scav_jax.base.tables import Table
from scav_jax.datasets import clip_lists
from scav_jax.datasets.vggsound import clip_id, key_of

FACTS = ("background_music", "static_image", "voice_over")
SOURCE_COLUMNS = ("video_id", "label", "modality", *FACTS)
COLUMNS = ("id", "label", "audible", "visible", *FACTS)
MODALITIES = {"A": (True, False), "V": (False, True), "AV": (True, True)}


@dataclass(frozen=True)
class Annotation:
    """What is known of one clip.

    Attributes:
      audible: the classes that are heard, in the order of the file.
      visible: the classes that are seen.
      background_music: music was laid under the clip.
      static_image: the picture is a still.
      voice_over: somebody speaks who is not part of the scene.
    """

    audible: tuple[str, ...]
    visible: tuple[str, ...]
    background_music: bool
    static_image: bool
    voice_over: bool


def read_vggsounder(path: Path) -> dict[str, Annotation]:
    """The annotations of a VGGSounder CSV by the clip's id (see `vggsound.clip_id`)."""
    booleans = {"True": True, "False": False}
    rows = []
    for where, row in _read(path, SOURCE_COLUMNS, "VGGSounder annotations"):
        key = key_of(row["video_id"])
        if key is None or row["modality"] not in MODALITIES:
            raise InputError(
                f"{where}: expected ytid_start and one of {', '.join(MODALITIES)}, got "
                f"{row['video_id']!r} and {row['modality']!r}"
            )
        audible, visible = MODALITIES[row["modality"]]
        facts = _facts(row, where, booleans)
        rows.append((where, clip_id(*key), row["label"], audible, visible, facts))
    return _gather(rows)


def read_annotations(path: Path) -> dict[str, Annotation]:
    """The annotations that `write_annotations` wrote, by the clip's id."""
    booleans = {"1": True, "0": False}
    rows = []
    for where, row in _read(path, COLUMNS, "annotations of clips"):
        audible, visible, *facts = _facts(row, where, booleans, COLUMNS[2:])
        rows.append((where, row["id"], row["label"], audible, visible, tuple(facts)))
    return _gather(rows)


def divisions(
    annotations: dict[str, Annotation], ids: Sequence[str], labels: Sequence[str]
) -> tuple[tuple[str, ...], ...]:
    """Ways to divide clips: by where their own class is found, and by each of `FACTS`.

    Returns:
      Of each way, the part that each clip is in; "" for clips that are not annotated.

    Raises:
      InputError: not one of the clips is annotated.
    """
    if not annotations.keys() & set(ids):
        raise InputError(
            f"--annotations: expected annotations of clips of the split, none of its {len(ids):,} "
            f"clips (such as {ids[0]}) is among the {len(annotations):,}"
        )
    known = [annotations.get(name) for name in ids]
    where = {
        (True, True): "class heard and seen",
        (True, False): "class heard only",
        (False, True): "class seen only",
        (False, False): "class neither heard nor seen",
    }
    ways = [
        [
            where[label in one.audible, label in one.visible] if one and label else ""
            for one, label in zip(known, labels, strict=True)
        ]
    ]
    for fact in FACTS:
        words = {True: fact.replace("_", " "), False: f"no {fact.replace('_', ' ')}"}
        ways.append([words[getattr(one, fact)] if one else "" for one in known])
    return tuple(map(tuple, ways))


def write_annotations(
    path: Path, annotations: dict[str, Annotation], ids: Collection[str]
) -> tuple[int, int]:
    """Writes the annotations of the clips `ids`, in their order.

    Returns:
      How many of the clips are annotated, and how many annotated clips are not among them.

    Raises:
      InputError: not one of the clips is annotated.
    """
    known = [name for name in ids if name in annotations]
    if not known:
        raise InputError(
            f"--vggsounder: expected annotations of clips of the list, none of its "
            f"{len(annotations):,} clips (such as {next(iter(annotations), 'none')}) is in it"
        )
    rows = [row for name in known for row in _rows_of(name, annotations[name])]
    clip_lists.write_csv(path, COLUMNS, rows)
    return len(known), len(annotations) - len(known)


def _rows_of(name: str, annotation: Annotation) -> Iterable[dict]:
    facts = {fact: int(getattr(annotation, fact)) for fact in FACTS}
    for label in dict.fromkeys(annotation.audible + annotation.visible):
        heard, seen = label in annotation.audible, label in annotation.visible
        yield {"id": name, "label": label, "audible": int(heard), "visible": int(seen), **facts}


def _read(path: Path, columns: tuple[str, ...], what: str) -> Iterator[tuple[str, dict[str, str]]]:
    table = Table(path, what, clip_lists.AS_PUBLISHED)
    table.check(columns)
    for line, row in table.rows():
        if not row["label"]:
            raise InputError(f"{path}, line {line}: expected a label, got an empty cell")
        yield f"{path}, line {line}", row


def _facts(row: dict, where: str, booleans: dict[str, bool], names=FACTS) -> tuple[bool, ...]:
    for name in names:
        if row[name] not in booleans:
            known = " or ".join(booleans)
            raise InputError(f"{where}: {name}: expected {known}, got {row[name]!r}")
    return tuple(booleans[row[name]] for name in names)


def _gather(rows: list[tuple]) -> dict[str, Annotation]:
    """One annotation a clip; the same class twice, or facts that differ, are an `InputError`."""
    gathered: dict[str, tuple[list[str], list[str], tuple]] = {}
    seen: set[tuple[str, str]] = set()
    for where, name, label, audible, visible, facts in rows:
        heard, shown, known = gathered.setdefault(name, ([], [], facts))
        if (name, label) in seen or known != facts:
            raise InputError(
                f"{where}: expected each class of a clip once and the same facts in all its rows, "
                f"got {label!r} of {name} {'twice' if known == facts else 'with other facts'}"
            )
        seen.add((name, label))
        heard += [label] * audible
        shown += [label] * visible
    return {
        name: Annotation(tuple(heard), tuple(shown), *facts)
        for name, (heard, shown, facts) in gathered.items()
    }
