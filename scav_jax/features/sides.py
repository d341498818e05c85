"""What the sides of a backbone declare of their features, besides what these depend on.

A side of one's own declares it in its fingerprint. Ours do here, under the same keys: one key more
in their fingerprints, and every data set that was extracted would be another extractor's.

playable    how many frames lie side by side in a step, each of which saw its own moment only; or
            in words why there is no such number
free        the layout of what may be changed without saying anything new
momentary   how many numbers of a step, the first ones, are of that moment and no change of it;
            all of them where nothing is said
pixels      whether features are pictures as they are, or log-mels that nothing normalised

Features can be played where playing them is the same as playing the video: `E(x)[I] = E(x[I])`
holds where each step has seen its own moment only. Then parts of a clip can be made faster, or
turned round, from the features on disk (`scav_jax.views`). It fails for BEATs, each of whose tokens
has heard the whole clip, and for frame differences, which know the speed that they were filmed at.

A grid of colours may be mirrored and its colours may change places; a log-mel may be moved along
its bins. Of what CLIP or BEATs make of a picture or a sound no such change is known.
"""

import math
from collections.abc import Mapping
from typing import Any

from scav_jax.base.log_mel import MEL_BINS, STACKED_FRAMES
from scav_jax.features.clip import STREAMS, side_of

GRID = (8, 8, 3)  # rows, columns and colours of `plain` and `colours`
# As `objectives.free.Free` has them: (kinds, rows, columns, colours), and (frames, bins).
FREE_KINDS = {"visual": "grid", "audio": "mel"}
UNKNOWN = "nothing says that each step has seen its own moment only ('playable' in a fingerprint)"
ADVICE = "extract with --backbone colours (no weights) or --backbone clip_mel (CLIP, log-mel)"
OURS: dict[tuple[str, str], dict[str, Any]] = {
    ("visual", "clip"): {"playable": 1},
    ("visual", "plain"): {
        "playable": "frame differences know the speed that they were filmed at",
        "free": (2, *GRID),
        "momentary": math.prod(GRID),
    },
    ("visual", "colours"): {"playable": 1, "free": (1, *GRID)},
    ("visual", "pixels"): {"pixels": True},
    ("audio", "beats"): {"playable": "every token of BEATs has heard the whole clip"},
    ("audio", "plain"): {"playable": STACKED_FRAMES, "free": (STACKED_FRAMES, MEL_BINS)},
    ("audio", "pixels"): {"pixels": True},
}


def declared(fingerprint: Mapping[str, Any], stream: str) -> Mapping[str, Any]:
    """What an extractor's side of a stream declares; nothing where it has none.

    >>> declared({"backbone": {"audio": {"name": "plain"}}}, "audio")["playable"]
    16
    """
    side = side_of(fingerprint, stream)
    return {**side, **OURS.get((stream, side.get("name", "")), {})}


def playable(fingerprint: Mapping[str, Any]) -> dict[str, int | str]:
    """How each stream of an extractor can be played.

    A side of one's own says so in its fingerprint: `{"playable": 1}`, or how many frames it stacks,
    or in words why it cannot be played.

    Returns:
      By stream, how many frames lie side by side in a step, 1 where a step is one; or why it cannot
      be played and what to do, in words.

    >>> playable({"backbone": {"visual": {"name": "colours"}, "audio": {"name": "plain"}}})
    {'visual': 1, 'audio': 16}
    """
    if "resampled" in fingerprint:
        words = "a resampled copy is interpolated, which tells the speed; use the original features"
        return dict.fromkeys(STREAMS, words)
    return {stream: _played(declared(fingerprint, stream)) for stream in STREAMS}


def _played(side: Mapping[str, Any]) -> int | str:
    frames = side.get("playable", UNKNOWN)
    if isinstance(frames, int):
        return frames
    return f"{frames if isinstance(frames, str) else UNKNOWN}; {ADVICE}"


def free(fingerprint: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """The layouts of an extractor's features that may be changed, by kind, for `data.augment`.

    A side of one's own says so in its fingerprint: `{"free": [1, 14, 14, 3]}`.

    >>> free({"backbone": {"visual": {"name": "clip"}, "audio": {"name": "plain"}}})
    {'mel': (16, 128)}
    """
    found = {}
    for stream, kind in FREE_KINDS.items():
        layout = declared(fingerprint, stream).get("free")
        if layout:
            found[kind] = tuple(layout)
    return found


def pixels(fingerprint: Mapping[str, Any]) -> dict[str, bool | None]:
    """By stream, whether an extractor's features are pixels; None where it does not say.

    >>> pixels({"backbone": {"visual": {"name": "pixels"}, "audio": {"name": "my_package:Mine"}}})
    {'visual': True, 'audio': None}
    """
    return {stream: _are_pixels(fingerprint, stream) for stream in STREAMS}


def _are_pixels(fingerprint: Mapping[str, Any], stream: str) -> bool | None:
    side = declared(fingerprint, stream)
    said = side.get("pixels")
    if isinstance(said, bool):
        return said
    imported = not side and isinstance(fingerprint.get("backbone"), Mapping)
    return None if imported or ":" in side.get("name", "") else False
