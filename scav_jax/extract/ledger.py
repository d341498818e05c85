"""What is already done: finished jobs on disk, so that a run that was killed goes on from there.

`DATA.partial/` holds `run.json` (which extractor and which clips) and a file for every finished
job. Files appear whole or not at all; one that a power cut left damaged is done again. Every file
says of which run it is, and ends with a checksum: where `run.json` is lost, the jobs of this very
run are kept, and those of another one are not taken for its own.
"""

import contextlib
import hashlib
import io
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from scav_jax.base import locks
from scav_jax.base.documents import (
    NO_ARRAY,
    checksum,
    read_document,
    regular_file,
    write_document,
)
from scav_jax.base.errors import InputError
from scav_jax.base.files import check_name, write_atomically
from scav_jax.features.clip import Clip, fingerprint_difference

RUN_FILE, LENGTHS_FILE = "run.json", "lengths.json"
JOBS_A_FOLDER = 1000
MAGIC = b"scavjob3"
NO_RUN = 16 * "0"  # before `open`
TRAILER_BYTES = len(MAGIC) + len(NO_RUN) + 32  # the last: SHA-256 of all that is before it
REMOVE = "remove that folder to start again, or use another --out"
A_JOB = ("a finished part of an extraction", "remove it and run the same command again")
MOST_LENGTHS_BYTES = 2**28  # some two million videos


class Ledger:
    """The folder of one run's finished jobs. A job's result is its clips and its rejections.

    Attributes:
      folder: `DATA.partial`.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        self._run = NO_RUN
        self._last: tuple[int, np.lib.npyio.NpzFile] | None = None
        self._read: set[int] = set()  # jobs whose checksum was right

    @classmethod
    def beside(cls, out: Path) -> "Ledger":
        check_name(out)
        return cls(out.with_name(out.name + ".partial"))

    def locked(self) -> contextlib.AbstractContextManager[None]:
        """Keeps a second run for the same data set out; the system frees it when we die."""
        return locks.only_one(
            self.folder,
            f"another extraction is writing to {self.folder}: wait for it, or use another --out",
        )

    def open(self, run: dict) -> None:
        """Starts this run, or checks that the work that is there belongs to it."""
        self._run = checksum(run)
        found = self.read_run()
        if found is None:
            self._check_jobs()
            write_document(self.path_of_run(), run)
            return
        if checksum(found) == self._run:
            return
        difference = (
            fingerprint_difference(found.get("fingerprint", {}), run["fingerprint"])
            or "the list of clips is another (files, what is in them, or the CSV)"
        )
        raise InputError(
            f"{self.folder} holds unfinished work of another extraction ({difference}): {REMOVE}"
        )

    def path_of_run(self) -> Path:
        """The file that says which extractor and which clips."""
        return self.folder / RUN_FILE

    def read_run(self) -> dict | None:
        """What that file says; None where it is lost or damaged."""
        with contextlib.suppress(FileNotFoundError, InputError):
            return read_document(self.path_of_run(), "what a run is of", REMOVE)
        return None

    def _check_jobs(self) -> None:
        """Raises `InputError` where there are jobs of another run."""
        for path in sorted(self.folder.glob("jobs/*/*.npz")):
            if _run_of(path) not in (None, self._run):
                raise InputError(
                    f"{self.folder} has lost its {RUN_FILE} and holds the work of another "
                    f"extraction than this one: {REMOVE}"
                )

    def note(self, name: str, value: dict) -> None:
        """Keeps a small JSON file."""
        write_document(self.folder / name, {"run": self._run, "value": value})

    def lengths(self) -> dict[str, float | None] | None:
        """The lengths of the videos in seconds, if they have been measured."""
        path = self.folder / LENGTHS_FILE
        with contextlib.suppress(FileNotFoundError, InputError):
            noted = read_document(path, "lengths of videos", REMOVE, MOST_LENGTHS_BYTES)
            if noted["run"] == self._run:
                return noted["value"]
        return None

    def save_lengths(self, lengths: dict[str, float | None]) -> None:
        self.note(LENGTHS_FILE, lengths)

    def path(self, job: int) -> Path:
        return self.folder / "jobs" / f"{job // JOBS_A_FOLDER:04d}" / f"{job:07d}.npz"

    def is_done(self, job: int) -> bool:
        return _run_of(self.path(job)) == self._run

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
        content = buffer.getvalue() + MAGIC + self._run.encode()
        write_atomically(path, content + hashlib.sha256(content).digest())

    def rejected(self, job: int) -> dict[int, dict]:
        """The rejections of a finished job, by place; its features are not read."""
        with self._reading(job, whole=False) as stored:
            return dict(_decoded(stored["rejected"]))

    def clip(self, job: int, place: int) -> Clip:
        """One clip of a finished job."""
        with self._reading(job, whole=job not in self._read) as stored:
            fields = _decoded(stored[f"about_{place}"])
            fields["visual_span"] = tuple(fields["visual_span"])
            fields["audio_span"] = tuple(fields["audio_span"])
            visual, audio = stored[f"visual_{place}"], stored[f"audio_{place}"]
        return Clip(visual=visual, audio=audio, **fields)

    @contextlib.contextmanager
    def _reading(self, job: int, whole: bool) -> Iterator[Mapping[str, np.ndarray]]:
        """The arrays of a finished job: all of it, checked, or those that are asked for alone.

        Each array has a checksum of its own too.
        """
        if self._last is not None and self._last[0] == job:  # clips of one job come in a row
            yield self._last[1]
            return
        path = self.path(job)
        if not whole and _run_of(path) is None:  # it was cut off
            raise _damaged(path)
        with regular_file(path, *A_JOB) as file:
            if whole:
                content = file.read()
                if hashlib.sha256(content[:-32]).digest() != content[-32:]:
                    raise _damaged(path)
                self._last = (job, np.load(io.BytesIO(content[:-TRAILER_BYTES])))
                self._read.add(job)
                yield self._last[1]
                return
            try:
                yield np.load(file)
            except (OSError, MemoryError):  # the machine's word, not the file's
                raise
            except (*NO_ARRAY, ValueError, KeyError):
                raise _damaged(path) from None

    def remove(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)


def _damaged(path: Path) -> InputError:
    """A job that is not as it was written; it is removed."""
    path.unlink(missing_ok=True)
    return InputError(
        f"{path} was damaged and is removed: run the same command again, it repeats that part only"
    )


def _run_of(path: Path) -> str | None:
    """The run that a finished job is of; None where there is none, or it was cut off."""
    try:
        with regular_file(path, *A_JOB) as file:
            file.seek(-TRAILER_BYTES, os.SEEK_END)
            trailer = file.read()
    except PermissionError:
        raise
    except OSError:  # none, or shorter than that
        return None
    if not trailer.startswith(MAGIC):
        return None
    return trailer[len(MAGIC) : -32].decode("ascii", "replace")


def _encoded(value: Any) -> np.ndarray:
    return np.frombuffer(json.dumps(value).encode(), np.uint8)


def _decoded(stored: np.ndarray) -> Any:
    return json.loads(stored.tobytes())
