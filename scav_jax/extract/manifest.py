"""What is to be extracted: a folder of videos, or a CSV of clips, as one checked list."""

import functools
import hashlib
import itertools
import json
import math
import os
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from reprlib import repr as short  # of cells, which may be as long as the file

from scav_jax.base.documents import content_sample
from scav_jax.base.errors import InputError, check_unique, counted, did_you_mean
from scav_jax.base.files import walked
from scav_jax.base.names import is_text, shown
from scav_jax.base.progress import progress_bar
from scav_jax.base.ranges import read_number
from scav_jax.base.tables import Table, named
from scav_jax.features.clip import DEFAULT_SPLIT, check_splits

COLUMNS = ("file", "start", "end", "id", "label", "split")
DEFAULT_CSV = "clips.csv"
# Containers that FFmpeg reads and that hold pictures and sound.
_SUFFIXES = (
    ".3g2 .3gp .asf .avi .divx .dv .f4v .flv .m2t .m2ts .m4v .mkv .mov .mp4 .mpeg .mpg .mts .mxf "
    ".nut .ogm .ogv .rm .rmvb .ts .vob .webm .wmv .wtv"
)
VIDEO_SUFFIXES = frozenset(_SUFFIXES.split())
# Files of sound alone, which are wanted where no picture is needed.
_SOUNDS = (
    ".aac .ac3 .aif .aifc .aiff .amr .ape .au .caf .flac .m4a .mka .mp2 .mp3 .oga .ogg .opus .w64 "
    ".wav .weba .wma .wv"
)
SOUND_SUFFIXES = frozenset(_SOUNDS.split())
NO_TEXT = "name: its bytes are no text in UTF-8, which ids are; rename"
SAMPLERS = 16  # files that are looked at together
MANY_FILES = 256  # opening so many takes seconds
MOST_SECONDS = 1e8
LAST_CLIP_TOLERANCE_S = 0.1  # declared lengths fall short of whole clips by a few frames


@dataclass(frozen=True)
class ClipRequest:
    """One clip that is wanted.

    Attributes:
      file: the video, relative to the folder of videos, with forward slashes.
      start: in seconds of the file.
      end: in seconds; None means to the end of the file.
      id: unique in the list.
      label: its class, or "".
      split: which part of the data set it belongs to.
    """

    file: str
    start: float
    end: float | None
    id: str
    label: str = ""
    split: str = DEFAULT_SPLIT

    def rejection(self, stage: str, reason: str) -> dict:
        """The row of rejected.csv that says why there are no features of this clip."""
        end = "" if self.end is None else f"{self.end:g}"
        where = {"file": self.file, "start": f"{self.start:g}", "end": end, "id": self.id}
        return {**where, "stage": stage, "reason": reason}


@dataclass(frozen=True)
class Listing:
    """The clips that are wanted, in the order that the data set will have, and how they came.

    Attributes:
      clips: whole videos (start 0, end None) are still to be cut when `clip_seconds` is given.
      clip_seconds: into clips of which length to cut them, or None.
      sizes: bytes of each file, -1 where it is missing.
      unreadable: rows of rejected.csv for what may not be read, or has a name that is no text.
      passed_over: how many other files lay in the folder, by suffix.
      origin: for people: where the list comes from.
      root: the folder of the videos.
    """

    clips: list[ClipRequest]
    clip_seconds: float | None
    sizes: dict[str, int]
    unreadable: list[dict]
    passed_over: Counter
    origin: str
    root: Path

    @functools.cached_property
    def identity(self) -> str:
        """16 hexadecimal digits: the same clips of the same files give the same, wherever they lie.

        Of each file its size and three samples are looked at: reading all of it would take as long
        as decoding.
        """
        rows = [list(asdict(clip).values()) for clip in self.clips]
        files = sorted(self.sizes)
        with ThreadPoolExecutor(SAMPLERS) as pool:  # waiting for disks, mostly
            samples = pool.map(content_sample, (self.root / file for file in files))
            samples = list(one_by_one("looking at files", len(files), "file", samples))
        sizes = [self.sizes[file] for file in files]
        described = [rows, self.clip_seconds, list(zip(files, sizes, samples, strict=True))]
        return hashlib.sha256(json.dumps(described).encode()).hexdigest()[:16]


@dataclass(frozen=True)
class ClipOptions:
    """Which clips of a folder of videos are wanted, and in which splits.

    Attributes:
      csv: columns `file,start,end,id,label,split`, all but `file` optional; None takes `clips.csv`
        in the folder if there is one, else every video file in it.
      seconds: cut whole videos into clips of this length.
      shares: `{split: share of the files}`; all clips of a file land in one split (see
        `assign_splits`).
      split_by: what else must not be in two splits: "file", "folder", or a column of the CSV.
      sounds: of a folder, files of sound alone are wanted too.
    """

    csv: Path | None = None
    seconds: float | None = None
    shares: dict[str, float] | None = None
    split_by: str = "file"
    sounds: bool = False


