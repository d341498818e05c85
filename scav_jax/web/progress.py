"""How far the searches under way are, for the pages that wait for them."""

import re
import threading
from collections.abc import Callable

STAGES = (
    "Waiting for its turn",
    "Decoding the file",
    "Embedding it",
    "Searching",
    "Taking stills of what was found",
)
_NAME = re.compile(r"[0-9a-f]{32}")


class Progress:
    """Stages by the name that a page gave its search; a search that has ended is forgotten."""

    def __init__(self) -> None:
        self._stages: dict[str, int] = {}
        self._lock = threading.Lock()

    def teller(self, name: str) -> Callable[[int | None], None]:
        """What a search calls with a number of `STAGES`, and with None when it has ended.

        A name that is none is not kept, so what is kept is as many as the searches under way.
        """

        def tell(stage: int | None) -> None:
            with self._lock:
                self._stages.pop(name, None)
                if stage is not None and _NAME.fullmatch(name):
                    self._stages[name] = stage

        return tell

    def of(self, name: str) -> dict:
        """{"stage", "of", "words"} of a search, empty where none of that name is under way."""
        with self._lock:
            stage = self._stages.get(name)
        if stage is None:
            return {}
        return {"stage": stage + 1, "of": len(STAGES) + 1, "words": STAGES[stage]}
