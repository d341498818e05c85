"""A run on disk: its config, and its model once training is over.

A run directory holds `config.json` (the resolved config, what the features are and, where it began
with another run's weights, which), `checkpoints/` and, at the end, `averaged/`: the averaged
parameters, their checksums, and what the objective has decided on validation. What makes a run the
same run is its content, not where things lie: another path to the same clips resumes, another
content behind the same path does not.
"""

import functools
import json
from dataclasses import dataclass, field, replace
from pathlib import Path

import jax
import jax.numpy as jnp
from jaxtyping import PyTree

from scav_jax import encoders, objectives
from scav_jax.base import locks
from scav_jax.base.documents import checksum, read_document, write_document
from scav_jax.base.errors import InputError, in_a_line, number_of
from scav_jax.base.files import folder_atomically
from scav_jax.base.names import last_parts
from scav_jax.encoders import Towers
from scav_jax.features.clip import fingerprint_difference
from scav_jax.objectives import Objective
from scav_jax.sequences import STREAMS, AudioVisual, Batch, sequences
from scav_jax.train_step import init_params
from scav_jax.training.checkpoints import (
    NOT_DAMAGE,
    OtherModel,
    check_sums,
    checkpointer,
    checksums,
    restore_params,
    run_of_checkpoints,
)
from scav_jax.training.config import Config, as_dict, difference, flatten, from_dict

CONFIG_FILE = "config.json"
AVERAGED = "averaged"
# Where and how fast a run is computed, and where things lie; all else is what is computed.
MAY_CHANGE = (
    *("train.devices", "train.distance_memory_bytes", "train.preemption_deadline_s"),
    *("data.read_threads", "data.path", "train.init_from", "train.tracker"),
    *("train.microbatch", "train.remat"),  # they change no number but for rounding
)
MEND = (
    "bring it back from a copy; or delete it and give the same `scav train` command again: its "
    "checkpoints know which run they are of"
)


@dataclass(frozen=True)
class Run:
    """A trained model and what is needed to use it as it was trained.

    Attributes:
      path: the run directory, or None for a model that is still being trained.
      config: the resolved config, nested dict.
      encoders: the towers.
      objective: what it was trained with, and what that has decided on validation.
      params: averaged over the best checkpoints, or of the state at hand.
      fingerprint: the extractor of the features that it was trained on.
      steps: which checkpoints were averaged.
    """

    path: Path | None
    config: dict = field(repr=False)
    encoders: Towers
    objective: Objective
    params: PyTree = field(repr=False)
    fingerprint: dict
    steps: tuple[int, ...] = ()


def build(config: Config) -> tuple[Towers, Objective]:
    """The towers and the objective that a config describes."""
    sections = as_dict(config)
    objective = objectives.make(sections["objective"], sections["distance"])
    towers = dict(sections["encoders"])
    return encoders.find(towers.pop("name"))(**towers), objective


def parameter_shapes(encoders: Towers, objective: Objective, widths: dict) -> PyTree:
    """The parameters' shapes and dtypes, without computing any.

    Args:
      encoders: the towers.
      objective: it has the temperatures.
      widths: `{"visual": Dv, "audio": Da}`, channels of the features.
    """
    given = encoders, objective, *(widths[name] for name in STREAMS)
    try:
        shapes = _parameter_shapes(*given)
    except TypeError:  # an objective of one's own may have fields without a hash
        shapes = _parameter_shapes.__wrapped__(*given)
    return jax.tree.map(lambda leaf: leaf, shapes)  # dicts of one's own


# Tracing them takes half a second, and a program may load several runs of one config.
@functools.cache
def _parameter_shapes(encoders: Towers, objective: Objective, *widths: int) -> PyTree:
    example = example_batch(dict(zip(STREAMS, widths, strict=True)))
    return jax.eval_shape(lambda: init_params(encoders, objective, example, 0))


def example_batch(widths: dict) -> Batch:
    """The smallest batch of features with these widths; parameters depend on nothing else."""
    streams = (sequences(jnp.zeros((1, 2, widths[name]))) for name in STREAMS)
    seconds = jnp.asarray([[0.0, 1.0]], jnp.float32)
    return Batch(AudioVisual(*streams), jnp.zeros((1,), jnp.int32), seconds)


def save_averaged(
    run: Path, params: PyTree, steps: list[int], decided: dict[str, float] | None = None
) -> None:
    """Writes `RUN/averaged` atomically; replaces an older one.

    `decided` are fields of the objective that validation has set, see `Objective.decide`.
    """
    import orbax.checkpoint as ocp

    with folder_atomically(run / AVERAGED, replacing=True) as partial:
        with checkpointer() as orbax:
            orbax.save((partial / "params").absolute(), args=ocp.args.PyTreeSave(params))
        about = {"averaged_steps": steps, "checks": checksums(params), "decided": decided or {}}
        write_document(partial / "steps.json", about)


def only_trainer(workdir: Path):
    """Holds a run directory for training; `InputError` where another process trains there."""
    return locks.only_one(
        workdir,
        f"{workdir}: another `scav train` is at work in it; wait until it ends or end it, or use "
        "another --workdir",
    )