WHOLE_VIDEOS = ClipOptions()


def list_clips(videos: Path, options: ClipOptions = WHOLE_VIDEOS) -> Listing:
    """The clips to extract: the rows of a CSV, or every video below the folder.

    Raises:
      InputError: no such folder, nothing in it, or a CSV with a fault (the row is named).
    """
    seconds, shares, split_by = options.seconds, options.shares, options.split_by
    if not videos.is_dir():
        raise InputError(f"--videos: expected a folder of videos, {videos} is not one")
    if seconds is not None and not 1.0 <= seconds < math.inf:
        raise InputError(f"--clip-seconds: expected at least 1, got {seconds:g}")
    if split_by != "file" and not shares:
        raise InputError("--split-by: expected together with --split NAME=SHARE ..., got it alone")
    csv_path, groups = options.csv, {}
    if csv_path is None and (videos / DEFAULT_CSV).is_file():
        csv_path = videos / DEFAULT_CSV
    if csv_path is not None:
        column = None if split_by in ("file", "folder") else split_by
        clips, groups = read_csv(csv_path, videos, column)
        unreadable, passed_over, origin = [], Counter(), f"the rows of {csv_path}"
    elif split_by not in ("file", "folder"):
        raise InputError(
            f"--split-by: expected file or folder, or a column of --clips, got {split_by!r} "
            "without --clips"
        )
    else:
        clips, unreadable, passed_over = _whole_files(videos, options.sounds)
        origin = f"every video below {videos}"
    sizes, recordings = _on_disk(videos, clips)
    if shares:
        if split_by == "folder":
            real = functools.cache(lambda folder: os.path.realpath(videos / folder))
            groups = {clip.id: real(os.path.dirname(clip.file)) for clip in clips}
        clips = assign_splits(clips, shares, groups, split_by, recordings)
    return Listing(clips, seconds, sizes, unreadable, passed_over, origin, videos)


def said_of_others(passed_over: Counter) -> str:
    """Which other files lay in a folder, in a line.

    >>> said_of_others(Counter({".wav": 1, ".txt": 12}))
    'other files, passed over: .txt 12, .wav 1'
    """
    return f"other files, passed over: {counted(passed_over, 5)}"


def _whole_files(videos: Path, sounds: bool) -> tuple[list[ClipRequest], list[dict], Counter]:
    """A clip for each file below a folder; what is unreadable and passed over as in `Listing`."""
    suffixes = VIDEO_SUFFIXES | (SOUND_SUFFIXES if sounds else frozenset())
    files, unreadable, passed_over = find_videos(videos, suffixes)
    if not files and not unreadable:
        kinds = ", ".join(f"{n} x {suffix}" for suffix, n in passed_over.most_common(5))
        what = "film or sound" if sounds else "video"
        heard = any(suffix in SOUND_SUFFIXES for suffix in passed_over)
        raise InputError(
            f"no {what} files under {videos}: expected "
            ".mp4, .mkv, .webm, .mov, .avi or other containers that FFmpeg reads, found "
            f"{kinds or 'an empty folder'}"
            + ("; scav extract --visual none makes features of sounds alone" if heard else "")
        )
    return [ClipRequest(file, 0.0, None, file) for file in files], unreadable, passed_over


def _on_disk(videos: Path, clips: list[ClipRequest]) -> tuple[dict[str, int], dict[str, str]]:
    """Of each file its size, -1 where it is missing, and which recording it is."""
    sizes, recordings = {clip.file: -1 for clip in clips}, {}
    for file in sizes:
        path = videos / file
        if os.path.isfile(path):  # what cannot be looked at is told when its turn comes
            about = path.stat()
            sizes[file] = about.st_size
            recordings[file] = f"{about.st_dev} {about.st_ino or file}"
    return sizes, recordings


def parse_shares(words: Iterable[str]) -> dict[str, float]:
    """The share of each split, from words such as `train=0.8`; they sum to 1.

    >>> parse_shares(["train=0.9", "validation=0.1"])
    {'train': 0.9, 'validation': 0.1}
    """
    shares: dict[str, float] = {}
    for word in words:
        name, _, number = word.partition("=")
        try:
            share = read_number(number)
        except ValueError:
            share = math.nan
        if not (name.isidentifier() and name.isascii() and 0 < share <= 1):
            raise InputError(
                f"--split: expected NAME=SHARE with a share above 0 and at most 1, as in "
                f"train=0.8, got {word!r}"
            )
        if name in shares or name == DEFAULT_SPLIT:
            raise InputError(
                f"--split: expected names that differ from each other and from {DEFAULT_SPLIT!r}, "
                f"got {name!r}"
            )
        shares[name] = share
    if not math.isclose(sum(shares.values()), 1.0, abs_tol=1e-6):
        raise InputError(
            f"--split: expected shares that sum to 1, got {sum(shares.values()):g} in all"
        )
    return shares


