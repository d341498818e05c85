"""Which changes of features say nothing new: what a backbone declares free, for `data.augment`.

A grid of colours may be mirrored and its colours may change places; a log-mel may be moved along
its bins. Of what CLIP or BEATs make of a picture or a sound no such change is known.
"""

from collections.abc import Mapping
from typing import Any

from scav_jax.features.sides import declared

# As `objectives.free.Free` has them: (kinds, rows, columns, colours), and (frames, bins).
KINDS = {"visual": "grid", "audio": "mel"}


def free(fingerprint: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """The layouts of an extractor's features that may be changed, by kind.

    A side of one's own says so in its fingerprint: `{"free": [1, 14, 14, 3]}`.

    >>> free({"backbone": {"visual": {"name": "clip"}, "audio": {"name": "plain"}}})
    {'mel': (16, 128)}
    """
    found = {}
    for stream, kind in KINDS.items():
        layout = declared(fingerprint, stream).get("free")
        if layout:
            found[kind] = tuple(layout)
    return found
