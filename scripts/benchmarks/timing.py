"""The time of a call, for benchmarks that have no contestants."""

import statistics
import time
from collections.abc import Callable


def median_seconds(call: Callable[[], object], repeats: int, clock=time.perf_counter) -> float:
    """The median time of a call that returns when it is done; the first one is not counted."""
    call()
    times = []
    for _ in range(repeats):
        begin = clock()
        call()
        times.append(clock() - begin)
    return statistics.median(times)