def assign_splits(
    clips: list[ClipRequest],
    shares: dict[str, float],
    groups: dict[str, str] | None = None,
    split_by: str = "file",
    recordings: Mapping[str, str] | None = None,
) -> list[ClipRequest]:
    """Gives every file to one split, so that no two splits show the same recording.

    Files are ordered by a hash of their names and cut by the shares of the number of files: the
    same folder gives the same splits everywhere, and names that count up are spread.

    Args:
      clips: without splits.
      shares: of the files, or of the groups.
      groups: id -> what must not be in two splits either: a folder, a recording session. Files
        whose clips share a group go together.
      split_by: what groups are called in messages.
      recordings: what names the content of each file: files that are links to one another, or one
        file under two names (`./a.mp4`), go together.

    Raises:
      InputError: the clips have splits already, or a split would get nothing.
    """
    given = {clip.split for clip in clips} - {DEFAULT_SPLIT}
    if given:
        raise InputError(
            f"--split: expected clips without a split, the CSV gives {sorted(given)}; leave out "
            "--split or the column"
        )
    together = _together(clips, groups or {}, recordings or {})
    files = sorted(set(together.values()), key=lambda file: hashlib.sha256(file.encode()).digest())
    ends = [round(share * len(files)) for share in itertools.accumulate(shares.values())]
    split_of: dict[str, str] = {}
    for name, begin, end in zip(shares, [0, *ends], ends, strict=False):
        if begin == end:
            raise InputError(
                f"--split: {name}={shares[name]:g} of {len(files)} "
                f"{'videos' if split_by == 'file' else f'groups by {split_by}'} is none; give it "
                "a larger share, or add videos: each split wants one at least"
            )
        split_of |= dict.fromkeys(files[begin:end], name)
    return [replace(clip, split=split_of[together[clip.file]]) for clip in clips]


def _together(
    clips: list[ClipRequest], groups: Mapping[str, str], recordings: Mapping[str, str]
) -> dict[str, str]:
    """File -> the first name of all files that are tied to it by a group, over others too."""
    parent = {clip.file: clip.file for clip in clips}

    def root(file: str) -> str:
        while parent[file] != file:
            parent[file] = file = parent[parent[file]]
        return file

    first: dict[tuple[int, str], str] = {}
    for clip in clips:
        for tie in enumerate((groups.get(clip.id), recordings.get(clip.file))):
            if tie[1] is not None:
                one, other = root(first.setdefault(tie, clip.file)), root(clip.file)
                parent[max(one, other)] = min(one, other)
    return {file: root(file) for file in parent}


def find_videos(
    videos: Path, suffixes: Collection[str] = VIDEO_SUFFIXES
) -> tuple[list[str], list[dict], Counter]:
    """Video files below a folder, sorted; what may not be read, or named; other files by suffix."""
    files: list[str] = []
    unreadable: list[dict] = []
    passed_over: Counter = Counter()

    def reject(path: str, reason: str) -> None:
        name = shown(Path(path).relative_to(videos).as_posix())
        unreadable.append(ClipRequest(name, 0.0, None, "").rejection("list", reason))

    def note(error: OSError) -> None:
        reject(error.filename, f"no permission to read it: {error.strerror}")

    for folder, folders, names in walked(videos, note):
        passed_over["hidden folder (.*)"] += sum(name.startswith(".") for name in folders)
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in [name for name in folders if not is_text(name)]:
            reject(os.path.join(folder, name), f"{NO_TEXT} the folder, what is in it is left out")
            folders.remove(name)
        for name in names:
            suffix = os.path.splitext(name)[1].lower()
            if suffix not in suffixes or name.startswith("."):
                passed_over["hidden (.*)" if name.startswith(".") else shown(suffix or name)] += 1
            elif is_text(name):
                files.append((Path(folder) / name).relative_to(videos).as_posix())
            else:
                reject(os.path.join(folder, name), f"{NO_TEXT} the file")
    return sorted(files), sorted(unreadable, key=lambda row: row["file"]), +passed_over


