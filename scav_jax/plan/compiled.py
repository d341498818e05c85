"""What a compiled program needs of memory, read from it without running it."""

from typing import NamedTuple

import jax


class CompiledMemory(NamedTuple):
    """Bytes on each device while a program runs.

    Attributes:
      arguments: what it is given; donated arguments too.
      results: what it returns, less what is written over donated arguments.
      temporary: what lives in between.
    """

    arguments: int
    results: int
    temporary: int

    @property
    def total(self) -> int:
        """All three: nothing is counted twice."""
        return sum(self)


def memory_of(compiled: jax.stages.Compiled) -> CompiledMemory | None:
    """What XLA plans to use on each device; None on backends that do not say."""
    known = compiled.memory_analysis()
    if known is None:
        return None
    return CompiledMemory(
        known.argument_size_in_bytes,
        known.output_size_in_bytes - known.alias_size_in_bytes,
        known.temp_size_in_bytes,
    )
