"""Saving, resuming, keeping the latest and the best, averaging the best (paper section IV).

A run directory holds `config.json` (the resolved config and the data's fingerprint),
`checkpoints/` and, once training is over, `averaged/`. Orbax writes each checkpoint under a
temporary name and renames it, so that a kill at any moment leaves the one before. It is imported
where it is used: an exported model is loaded without it.
"""

import contextlib
import errno
import json
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from scav_jax.encoders import Encoders
from scav_jax.errors import InputError
from scav_jax.files import write_json
from scav_jax.sequences import AudioVisual, sequences
from scav_jax.train_step import Objective, TrainState, init_params

CONFIG_FILE = "config.json"
CHECKPOINTS = "checkpoints"
AVERAGED = "averaged"
SCORE = "score"


class Checkpoints:
    """The checkpoints of one run: the latest one, and the `keep_best` with the highest score."""

    def __init__(self, run: Path, keep_best: int):
        if keep_best < 1:
            raise InputError(f"train.keep_best: expected at least 1, got {keep_best}")
        import orbax.checkpoint as ocp
        from orbax.checkpoint import checkpoint_managers

        best = checkpoint_managers.BestN(
            get_metric_fn=_score,
            n=keep_best,
            keep_checkpoints_without_metrics=False,
        )
        policy = checkpoint_managers.AnyPreservationPolicy([checkpoint_managers.LatestN(1), best])
        self._keep_best = keep_best
        self._manager = ocp.CheckpointManager(
            (run / CHECKPOINTS).absolute(),
            options=ocp.CheckpointManagerOptions(
                best_fn=_score,  # without it orbax does not store the scores
                preservation_policy=policy,  # `best_fn` alone would delete a bad latest step
                cleanup_tmp_directories=True,
            ),
        )

    def latest_step(self) -> int | None:
        """The step of the newest whole checkpoint."""
        return self._manager.latest_step()

    def save(self, step: int, state: TrainState, batches_state: dict, score: float | None) -> None:
        """Starts writing a checkpoint; a score (higher is better) enters it among the best.

        Args:
          step: batches seen so far.
          state: the training state; copied before this returns.
          batches_state: the data iterator's `get_state()`, JSON.
          score: of the validation at this step, or None if there was none.
        """
        import orbax.checkpoint as ocp

        with self._disk_errors():
            self._manager.save(
                step,
                args=ocp.args.Composite(
                    params=ocp.args.PyTreeSave(state.params),
                    rest=ocp.args.PyTreeSave(state.replace(params={})),
                    batches=ocp.args.JsonSave(batches_state),
                ),
                metrics=None if score is None else {SCORE: score},
            )

    def restore(self, step: int, like: TrainState) -> tuple[TrainState, dict]:
        """The state and the data iterator's state of a step.

        Args:
          step: of a checkpoint that exists.
          like: a state of the same model; its arrays' shapes and shardings are used.

        Raises:
          InputError: the checkpoint holds another model.
        """
        import orbax.checkpoint as ocp

        restored = self._manager.restore(
            step,
            args=ocp.args.Composite(
                params=_restore_args(like.params, self._params_path(step)),
                rest=_restore_args(like.replace(params={})),
                batches=ocp.args.JsonRestore(),
            ),
        )
        return restored["rest"].replace(params=restored["params"]), restored["batches"]

    def best_steps(self) -> list[int]:
        """The steps of the best checkpoints, ascending."""
        scored = [
            (self._manager.metrics(step)[SCORE], step)
            for step in self._manager.all_steps()
            if self._manager.metrics(step)
        ]
        return sorted(step for _, step in sorted(scored)[-self._keep_best :])

    def average(self, like: PyTree) -> tuple[PyTree, list[int]]:
        """The mean of the best checkpoints' parameters in float32, and their steps."""
        steps = self.best_steps()
        if not steps:
            raise InputError("no checkpoint of this run was ever validated: train longer")
        total = jax.tree.map(lambda x: np.zeros(x.shape, np.float32), like)
        for step in steps:
            params = _restore_params(self._params_path(step), like)
            total = jax.tree.map(lambda t, p: t + np.asarray(p, np.float32), total, params)
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
    def _disk_errors(self) -> Iterator[None]:
        """tensorstore reports a full disk as text in a ValueError: make it the OSError it is."""
        try:
            yield
        except Exception as error:
            if "No space left on device" not in str(error):
                raise
            directory = str(self._manager.directory)
            raise OSError(errno.ENOSPC, "No space left on device", directory) from error

    def _params_path(self, step: int) -> Path:
        return Path(self._manager.directory) / str(step) / "params"


def _score(metrics: dict) -> float:
    return metrics[SCORE]


def _restore_args(like: PyTree, path: Path | None = None):
    """How to read a tree: each array with the shape, dtype and sharding of its like."""
    import orbax.checkpoint as ocp

    if path is not None:
        check_same_shapes(like, _stored_shapes(path), path)
    return ocp.args.PyTreeRestore(like, ocp.checkpoint_utils.construct_restore_args(like))


