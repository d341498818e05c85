"""VGGSound (Chen et al., ICASSP 2020) from its lists and a folder of clips.

Two kinds of list. The official `vggsound.csv` has no header and the cells `ytid,start,label,split`
with the start in whole seconds and labels quoted where they hold commas. Older lists have
`ytid_start.mp4,label` and no split: whoever names the list says which one it is (`test=LIST.csv`).

Clips last 10 s. On disk they are called `ytid_start.mp4` with the start padded to six digits, as
in `-0jeONf82dE_000021.mp4`; these are found as well, below any folder and with any suffix of a
video: no padding, and names with an end, in seconds (`ytid_21_31`) or in milliseconds
(`ytid_21000_31000`).

Validation is ours: the paper holds out 550 videos of train without saying which.
"""

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from reprlib import repr as short

from scav_jax.base.errors import InputError, check_unique
from scav_jax.base.tables import read_csv_rows
from scav_jax.datasets import clip_lists
from scav_jax.datasets.clip_lists import Listed

CLIP_SECONDS = 10
VALIDATION_CLIPS = 550  # the paper's number (section IV)
VALIDATION_SEED = "scav_jax/vggsound/validation/1"
OFFICIAL_SPLITS = ("train", "test")
_NAME = re.compile(
    r"(?P<video>[A-Za-z0-9_-]{11})_(?P<start>\d{1,9})(?:_(?P<end>\d{1,9}))?", re.ASCII
)


def clip_id(video: str, start: int) -> str:
    """The name of a clip, as VGGSounder and most downloads have it.

    >>> clip_id("-0jeONf82dE", 21)
    '-0jeONf82dE_000021'
    """
    return f"{video}_{start:06d}"


def key_of(stem: str) -> tuple[str, int] | None:
    """The video and the start in seconds of a file's name without its suffix.

    >>> key_of("-0jeONf82dE_000021"), key_of("-0jeONf82dE_21000_31000"), key_of("holiday")
    (('-0jeONf82dE', 21), ('-0jeONf82dE', 21), None)
    """
    match = _NAME.fullmatch(stem)
    if match is None:
        return None
    start = int(match["start"])
    if match["end"] is None:
        return match["video"], start
    length = int(match["end"]) - start
    if length == CLIP_SECONDS * 1000 and start % 1000 == 0:
        return match["video"], start // 1000
    return (match["video"], start) if length == CLIP_SECONDS else None


def read_lists(lists: Sequence[str]) -> tuple[list[Listed], int]:
    """The clips of one or more lists, in their order, with their official splits.

    Args:
      lists: paths; `train=PATH` or `test=PATH` for a list that has no column of splits.

    Returns:
      The clips, and how many rows say what another one says as well; a clip is taken once.

    Raises:
      InputError: a list or a row that is not of a known kind, or an id that comes again with
        another label or split.
    """
    places: dict[Listed, str] = {}
    rows = 0
    for word in lists:
        split, path = split_and_path(word)
        for where, row in _rows(path):
            places.setdefault(_parse(row, where, split), where)
            rows += 1
    if not places:
        raise InputError(f"{lists[0]}: expected at least one clip, got none")
    check_unique([clip.id for clip in places], list(places.values()))
    return list(places), rows - len(places)


def split_and_path(word: str) -> tuple[str, Path]:
    """`test=LIST` taken apart; the split is "" where none is named."""
    split, _, path = word.partition("=")
    named = split in OFFICIAL_SPLITS and not Path(word).exists()
    return (split, Path(path)) if named else ("", Path(word))


def _rows(path: Path) -> Iterator[tuple[str, list[str]]]:
    """The rows of a list and where they are, without comments and a header."""
    first = True
    for line, cells in read_csv_rows(path, "a list of VGGSound clips", clip_lists.AS_PUBLISHED):
        if not cells[0].startswith("#"):
            row = [cell.strip() for cell in cells]
            header = "label" in map(str.lower, row) and not re.search(r"\d", "".join(row))
            if not (first and header):
                yield f"{path}, line {line}", row
            first = False


def _parse(row: list[str], where: str, split: str) -> Listed:
    if len(row) == 4:
        name, official = f"{row[0]}_{row[1]}", row[3]
        if split and official != split:
            raise InputError(f"{where}: expected the split {split!r}, got {short(official)}")
        label, split = row[2], official
    elif len(row) == 2:
        name, label = re.sub(r"\.\w+$", "", row[0]), row[1]
        if not split:
            raise InputError(
                f"{where}: a list of ytid_start.mp4,label says no split; name it as test=LIST or "
                "train=LIST"
            )
    else:
        raise InputError(
            f"{where}: expected ytid,start,label,split or ytid_start.mp4,label, got {len(row)} "
            f"{'cell; commas separate them' if len(row) == 1 else 'cells; quote commas in labels'}"
        )
    match = _NAME.fullmatch(name)
    if match is None or match["end"] is not None:
        raise InputError(
            f"{where}: expected a YouTube id of 11 characters and a start in whole seconds, got "
            f"{short(row[: len(row) // 2])}"
        )
    if split not in OFFICIAL_SPLITS or not label:
        raise InputError(f"{where}: expected a label and the split train or test, got {short(row)}")
    video, start = match["video"], int(match["start"])
    name = clip_id(video, start)
    return Listed(name, video, label, split, f"{name}.mp4", (video, start))


def hold_out(wanted: Sequence[Listed], count: int = VALIDATION_CLIPS) -> list[Listed]:
    """The same clips with `count` of train moved to validation.

    Drawn from the list by hash (see `clip_lists.draw`), whatever is on disk, among the videos that
    have one clip in the whole list: validation shares no video with train or test.

    Raises:
      InputError: train has no more such clips than are to be drawn.
    """
    clips_of = Counter(clip.video for clip in wanted)
    train = [clip.id for clip in wanted if clip.split == "train"]
    if count == 0 or not train:
        return list(wanted)
    alone = [c.id for c in wanted if c.split == "train" and clips_of[c.video] == 1]
    if len(alone) <= count:
        raise InputError(
            f"--validation: expected fewer than the {len(alone):,} train videos with one clip, got "
            f"{count:,}; give a smaller number, or 0 for no validation split"
        )
    drawn = set(clip_lists.draw(alone, count, VALIDATION_SEED))
    return [replace(clip, split="validation") if clip.id in drawn else clip for clip in wanted]


def shared_videos(wanted: Sequence[Listed]) -> int:
    """How many videos have clips in train as well as in test: as the official lists have them."""
    train, test = ({c.video for c in wanted if c.split == split} for split in OFFICIAL_SPLITS)
    return len(train & test)
