"""Saving, resuming, keeping the latest and the best, averaging the best (paper section IV).

Orbax writes each checkpoint in the
background, under a temporary name that it then renames, so that a kill at any moment leaves the one
before. Each holds checksums of what is in it; one that does not read back as it was written is set
aside in `broken_checkpoints/`, and the run goes on from the one before. Orbax is imported where it
is used: an exported model is loaded without it.
"""

import contextlib
import json
import os
import re
import shutil
import sys
import zlib
from collections.abc import Iterator
from operator import itemgetter
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PyTree, UInt32

from scav_jax.base.documents import read_object
from scav_jax.base.errors import OUR_FAULTS, InputError, in_a_line
from scav_jax.base.files import check_readable, full_disk_is_an_oserror
from scav_jax.train_step import TrainState
from scav_jax.training import processes

CHECKPOINTS = "checkpoints"
BROKEN = "broken_checkpoints"
SCORE = "score"
# What reading a checkpoint may raise though nothing is wrong with it: a device or a machine without
# memory, a user without permission. (A damaged one makes orbax raise whatever there is, so that a
# fault of the program's shows by this: no checkpoint at all can be read.)
NOT_DAMAGE = (MemoryError, PermissionError, jax.errors.JaxRuntimeError)


class OtherModel(InputError):
    """A checkpoint whose arrays have other names or shapes than the model's."""