def identity(resolved: dict) -> str:
    """16 hexadecimal digits of what a run computes; its checkpoints carry them."""
    return checksum(_what_is_computed(resolved))


def open_workdir(workdir: Path, resolved: dict) -> None:
    """Claims a directory for this run, or recognises it; refuses another run's."""
    if not (workdir / CONFIG_FILE).exists():
        of = run_of_checkpoints(workdir)
        if of not in (None, identity(resolved)):
            raise InputError(
                f"{workdir}: has no {CONFIG_FILE}, and its checkpoints are of another run than "
                "this config and this data describe; give those of that run, or another --workdir"
            )
        write_document(workdir / CONFIG_FILE, resolved)
        return
    before = read_config(workdir)
    if "export" in before:
        raise InputError(f"{workdir}: holds an export of a run; use another --workdir")
    extractor = fingerprint_difference(
        before["features"]["fingerprint"], resolved["features"]["fingerprint"]
    )
    if extractor:
        raise InputError(
            f"{workdir}: this run was started on features of another extractor ({extractor}); "
            "use that data, or another --workdir"
        )
    old, new = (_what_is_computed(document) for document in (before, resolved))
    changed = difference(old, new)
    if changed:
        raise InputError(f"{workdir}: holds another run ({changed}); {_way_on(workdir, old, new)}")
    if before != as_read(resolved):  # another path, or another machine
        write_document(workdir / CONFIG_FILE, resolved)


def _way_on(workdir: Path, before: dict, now: dict) -> str:
    """What to do, where a run is not the one that a directory holds."""
    differing = {key for key in before | now if before.get(key, ...) != now.get(key, ...)}
    if differing == {"train.steps"}:
        return (
            "the learning rate of every step depends on train.steps, so no run goes on with other "
            "ones; to go on from its weights, train in another --workdir with "
            f"--config.train.init_from={workdir}"
        )
    if differing <= {f"features.content.{split}" for split in ("train", "validation")}:
        return (
            "the clips behind data.path are not those that it was started on; give the folder that "
            "holds them, or use another --workdir"
        )
    return "use another --workdir, or the same config"


def _what_is_computed(config: dict) -> dict:
    return {key: value for key, value in flatten(as_read(config)).items() if key not in MAY_CHANGE}


def seen_by(config: dict) -> list[str]:
    """What a run has been trained on, in words; then what the one saw whose weights it began with.

    Args:
      config: of the run, resolved, or of its export.
    """
    data = config["data"]
    count = config.get("features", {}).get("clips", {}).get(data["train_split"])
    name = last_parts(Path(data["path"])) or "what it does not say"
    own = f"{name}, {number_of(count, 'clip')}" if count else name
    return [own, *(config.get("start") or {}).get("seen", [])]


def as_read(config: dict) -> dict:
    """A resolved config as it comes back from its file."""
    return json.loads(json.dumps(config))


def load_run(run: str | Path) -> Run:
    """A finished run with its averaged parameters.

    Raises:
      InputError: no run there, its training is not over, or the parameters are not what was
        written.
    """
    run = Path(run)
    config = read_config(run)
    check_no_export(run, config)
    if not (run / AVERAGED).is_dir():
        raise InputError(
            f"{run}: training is not finished (there is no {AVERAGED}/ yet); run the same "
            "`scav train` command again, it resumes"
        )
    encoders, objective = build(from_dict(config, run / CONFIG_FILE))
    like = parameter_shapes(encoders, objective, config["features"]["widths"])
    params, steps, decided = _restore_averaged(run / AVERAGED, like)
    objective = replace(objective, **decided)
    fingerprint = config["features"]["fingerprint"]
    return Run(run, config, encoders, objective, params, fingerprint, tuple(steps))


def check_no_export(run: Path, config: dict) -> None:
    """Raises `InputError` for what `scav export` wrote: it has no checkpoints, and no data."""
    if "export" in config:
        raise InputError(
            f"{run}: expected a run, this is an export of one; give the --workdir of the `scav "
            "train` command that it was made from"
        )


def _restore_averaged(folder: Path, like: PyTree) -> tuple[PyTree, list[int], dict[str, float]]:
    """Averaged parameters as they were written, of which steps they are, and what was decided."""
    try:
        about = read_document(folder / "steps.json", "what the parameters are", "train again")
        steps, decided = about["averaged_steps"], about["decided"]
        params = restore_params(folder / "params", like)
        check_sums(about["checks"], checksums(params))
    except (OtherModel, *NOT_DAMAGE):
        raise
    except Exception as error:
        raise InputError(
            f"{folder}: not what was written ({in_a_line(error)}); delete this folder and run the "
            "same `scav train` command again: it averages the checkpoints anew"
        ) from None
    return params, steps, decided


def read_config(run: Path) -> dict:
    """The resolved config of a run."""
    path = run / CONFIG_FILE
    try:
        return read_document(path, "the config of a run", MEND)
    except (FileNotFoundError, NotADirectoryError):
        raise InputError(
            f"{run}: expected a run directory with {CONFIG_FILE}, found none; "
            "give the --workdir of a `scav train` command"
        ) from None
