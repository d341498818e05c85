"""Which features can be played: where playing them is the same as playing the video.

`E(x)[I] = E(x[I])` holds where each step has seen its own moment only. Then parts of a clip can be
made faster, or turned round, from the features on disk (`scav_jax.views`). It fails for BEATs, each
of whose tokens has heard the whole clip, and for frame differences, which know the speed that they
were filmed at.
"""

from collections.abc import Mapping
from typing import Any

from scav_jax.features.clip import STREAMS
from scav_jax.features.sides import declared

UNKNOWN = "nothing says that each step has seen its own moment only ('playable' in a fingerprint)"
ADVICE = "extract with --backbone colours (no weights) or --backbone clip_mel (CLIP, log-mel)"


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