class Checkpoints:
    """The checkpoints of one run: the latest two, and the `keep_best` with the highest score.

    Two, so that there is one to go on from if the latest cannot be read. Under many processes all
    make the same calls; each writes the part of the arrays that it holds.
    """

    def __init__(self, run: Path, keep_best: int):
        if keep_best < 1:
            raise InputError(f"train.keep_best: expected at least 1, got {keep_best}")
        import orbax.checkpoint as ocp
        from orbax.checkpoint import checkpoint_managers

        best = checkpoint_managers.BestN(
            get_metric_fn=itemgetter(SCORE),
            n=keep_best,
            keep_checkpoints_without_metrics=False,
        )
        policy = checkpoint_managers.AnyPreservationPolicy([checkpoint_managers.LatestN(2), best])
        self._keep_best = keep_best
        self._run = run
        processes.from_first(self._set_aside_without_score)
        self._manager = ocp.CheckpointManager(
            (run / CHECKPOINTS).absolute(),
            options=ocp.CheckpointManagerOptions(
                best_fn=itemgetter(SCORE),  # without it orbax does not store the scores
                preservation_policy=policy,  # `best_fn` alone would delete a bad latest step
                cleanup_tmp_directories=True,
            ),
        )

    def latest_written(self) -> int | None:
        """The step of the newest checkpoint that is on disk, whole."""
        return next((int(path.name) for path in newest_first(self._run)), None)

    def save(self, step: int, state: TrainState, notes: dict, score: float | None) -> None:
        """Starts writing a checkpoint; a score (higher is better) enters it among the best.

        What is written last is waited for, so at most one is on its way.

        Args:
          step: batches seen so far.
          state: the training state; copied before this returns.
          notes: what else there is to go on from, as JSON: where the data iterator is.
          score: of the validation at this step, or None if there was none.
        """
        import orbax.checkpoint as ocp

        with self._disk_errors():
            self._manager.save(
                step,
                args=ocp.args.Composite(
                    params=ocp.args.PyTreeSave(state.params),
                    rest=ocp.args.PyTreeSave(state.replace(params={})),
                    notes=ocp.args.JsonSave(notes),
                    checks=ocp.args.JsonSave(_checks(state, notes)),
                ),
                metrics=None if score is None else {SCORE: score},
            )

    def restore_latest(self, like: TrainState) -> tuple[int, TrainState, dict] | None:
        """The newest checkpoint that can be read; says which newer ones could not, and why.

        Those are moved to `broken_checkpoints/`, so that their steps can be saved again.

        Args:
          like: as for `restore`.

        Returns:
          Its step, the state and the notes; None if nothing was ever saved.

        Raises:
          InputError: there are checkpoints and none can be read, or they are of another model.
        """
        broken: dict[int, Exception] = {}
        for step in sorted(self._manager.all_steps(), reverse=True):
            try:
                restored = self.restore(step, like)
            except NOT_DAMAGE:
                raise
            except Exception as error:
                broken[step] = error
                continue
            for lost, error in broken.items():
                processes.from_first(lambda lost=lost, error=error: self._set_aside(lost, error))
            if broken:
                self._manager.reload()
            return step, *restored
        if broken:
            newest = broken[max(broken)]
            other_model = all(isinstance(error, OtherModel) for error in broken.values())
            if other_model or isinstance(newest, OUR_FAULTS):
                raise newest
            raise InputError(
                f"{self._manager.directory}: none of the checkpoints (steps "
                f"{', '.join(map(str, sorted(broken)))}) can be read, the newest because: "
                f"{in_a_line(newest)}; bring them back from a copy, or start anew in another "
                "--workdir"
            )
        return None

    def restore(self, step: int, like: TrainState) -> tuple[TrainState, dict]:
        """The state and the notes of a step.

        Args:
          step: of a checkpoint that exists.
          like: a state of the same model; its arrays' shapes and shardings are used, whatever
            devices the checkpoint was written from.

        Raises:
          OtherModel: the checkpoint holds another model or optimizer.
          ValueError, OSError and others: it is not what was written.
        """
        import orbax.checkpoint as ocp

        rest, there = like.replace(params={}), Path(self._manager.directory) / str(step)
        with _orbax_reads(self._run / CHECKPOINTS / str(step)):
            restored = self._manager.restore(
                step,
                args=ocp.args.Composite(
                    params=_restore_args(like.params, there / "params"),
                    rest=_restore_args(rest, there / "rest"),
                    notes=ocp.args.JsonRestore(),
                    checks=ocp.args.JsonRestore(),
                ),
            )
        state = restored["rest"].replace(params=restored["params"])
        check_sums(restored["checks"], _checks(state, restored["notes"]))
        return state, restored["notes"]

    def best_steps(self) -> list[int]:
        """The steps of the best checkpoints, ascending."""
        scored = [
            (self._manager.metrics(step)[SCORE], step)
            for step in self._manager.all_steps()
            if self._manager.metrics(step)
        ]
        return sorted(step for _, step in sorted(scored)[-self._keep_best :])

    def average(self, like: PyTree) -> tuple[PyTree, list[int]]:
        """The mean of the best checkpoints' parameters in float32, and their steps.

        A checkpoint that is not what was written is left out, with a word.
        """
        total, steps = jax.tree.map(lambda x: np.zeros(x.shape, np.float32), like), []
        broken: Exception | None = None
        for step in self.best_steps():
            try:
                params = _params(self._run / CHECKPOINTS / str(step), like)
            except (OtherModel, *NOT_DAMAGE):
                raise
            except Exception as error:
                broken = error
                _say_broken(step, error, "left out of the average")
                continue
            total = jax.tree.map(lambda t, p: t + np.asarray(p, np.float32), total, params)
            steps.append(step)
        if not steps:
            if isinstance(broken, OUR_FAULTS):
                raise broken
            raise InputError(
                "no checkpoint of this run was ever validated, or none can be read: train longer"
            )
        return jax.tree.map(lambda t: t / np.float32(len(steps)), total), steps

    def wait(self) -> None:
        """Returns once everything is on disk."""
        with self._disk_errors():
            self._manager.wait_until_finished()

    def close(self) -> None:
        """Waits, and lets go of the directory."""
        with self._disk_errors():
            self._manager.close()

    @contextlib.contextmanager
    def left_whole(self) -> Iterator[None]:
        """After a failure waits for what is being written: a notebook may go on at once.

        One of several processes does not: the others may have ended, and would be waited for.
        """
        try:
            yield
        except BaseException:
            if jax.process_count() == 1:
                with contextlib.suppress(Exception):  # the failure is what there is to tell
                    self.close()
            raise

    def _disk_errors(self):
        """tensorstore reports a full disk as text in a ValueError: makes it the OSError it is."""
        return full_disk_is_an_oserror(str(self._manager.directory))

    def _set_aside(self, step: int, error: Exception) -> None:
        """Moves a broken checkpoint out of the way, and says so."""
        broken = self._run / BROKEN / str(step)
        shutil.rmtree(broken, ignore_errors=True)
        broken.parent.mkdir(exist_ok=True)
        os.replace(self._run / CHECKPOINTS / str(step), broken)
        _say_broken(step, error, f"moved to {broken}, going back to the one before")

    def _set_aside_without_score(self) -> None:
        """Sets checkpoints aside whose score cannot be read: orbax would stop at the first."""
        paths, broken = newest_first(self._run), {}
        for path in paths:
            try:
                file = path / "metrics" / "metrics"
                if file.parent.exists():
                    float(read_object(file, "a score", "it is set aside")[SCORE])
            except NOT_DAMAGE:
                raise
            except (OSError, ValueError, KeyError, TypeError) as error:
                broken[int(path.name)] = error
        if broken and len(broken) == len(paths):
            raise InputError(
                f"{self._run / CHECKPOINTS}: none of the checkpoints can be read (step "
                f"{max(broken)}: {in_a_line(broken[max(broken)])}); bring them back from a copy, "
                "or start anew in another --workdir"
            )
        for step, error in sorted(broken.items()):
            self._set_aside(step, error)


