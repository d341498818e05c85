"""What a clip lacks of a stream though it was promised, or though the file goes on."""

import math
from collections.abc import Iterable

from scav_jax.extract.containers.opening import Unusable
from scav_jax.extract.decoding.packets import usual_duration
from scav_jax.extract.decoding.streams import Stream

TRUNCATION_S = 0.25  # a stream that lacks more than this of what it declares was truncated
JOINED_MIDWAY_S = 1.0  # a broadcast's recording may begin with so much that is no whole sound


def check_lost(
    stream: Stream, pauses: Iterable[tuple[float, float]], start: float, stop: float
) -> None:
    """Sound may pause (DTX), and that is silence; what stops together was lost."""
    for before, after in pauses:
        begin, end = max(before, start), min(after, stop)
        if end - begin > TRUNCATION_S and stream.packets.lost(begin, end):
            missing = f"{end - begin:.2f} s of picture and sound are missing"
            raise Unusable("decode", f"corrupt: {missing} from {begin:.2f} s")


def check_extent(
    stream: Stream, what: str, start: float, stop: float, begin: float, end: float
) -> None:
    """Raises `Unusable` where a stream lacks part of what was promised for start..stop.

    Its first packet promises that it begins there, its header that it goes on until its end.
    """
    promised = stream.promised_begin
    slack = max(TRUNCATION_S, 2.5 * usual_duration(stream.stream))
    late = JOINED_MIDWAY_S if stream.joined_midway else slack
    if promised is not None and begin - max(start, promised) > late and begin < math.inf:
        raise Unusable("decode", f"corrupt: the {what} cannot be decoded before {begin:.2f} s")
    promised = stream.declared.promised
    if promised is None or not stream.ended:
        return
    if end < min(promised, stop) - slack:
        raise Unusable(
            "decode",
            f"truncated: the {what} ends at {end:.2f} s, its header says {promised:.2f} s",
        )
