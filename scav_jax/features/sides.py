"""What the sides of a backbone declare of their features, besides what these depend on.

A side of one's own declares it in its fingerprint. Ours do here, under the same keys: one key more
in their fingerprints, and every data set that was extracted would be another extractor's.

playable    how many frames lie side by side in a step, each of which saw its own moment only; or
            in words why there is no such number (`features.playable`)
free        the layout of what may be changed without saying anything new (`features.free`)
momentary   how many numbers of a step, the first ones, are of that moment and no change of it;
            all of them where nothing is said
pixels      whether features are pictures as they are, or log-mels that nothing normalised
"""

import math
from collections.abc import Mapping
from typing import Any

from scav_jax.base.log_mel import MEL_BINS, STACKED_FRAMES
from scav_jax.features.clip import STREAMS, side_of

GRID = (8, 8, 3)  # rows, columns and colours of `plain` and `colours`
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