def latest_params(run: Path, like: PyTree) -> tuple[PyTree, int] | None:
    """The parameters of the newest checkpoint that can be read, and its step; changes nothing."""
    for path in newest_first(run):
        try:
            return _params(path, like), int(path.name)
        except NOT_DAMAGE:
            raise
        except Exception as error:
            _say_broken(int(path.name), error, "going back to the one before")
    return None


def newest_first(run: Path) -> list[Path]:
    """The folders of a run's checkpoints, by their steps."""
    steps = [path for path in (run / CHECKPOINTS).glob("*") if re.fullmatch("[0-9]+", path.name)]
    return sorted(steps, key=lambda path: -int(path.name))


def _params(checkpoint: Path, like: PyTree) -> PyTree:
    """The parameters of a checkpoint, as they were written."""
    params = restore_params(checkpoint / "params", like)
    written = _read_item(checkpoint / "checks")
    own = {name: total for name, total in written.items() if name.startswith("params/")}
    check_sums(own, checksums({"params": params}))
    return params


def run_of_checkpoints(run: Path) -> str | None:
    """The identity of the run that the checkpoints in a directory are of; None without any.

    Raises:
      InputError: there are checkpoints, and none says of which run it is.
    """
    paths = newest_first(run)
    for path in paths:
        with contextlib.suppress(OSError, InputError, KeyError):
            return str(_read_item(path / "notes")["run"])
    if paths:
        check_readable(run / CHECKPOINTS)
        raise InputError(
            f"{run}: has checkpoints that do not say of which run they are; use another --workdir"
        )
    return None


def _read_item(folder: Path) -> dict:
    """What orbax wrote of a JSON item of a checkpoint."""
    return read_object(folder / "metadata", "a part of a checkpoint", "it is set aside")


def _say_broken(step: int, error: Exception, what_is_done: str) -> None:
    message = f"checkpoint of step {step} is broken ({in_a_line(error)}): {what_is_done}"
    print(message, file=sys.stderr)


def check_sums(written: dict[str, int], read: dict[str, int]) -> None:
    """Raises `ValueError` naming the first array that is not what was written."""
    for name in sorted(written.keys() | read.keys()):
        if written.get(name) != read.get(name):
            raise ValueError(f"{name} has another checksum than when it was written")


def checksums(tree: PyTree) -> dict[str, int]:
    """`name -> checksum` of the arrays of a tree; the same on any devices."""
    sums = jax.device_get([_checksum(jnp.asarray(leaf)) for leaf in jax.tree.leaves(tree)])
    return {name: int(total) for name, total in zip(_shapes(tree), sums, strict=True)}


def _checks(state: TrainState, notes: dict) -> dict[str, int]:
    """Checksums of everything that a checkpoint holds."""
    return checksums(state) | {"notes": zlib.crc32(json.dumps(notes, sort_keys=True).encode())}


