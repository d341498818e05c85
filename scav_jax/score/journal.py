"""What a long `scav score` has done so far, beside its output, so that a kill loses nothing.

A line of JSON for each pair. The first line says of which model and options they are: those of
others are not taken, nor those of files that have changed since.
"""

import contextlib
import dataclasses
import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from scav_jax.base.documents import SEAL, checksum, content_sample, unsealed
from scav_jax.base.errors import InputError
from scav_jax.report.match import Curve
from scav_jax.retrieval.synchrony import Synchrony
from scav_jax.score.scored import Pair, Scored

ENDING = ".unfinished"
FORMAT = 1
ARRAYS = ("offsets", "curve")
# Of a line that a kill has cut.
FAULTS = (ValueError, KeyError, TypeError, AttributeError, InputError)


class Journal:
    """The outcomes of pairs, kept in a file while the others are scored.

    Attributes:
      done: pair -> what was found, or why it cannot be scored.
    """

    def __init__(self, path: Path | None, about: dict, pairs: Sequence[Pair]):
        """Reads what an interrupted call left.

        Args:
          path: the file; None keeps nothing.
          about: what scores depend on besides files, JSON types.
          pairs: that are asked for.
        """
        self.path, self._head = path, {"format": FORMAT, "about": checksum(about)}
        self._goes_on = False
        self.done: dict[Pair, Scored | str] = dict(self._left(set(pairs)) if path else ())

    def _left(self, pairs: set[Pair]) -> Iterator[tuple[Pair, Scored | str]]:
        lines = []
        with contextlib.suppress(OSError, UnicodeDecodeError):
            lines = Path(str(self.path)).read_text("utf-8").splitlines()
        for number, line in enumerate(lines):
            with contextlib.suppress(*FAULTS):
                one = json.loads(line)
                if number == 0:
                    self._goes_on = one == self._head
                elif self._goes_on:
                    one = unsealed(one, "expected a pair", "")
                    pair = Pair(*map(Path, one["pair"]))
                    if pair in pairs and one["contents"] == _contents(pair):
                        yield pair, one.get("reason") or _scored(pair, one)

    @contextlib.contextmanager
    def writing(self) -> Iterator[None]:
        """Keeps what is `add`ed from here on, beside what is there."""
        if self.path is None:
            yield
            return
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with open(self.path, "a" if self._goes_on else "w", encoding="utf-8") as self._file:
            # A line that a kill has cut ends here.
            print("" if self._goes_on else json.dumps(self._head), file=self._file)
            yield

    def add(self, outcomes: dict[Pair, Scored | str]) -> None:
        """Keeps outcomes; they are durable when this returns."""
        self.done |= outcomes
        if self.path is not None:
            for pair, outcome in outcomes.items():
                print(json.dumps(_line(pair, outcome)), file=self._file)
            self._file.flush()
            os.fsync(self._file.fileno())

    def remove(self) -> None:
        """All is done, and written elsewhere."""
        if self.path is not None:
            self.path.unlink(missing_ok=True)


def _contents(pair: Pair) -> list[str]:
    return [content_sample(pair.picture), content_sample(pair.sound)]


def _line(pair: Pair, outcome: Scored | str) -> dict:
    line: dict = {"pair": [str(pair.picture), str(pair.sound)], "contents": _contents(pair)}
    if isinstance(outcome, str):
        line["reason"] = outcome
    else:
        found = dataclasses.asdict(outcome.found)
        line["found"] = found | {name: found[name].tolist() for name in ARRAYS}
        line["over_time"] = [outcome.curve.times.tolist(), outcome.curve.values.tolist()]
    return line | {SEAL: checksum(line)}


def _scored(pair: Pair, line: dict) -> Scored:
    found = line["found"] | {name: np.array(line["found"][name]) for name in ARRAYS}
    found["spans"] = tuple(map(tuple, found["spans"]))
    return Scored(pair, Synchrony(**found), Curve(*map(np.array, line["over_time"])))
