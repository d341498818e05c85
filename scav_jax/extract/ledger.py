"""What is already done: finished jobs on disk, so that a run that was killed goes on from there.

`DATA.partial/` holds `run.json` (which extractor and which clips) and a file for every finished
job. Files appear whole or not at all; one that a power cut left damaged is done again.
"""

import contextlib
import fcntl
import io
import json
import shutil
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from scav_jax.base.errors import InputError
from scav_jax.base.files import write_atomically
from scav_jax.features.clip import Clip, fingerprint_difference

RUN_FILE, LENGTHS_FILE = "run.json", "lengths.json"
JOBS_A_FOLDER = 1000


class Ledger:
    """The folder of one run's finished jobs. A job's result is its clips and its rejections.

    Attributes:
      folder: `DATA.partial`.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        self._last: tuple[int, np.lib.npyio.NpzFile] | None = None

    @classmethod
    def beside(cls, out: Path) -> "Ledger":
        return cls(out.with_name(out.name + ".partial"))

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Keeps a second run for the same data set out; the system frees it when we die."""
        self.folder.mkdir(parents=True, exist_ok=True)
        with open(self.folder / "lock", "w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise InputError(
                    f"another extraction is writing to {self.folder}: wait for it, or use "
                    "another --out"
                ) from None
            yield

    def open(self, run: dict) -> None:
        """Starts this run, or checks that the work that is there belongs to it."""
        path = self.path_of_run()
        try:
            found = json.loads(path.read_text())
        except (FileNotFoundError, ValueError):
            write_atomically(path, json.dumps(run, indent=1).encode())
            return
        if found == run:
            return
        difference = (
            fingerprint_difference(found.get("fingerprint", {}), run["fingerprint"])
            or "the list of clips is another (files, their sizes, or the CSV)"
        )
        raise InputError(
            f"{self.folder} holds unfinished work of another extraction ({difference}): remove "
            "that folder to start again, or use another --out"
        )

    def path_of_run(self) -> Path:
        """The file that says which extractor and which clips."""
        return self.folder / RUN_FILE

    def note(self, name: str, value: Any) -> None:
        """Keeps a small JSON file."""
        write_atomically(self.folder / name, json.dumps(value).encode())

    def lengths(self) -> dict[str, float | None] | None:
        """The lengths of the videos in seconds, if they have been measured."""
        with contextlib.suppress(FileNotFoundError, ValueError):
            return json.loads((self.folder / LENGTHS_FILE).read_text())
        return None

    def save_lengths(self, lengths: dict[str, float | None]) -> None:
        self.note(LENGTHS_FILE, lengths)

    def path(self, job: int) -> Path:
        return self.folder / "jobs" / f"{job // JOBS_A_FOLDER:04d}" / f"{job:07d}.npz"

    def is_done(self, job: int) -> bool:
        path = self.path(job)
        return path.exists() and zipfile.is_zipfile(path)

    def save(self, job: int, clips: dict[int, Clip], rejected: dict[int, dict]) -> None:
        """Keeps a finished job; the keys are places in the list of clips."""
        arrays = {"rejected": _encoded(list(rejected.items()))}
        for place, clip in clips.items():
            fields = dict(vars(clip))
            arrays[f"visual_{place}"] = fields.pop("visual")
            arrays[f"audio_{place}"] = fields.pop("audio")
            arrays[f"about_{place}"] = _encoded(fields)
        buffer = io.BytesIO()
        np.savez(buffer, **arrays)
        path = self.path(job)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, buffer.getvalue())

    def rejected(self, job: int) -> dict[int, dict]:
        """The rejections of a finished job, by place."""
        with self._reading(job) as stored:
            return dict(_decoded(stored["rejected"]))

    def clip(self, job: int, place: int) -> Clip:
        """One clip of a finished job."""
        with self._reading(job) as stored:
            fields = _decoded(stored[f"about_{place}"])
            fields["visual_span"] = tuple(fields["visual_span"])
            fields["audio_span"] = tuple(fields["audio_span"])
            visual, audio = stored[f"visual_{place}"], stored[f"audio_{place}"]
        return Clip(visual=visual, audio=audio, **fields)

    @contextlib.contextmanager
    def _reading(self, job: int) -> Iterator[np.lib.npyio.NpzFile]:
        path = self.path(job)
        try:
            if self._last is None or self._last[0] != job:  # clips of one job are read in a row
                self._last = (job, np.load(io.BytesIO(path.read_bytes())))
            yield self._last[1]
        except (zipfile.BadZipFile, zlib.error, KeyError, ValueError, EOFError) as error:
            path.unlink(missing_ok=True)
            raise InputError(
                f"{path} was damaged ({error}) and is removed: run the same command again, it "
                "repeats that part only"
            ) from None

    def remove(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)


def _encoded(value: Any) -> np.ndarray:
    return np.frombuffer(json.dumps(value).encode(), np.uint8)


def _decoded(stored: np.ndarray) -> Any:
    return json.loads(stored.tobytes())
