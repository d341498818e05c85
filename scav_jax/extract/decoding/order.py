"""The order of a decoder's pictures in time."""

import math


class Order:
    """Which timestamp of a picture is right, as FFmpeg's program guesses it.

    Decoders give pictures in the order in which they are shown, so times of showing that run
    backwards are wrong. Then the times of decoding are taken.

    Args:
      stored: whether the file has times of showing; else they are libavformat's guesses.
    """

    def __init__(self, stored: bool):
        self._last = {"shown": -math.inf, "decoded": -math.inf}
        self._stamped = False
        self._backwards = {"shown": int(not stored), "decoded": 0}

    def time(self, shown: int | None, decoded: int | None) -> int | None:
        """The better of a picture's two times, or None where it has none that can be."""
        for name, own, other in (("shown", shown, decoded), ("decoded", decoded, shown)):
            if own is not None:
                self._backwards[name] += own <= self._last[name]
            if (known := other if own is None else own) is not None:
                self._last[name] = known
        trusted = self._backwards["shown"] <= self._backwards["decoded"]
        self._stamped |= decoded is not None
        if not trusted and self._stamped:  # a decoder's last pictures have no times of decoding
            return decoded
        return decoded if shown is None else shown
