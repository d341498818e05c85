"""MUSIC and MUSIC21-solo (Zhao et al., ECCV 2018 and ICCV 2019) from their lists and a folder.

The lists (`MUSIC_solo_videos.json`, `MUSIC21_solo_videos.json`) name YouTube ids by instrument:
`{"videos": {"flute": ["..."]}}`. On disk a video is called by its id, with any suffix of a video,
below any folder. `scav extract --clip-seconds 10` cuts videos into clips that do not
overlap; splits are of videos, so no two share a recording.

The test partition is ours. The paper tests on 103 videos (1.9k clips) of MUSIC21-solo, and which
they are was never published, nor does the list say. Here videos are ordered by the SHA-256 of
`PARTITION_SEED` and their id; the first 103 are test, the next 61 validation, the others train
(1,000 of MUSIC21-solo). Every video of the list takes part, whatever is on disk. The partitions of
the two lists differ, and MUSIC's videos are part of MUSIC21-solo: use one of them at a time.
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from reprlib import repr as short

from scav_jax.base.documents import parse_json, read_text
from scav_jax.base.errors import InputError, check_unique
from scav_jax.base.files import ids_sha256
from scav_jax.base.names import is_text, shown
from scav_jax.datasets import clip_lists
from scav_jax.datasets.clip_lists import Listed

CLIP_SECONDS = 10
TEST_VIDEOS = 103  # the paper's number (section IV)
VALIDATION_VIDEOS = 61
PARTITION_SEED = "scav_jax/music/partition/1"
# SHA-256 of the ids of a published list -> its name, and SHA-256 of the ids of our test partition.
PUBLISHED = {
    "92362794c381e40925e08aaf96bf4ff80736cfeafa500b71fe02ca21f7b9e985": (
        "MUSIC solo",
        "d9bb74e36449c19567f828ad93108984df9efecd71bfe7bd329bd669a0ca5f3f",
    ),
    "5b3f9c16de4bbefd4e75ac534cb77d04f4a39c87f73368b682964c9d9ea64c51": (
        "MUSIC21-solo",
        "1f65094de4fedd4878a5aecbf3b7e50ac993b1dfcbf72324061021b1ed22e7e5",
    ),
}


def read_list(path: Path) -> list[Listed]:
    """The videos of a list, in its order, all in train.

    Raises:
      InputError: not such a list, or an id that comes twice.
    """
    try:
        text = read_text(path, "a list of MUSIC videos", clip_lists.AS_PUBLISHED)
    except OSError as error:
        raise InputError(f"{path}: expected a list of MUSIC videos in UTF-8: {error}") from None
    expected = f'{path}: expected {{"videos": {{INSTRUMENT: [YouTube ids]}}}}'
    try:
        videos = parse_json(text)["videos"]
    except (ValueError, TypeError, KeyError, IndexError) as error:
        raise InputError(f"{expected}, got {type(error).__name__}: {error}") from None
    if not isinstance(videos, dict) or not all(isinstance(ids, list) for ids in videos.values()):
        raise InputError(f"{expected}, got {type(videos).__name__} without lists of ids")
    pairs = [(video, label.strip()) for label, ids in videos.items() for video in ids]
    for video, label in pairs:
        if not (_is_name(video) and "/" not in video and label and is_text(label)):
            raise InputError(f"{expected}, got the id {short(video)} under {short(label)}")
    if not pairs:
        raise InputError(f"{expected}, got no video")
    ids = [video for video, _ in pairs]
    check_unique(ids, [f"{path}, {label}" for _, label in pairs])
    return [Listed(v, v, label, "train", f"{v}.mp4", v) for v, label in pairs]


def _is_name(video: object) -> bool:
    """Whether a file can be called so, and stand in a list, to the letter."""
    return isinstance(video, str) and 0 < len(video) <= 200 and video == shown(video.strip())


def partition(
    wanted: Sequence[Listed], test: int = TEST_VIDEOS, validation: int = VALIDATION_VIDEOS
) -> list[Listed]:
    """The same videos, in splits (see the module).

    Raises:
      InputError: the list has not more videos than test and validation take.
    """
    if len(wanted) <= test + validation:
        raise InputError(
            f"expected a list of more than the {test + validation:,} videos that --test {test} and "
            f"--validation {validation} take, got {len(wanted):,}; give smaller numbers"
        )
    order = clip_lists.draw((clip.id for clip in wanted), test + validation, PARTITION_SEED)
    split_of = dict.fromkeys(order[:test], "test") | dict.fromkeys(order[test:], "validation")
    return [replace(clip, split=split_of.get(clip.id, "train")) for clip in wanted]


def describe_list(wanted: Sequence[Listed]) -> str:
    """Which published list this is, by its ids, and whether its test partition is the declared."""
    known = PUBLISHED.get(ids_sha256(clip.id for clip in wanted))
    if known is None:
        return "not one of the two published lists: partitions are of this list only"
    name, declared = known
    test = ids_sha256(clip.id for clip in wanted if clip.split == "test")
    return f"{name} as published; the test partition is {'' if test == declared else 'NOT '}ours"