def read_csv(
    path: Path, videos: Path | None = None, column: str | None = None
) -> tuple[list[ClipRequest], dict[str, str]]:
    """The clips of a CSV, in its order; `InputError` names the first row with a fault.

    Spaces around cells are taken off; around the name of a file only where no file of `videos` is
    called so, spaces included.

    Returns:
      The clips, and what a further column says of each, by id (empty: nothing).
    """
    table = Table(path, "a CSV of clips", "correct the list")
    if column is not None and column not in table.columns:
        raise InputError(
            f"--split-by: expected file, folder or a column of {path} "
            f"({', '.join(table.columns)}), got {column!r}."
            f"{did_you_mean(column, ['file', 'folder', *table.columns])}"
        )
    further = "" if column else " Leave it out, or where it says what stays in one split, name it"
    table.check(
        COLUMNS[:1],
        [*COLUMNS[1:], *([column] if column else [])],
        further and f"{further}: scav extract --split NAME=SHARE ... --split-by COLUMN",
    )
    clips, lines, cells = [], [], []
    for line, row in table.rows(as_written=COLUMNS[:1]):
        clips.append(_parse_row(row, f"{path}, line {line}", videos))
        lines.append(line)
        cells.append(row[column] if column else "")
    check_unique([clip.id for clip in clips], (f"{path}, line {number}" for number in lines))
    check_splits({clip.split for clip in clips}, str(path))
    return clips, {clip.id: cell for clip, cell in zip(clips, cells, strict=True) if cell}


def _parse_row(cells: dict[str, str], where: str, videos: Path | None) -> ClipRequest:
    file = named(videos, cells["file"]) if videos else cells["file"].strip()
    if not file or os.path.isabs(file):
        raise InputError(f"{where}: file: expected a path relative to --videos, got {short(file)}")
    times: dict[str, float | None] = {"start": 0.0, "end": None}
    for name in times:
        if cells.get(name):
            try:
                times[name] = read_number(cells[name])
            except ValueError:
                times[name] = math.nan
            if not 0 <= times[name] < MOST_SECONDS:
                raise InputError(
                    f"{where}: {name}: expected seconds (0 or more, below {MOST_SECONDS:g}), got "
                    f"{short(cells[name])}"
                )
    start, end = times["start"], times["end"]
    if end is not None and start >= end:
        raise InputError(f"{where}: expected start before end, got {start:g} and {end:g}")
    split = cells.get("split") or DEFAULT_SPLIT
    if not split.isidentifier() or not split.isascii():
        raise InputError(
            f"{where}: split: expected letters, digits and underscores such as 'train', "
            f"got {short(split)}"
        )
    whole = start == 0 and end is None
    name = cells.get("id") or (file if whole else cut_id(file, start))
    return ClipRequest(file, start, end, name, cells.get("label", ""), split)


def cut_id(name: str, start: float) -> str:
    """The id of a clip that was cut out of a longer video: `file.mp4#12.000`."""
    return f"{name}#{start:.3f}"


def one_by_one(what: str, total: int, unit: str, over: Iterable) -> Iterable:
    """Files that are opened one after the other, with a bar where they are many."""
    return progress_bar(what, total, unit, shown=total > MANY_FILES, over=over)


def lengths_of(
    listing: Listing, seconds_of: Callable[[str], float | None]
) -> dict[str, float | None]:
    """The seconds of each file that `cut_whole_videos` asks for, with a bar where they are many."""
    if listing.clip_seconds is None:
        return {}
    files = dict.fromkeys(c.file for c in listing.clips if c.start == 0 and c.end is None)
    return {file: seconds_of(file) for file in one_by_one("measuring", len(files), "file", files)}


def cut_whole_videos(
    listing: Listing, seconds_of: Callable[[str], float | None]
) -> tuple[list[ClipRequest], int, float]:
    """Cuts whole videos into clips of `clip_seconds` that do not overlap.

    A video that is shorter than one clip, or whose length is unknown, stays one clip. What is
    left after the last whole clip is dropped.

    Returns:
      The clips, how many videos had a rest that was dropped, and its length in all.
    """
    length = listing.clip_seconds
    if length is None:
        return listing.clips, 0, 0.0
    clips: list[ClipRequest] = []
    rests = [0.0]
    for clip in listing.clips:
        seconds = seconds_of(clip.file) if clip.start == 0 and clip.end is None else None
        count = 0 if seconds is None else int((seconds + LAST_CLIP_TOLERANCE_S) // length)
        if count == 0:
            clips.append(clip)
            continue
        starts = [k * length for k in range(count)]
        clips += [
            replace(clip, start=start, end=start + length, id=cut_id(clip.id, start))
            for start in starts
        ]
        rests.append(max(seconds - count * length, 0.0))
    places = [f"{clip.file} from {clip.start:g} s" for clip in clips]
    check_unique([clip.id for clip in clips], places)
    dropped = [rest for rest in rests if rest > LAST_CLIP_TOLERANCE_S]
    return clips, len(dropped), sum(dropped)