def _restore_params(path: Path, like: PyTree) -> PyTree:
    import orbax.checkpoint as ocp

    check_same_shapes(like, _stored_shapes(path), path)
    arrays = jax.tree.map(lambda x: np.zeros(x.shape, np.float32), like)
    with ocp.PyTreeCheckpointer() as checkpointer:
        return checkpointer.restore(
            path.absolute(), ocp.args.PyTreeRestore(arrays, _as_numpy(arrays))
        )


def _as_numpy(like: PyTree):
    import orbax.checkpoint as ocp

    return jax.tree.map(lambda x: ocp.RestoreArgs(restore_type=np.ndarray, dtype=x.dtype), like)


def _stored_shapes(path: Path) -> dict[str, tuple[int, ...]]:
    """`parameter path -> shape` of a stored tree."""
    import orbax.checkpoint as ocp

    with ocp.PyTreeCheckpointer() as checkpointer:
        stored = checkpointer.metadata(path.absolute()).item_metadata
    return _shapes(getattr(stored, "tree", stored))


def _shapes(tree: PyTree) -> dict[str, tuple[int, ...]]:
    leaves = jax.tree_util.tree_leaves_with_path(tree, is_leaf=lambda x: hasattr(x, "shape"))
    return {
        "/".join(str(getattr(key, "key", key)) for key in path): tuple(leaf.shape)
        for path, leaf in leaves
    }


def check_same_shapes(like: PyTree, stored: dict[str, tuple[int, ...]], where: Path) -> None:
    """Raises `InputError` naming the first parameter that differs from what is stored."""
    expected = _shapes(like)
    for name in sorted(expected.keys() | stored.keys()):
        if expected.get(name) != stored.get(name):
            raise InputError(
                f"checkpoint {where} holds another model: parameter {name!r} should have shape "
                f"{expected.get(name, 'none: it should not exist')}, it has "
                f"{stored.get(name, 'none: it is missing')}; use the config that it was trained "
                "with, or another --workdir"
            )


@dataclass(frozen=True)
class Run:
    """A trained model and what is needed to use it as it was trained.

    Attributes:
      path: the run directory, or None for a model that is still being trained.
      config: the resolved config, nested dict.
      encoders: the towers.
      objective: what it was trained with.
      params: averaged over the best checkpoints, or of the state at hand.
      fingerprint: the extractor of the features that it was trained on.
      steps: which checkpoints were averaged.
    """

    path: Path | None
    config: dict
    encoders: Encoders
    objective: Objective
    params: PyTree
    fingerprint: dict
    steps: tuple[int, ...] = ()


def build(config: dict) -> tuple[Encoders, Objective]:
    """The towers and the objective that a resolved config describes."""
    distance = dict(config["distance"])
    name = distance.pop("name")
    objective = Objective(distance=name, distance_options=distance, **config["objective"])
    return Encoders(**config["encoders"]), objective


def parameter_shapes(encoders: Encoders, objective: Objective, widths: dict) -> PyTree:
    """The parameters' shapes and dtypes, without computing any.

    Args:
      encoders: the towers.
      objective: it has the temperatures.
      widths: `{"visual": Dv, "audio": Da}`, channels of the features.
    """
    return jax.eval_shape(lambda: init_params(encoders, objective, example_batch(widths), 0))


def example_batch(widths: dict) -> AudioVisual:
    """The smallest batch of features with these widths; parameters depend on nothing else."""
    return AudioVisual(
        *(sequences(jnp.zeros((1, 2, widths[name]))) for name in ("visual", "audio"))
    )


def save_averaged(run: Path, params: PyTree, steps: list[int]) -> None:
    """Writes `RUN/averaged` atomically; replaces an older one."""
    import orbax.checkpoint as ocp

    final, partial = run / AVERAGED, run / f".{AVERAGED}.partial"
    shutil.rmtree(partial, ignore_errors=True)
    with ocp.PyTreeCheckpointer() as checkpointer:
        checkpointer.save((partial / "params").absolute(), args=ocp.args.PyTreeSave(params))
    write_json(partial / "steps.json", {"averaged_steps": steps})
    shutil.rmtree(final, ignore_errors=True)
    os.replace(partial, final)


def load_run(run: str | Path) -> Run:
    """A finished run with its averaged parameters.

    Raises:
      InputError: no run there, or its training is not over.
    """
    run = Path(run)
    config = read_config(run)
    if not (run / AVERAGED).is_dir():
        raise InputError(
            f"{run}: training is not finished (there is no {AVERAGED}/ yet); run the same "
            "`python -m scav_jax.train` command again, it resumes"
        )
    encoders, objective = build(config)
    like = parameter_shapes(encoders, objective, config["features"]["widths"])
    params = _restore_params(run / AVERAGED / "params", like)
    steps = json.loads((run / AVERAGED / "steps.json").read_text())["averaged_steps"]
    fingerprint = config["features"]["fingerprint"]
    return Run(run, config, encoders, objective, params, fingerprint, tuple(steps))


def read_config(run: Path) -> dict:
    """The resolved config of a run."""
    path = run / CONFIG_FILE
    if not path.is_file():
        raise InputError(
            f"{run}: expected a run directory with {CONFIG_FILE}, found none; "
            "give the --workdir of a `python -m scav_jax.train` command"
        )
    return json.loads(path.read_text())
