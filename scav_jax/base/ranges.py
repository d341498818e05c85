"""Which numbers an option may be, how they are written, and how a message says so."""

import math
import re
from collections.abc import Mapping
from reprlib import repr as short  # of texts, which may be of any length
from typing import NamedTuple

from scav_jax.base.errors import InputError

MOST_WHOLE = 2**31 - 1  # what arrays count in
# As Python writes them, in digits of ASCII: its own `int` and `float` read any script's, and words.
_DIGITS = "[0-9]+(?:_[0-9]+)*"
_WHOLE = re.compile(rf"[+-]?{_DIGITS}")
_NUMBER = re.compile(rf"[+-]?(?:{_DIGITS}(?:\.(?:{_DIGITS})?)?|\.{_DIGITS})(?:[eE][+-]?{_DIGITS})?")


def read_whole(text: str) -> int:
    """The whole number that a text is, of at most 64 bits; spaces around it are none of it.

    Raises:
      ValueError: it is none: a word, a fraction, another script's digits, too many digits.

    >>> read_whole("1_000"), read_whole(" -3 ")
    (1000, -3)
    """
    digits = text.strip()
    if len(digits) < 40 and _WHOLE.fullmatch(digits) and -(2**63) <= int(digits) < 2**63:
        return int(digits)
    raise ValueError(f"expected a whole number, got {short(text)}")


def read_number(text: str) -> float:
    """The finite number that a text is; spaces around it are none of it.

    Raises:
      ValueError: it is none: a word (`inf` and `nan` too), or what no float holds.

    >>> read_number("1e-3"), read_number(".5")
    (0.001, 0.5)
    """
    digits = text.strip()
    if _NUMBER.fullmatch(digits) and math.isfinite(value := float(digits)):
        return value
    raise ValueError(f"expected a finite number, got {short(text)}")


READ = {int: read_whole, float: read_number}  # by what an option is


class Range(NamedTuple):
    """The numbers from `least` to `most`.

    Attributes:
      least, most: the ends.
      above: `least` itself is left out.
      below: `most` itself is left out.

    >>> str(Range(0, 1, below=True)), 1.0 in Range(0, 1, below=True)
    ('0 up to, not including, 1', False)
    """

    least: float
    most: float = math.inf
    above: bool = False
    below: bool = False

    def __contains__(self, value: object) -> bool:
        if not isinstance(value, int | float) or not math.isfinite(value):
            return False
        high = value < self.most if self.below else value <= self.most
        return high and (value > self.least if self.above else value >= self.least)

    def __str__(self) -> str:
        if self.most == math.inf:
            return f"{'more than' if self.above else 'at least'} {self.least:g}"
        first = f"more than {self.least:g}, at most" if self.above else f"{self.least:g} to"
        if self.below:
            first = f"{self.least:g} up to, not including,"
        return f"{first} {self.most:g}"


AT_LEAST_0, AT_LEAST_1, ABOVE_0 = Range(0), Range(1), Range(0, above=True)
SHARE = Range(0, 1)
WAIT = Range(0, 7 * 24 * 3600, above=True)  # seconds: longer ones overflow some of the systems
BELOW_1 = Range(0, 1, below=True)  # rates, of which 1 would leave nothing


def check_range(where: str, value: float | None, allowed: Range, advice: str = "") -> None:
    """Raises `InputError` for a number out of its range; None, an option that is off, is in it.

    Args:
      where: what was set to it, as "train.steps".
      value: of the option; what is whole is at most `MOST_WHOLE`, unless the range has an end.
      allowed: its range.
      advice: what to do, or why, below the range.
    """
    if value is None:
        return
    if value not in allowed:
        more = f"; {advice}" if advice else ""
        raise InputError(f"{where}: expected {allowed}, got {value}{more}")
    if isinstance(value, int) and allowed.most == math.inf and value > MOST_WHOLE:
        raise InputError(f"{where}: expected {allowed} and at most {MOST_WHOLE}, got {value}")


def check_ranges(section: str, options: object, allowed: Mapping[str, Range]) -> None:
    """`check_range` of some attributes of an object: the options of a config's section."""
    for name, of_option in allowed.items():
        check_range(f"{section}.{name}", getattr(options, name), of_option)


def check_multiple(
    where: str, value: int, of: int, what: str, *, least: int = 1, most: float = math.inf
) -> None:
    """Raises `InputError` unless a number is a multiple of another; the message names the nearest.

    Args:
      where: what was set to it, as "data.batch_size".
      value: the number.
      of: what it is to be a multiple of, 1 or more.
      what: that many of what, as "devices".
      least, most: between which a multiple may be.
    """
    if value % of == 0:
        return
    below = value - value % of
    nearest = [str(one) for one in (below, below + of) if least <= one <= most]
    advice = f"use {' or '.join(nearest)}" if nearest else f"use fewer {what}"
    raise InputError(f"{where}: expected a multiple of the {of} {what}, got {value}; {advice}")


def divisors(count: int) -> list[int]:
    """All divisors of a number of 1 or more, the smallest first, in about its root of steps.

    >>> divisors(12), divisors(16), divisors(1)
    ([1, 2, 3, 4, 6, 12], [1, 2, 4, 8, 16], [1])
    """
    low = [n for n in range(1, math.isqrt(count) + 1) if count % n == 0]
    return sorted({*low, *(count // n for n in low)})