@jax.jit  # one program a shape: hundreds of arrays in one take seconds to compile
def _checksum(array: Array) -> UInt32[Array, ""]:
    """The sum of an array's words, each times an odd number of its own, modulo 2^32.

    Integers are added, so the order and hence the sharding do not matter; an odd factor times a
    flipped bit is never 0, so every single flip is seen.
    """
    if array.dtype == bool:
        array = array.astype(jnp.uint8)  # as which it has bits
    word = {1: jnp.uint8, 2: jnp.uint16}.get(array.dtype.itemsize, jnp.uint32)
    words = jax.lax.bitcast_convert_type(array, word).astype(jnp.uint32)
    position, stride = jnp.zeros(words.shape, jnp.uint32), 1
    for axis in reversed(range(words.ndim)):
        index = jax.lax.broadcasted_iota(jnp.uint32, words.shape, axis)
        position += index * jnp.uint32(stride % 2**32)
        stride *= words.shape[axis]
    factor = (position * jnp.uint32(2654435761)) | jnp.uint32(1)
    return jnp.sum(words * factor, dtype=jnp.uint32)


def _restore_args(like: PyTree, path: Path):
    """How to read a tree: each array with the shape, dtype and sharding of its like."""
    import orbax.checkpoint as ocp

    check_same_shapes(like, _stored_shapes(path), path)
    return ocp.args.PyTreeRestore(like, ocp.checkpoint_utils.construct_restore_args(like))


def checkpointer():
    """Reads and writes in this process alone, whatever the others do."""
    import orbax.checkpoint as ocp

    own = jax.process_index()
    alone = ocp.options.MultiprocessingOptions(primary_host=own, active_processes={own})
    options = alone if processes.many() else ocp.options.MultiprocessingOptions()
    handler = ocp.PyTreeCheckpointHandler(multiprocessing_options=options)
    return ocp.Checkpointer(handler, multiprocessing_options=options)


def restore_params(path: Path, like: PyTree) -> PyTree:
    import orbax.checkpoint as ocp

    with _orbax_reads(path):
        check_same_shapes(like, _stored_shapes(path), path)
    arrays = jax.tree.map(lambda x: np.zeros(x.shape, np.float32), like)
    in_numpy = ocp.RestoreArgs(restore_type=np.ndarray, dtype=np.dtype(np.float32))
    wanted = ocp.args.PyTreeRestore(arrays, jax.tree.map(lambda _: in_numpy, arrays))
    with _orbax_reads(path), checkpointer() as orbax:
        return orbax.restore(path.absolute(), wanted)


@contextlib.contextmanager
def _orbax_reads(folder: Path) -> Iterator[None]:
    """Orbax takes files that it may not read for damaged, or for absent; what it raises it logs."""
    from absl import logging as absl_logging

    before = absl_logging.get_verbosity()
    absl_logging.set_verbosity(absl_logging.FATAL)
    try:
        yield
    except Exception:
        check_readable(folder)
        raise
    finally:
        absl_logging.set_verbosity(before)


def _stored_shapes(path: Path) -> dict[str, tuple[int, ...]]:
    """`parameter path -> shape` of a stored tree."""
    with checkpointer() as orbax:
        stored = orbax.metadata(path.absolute()).item_metadata
    shapes = _shapes(getattr(stored, "tree", stored))
    if not shapes:
        raise FileNotFoundError(f"no arrays are stored in {path}")
    return shapes


def _shapes(tree: PyTree) -> dict[str, tuple[int, ...]]:
    leaves = jax.tree_util.tree_leaves_with_path(tree, is_leaf=lambda x: hasattr(x, "shape"))
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): tuple(leaf.shape)
        for path, leaf in leaves
        if hasattr(leaf, "shape")  # what is stored of an empty subtree has none
    }


def check_same_shapes(like: PyTree, stored: dict[str, tuple[int, ...]], where: Path) -> None:
    """Raises `OtherModel` naming the first parameter that differs from what is stored."""
    expected = _shapes(like)
    for name in sorted(expected.keys() | stored.keys()):
        if expected.get(name) != stored.get(name):
            raise OtherModel(
                f"checkpoint {where} holds another model: parameter {name!r} should have shape "
                f"{expected.get(name, 'none: it should not exist')}, it has "
                f"{stored.get(name, 'none: it is missing')}; use the config that it was trained "
                "with, or another --workdir"
            )
