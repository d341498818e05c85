"""Starting from another run's weights: `train.init_from=RUN`.

The averaged weights of a run that is finished, else those of its latest checkpoint; the optimizer,
the schedule and the objective's memory begin anew. The towers have to be the same. Temperatures and
heads are taken over where the objective has them under the same names and shapes.
"""

from dataclasses import dataclass
from pathlib import Path

import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from jaxtyping import PyTree

from scav_jax.base.documents import checksum
from scav_jax.base.errors import InputError, listed
from scav_jax.features.clip import fingerprint_difference
from scav_jax.training.checkpoints import checksums, latest_params, newest_first
from scav_jax.training.config import from_dict
from scav_jax.training.runs import (
    AVERAGED,
    CONFIG_FILE,
    build,
    check_no_export,
    load_run,
    parameter_shapes,
    read_config,
    seen_by,
)
from scav_jax.training.setup import Setup, widths

TOWERS = "encoders"


@dataclass(frozen=True)
class Start:
    """The weights that a run starts from.

    Attributes:
      run: the directory of the run that they are of.
      about: what config.json says of them: which they are, a checksum, what they have seen.
      params: by name, `encoders/visual/...`; None where a run has gone on from them already.
    """

    run: str
    about: dict
    params: dict[str, np.ndarray] | None

    def applied_to(self, params: PyTree) -> tuple[PyTree, list[str]]:
        """Parameters with these weights in their place, and the names of those that stay."""
        if self.params is None:
            return params, []
        own = flatten_dict(params, sep="/")
        taken = {
            name: jnp.asarray(value, own[name].dtype)
            for name, value in self.params.items()
            if name in own and own[name].shape == value.shape
        }
        return unflatten_dict(own | taken, sep="/"), sorted(own.keys() - taken.keys())

    def in_words(self, fresh: list[str]) -> str:
        """A line for people."""
        more = f"; new are {listed(fresh)}" if fresh else ""
        return f"starting from the weights of {self.run} ({self.about['weights']}){more}"


def weights_to_start_from(setup: Setup, workdir: Path) -> Start | None:
    """What `train.init_from` names; None where it names nothing.

    A run that is resumed goes on from its checkpoints: then nothing is read, and that other run may
    be gone.

    Raises:
      InputError: no run there, none with weights, other towers, or features of another backbone.
    """
    source = setup.config.train.init_from
    if not source:
        return None
    if newest_first(workdir) and (workdir / CONFIG_FILE).exists():
        before = read_config(workdir)
        if before["start"] and before["train"]["init_from"] == source:
            return Start(source, before["start"], None)
    config = _config_of(source)
    _check_backbone(source, config, setup)
    params, which = _weights_of(Path(source), config)
    named = {name: np.asarray(value) for name, value in flatten_dict(params, sep="/").items()}
    _check_towers(source, named, setup)
    about = {"weights": which, "checksum": checksum(checksums(params)), "seen": seen_by(config)}
    return Start(source, about, named)


def _config_of(source: str) -> dict:
    try:
        config = read_config(Path(source))
        check_no_export(Path(source), config)
        return config
    except InputError as error:
        raise InputError(f"train.init_from: {error}") from None


def _weights_of(run: Path, config: dict) -> tuple[PyTree, str]:
    if (run / AVERAGED).is_dir():
        finished = load_run(run)
        return finished.params, f"averaged over steps {', '.join(map(str, finished.steps))}"
    encoders, objective = build(from_dict(config, run / CONFIG_FILE))
    found = latest_params(run, parameter_shapes(encoders, objective, config["features"]["widths"]))
    if found is None:
        raise InputError(
            f"train.init_from: {run} has no weights yet: no checkpoint of it can be read; train it "
            "longer, or name another run"
        )
    params, step = found
    return params, f"of step {step}, the latest of an unfinished run"


def _check_backbone(source: str, config: dict, setup: Setup) -> None:
    """Raises `InputError` where weights are of features that mean something else."""
    made_by = [
        {"backbone": fingerprint.get("backbone")}
        for fingerprint in (config["features"]["fingerprint"], setup.training.fingerprint)
    ]
    differs = fingerprint_difference(*made_by)
    if differs:
        raise InputError(
            f"train.init_from: {source} was trained on features of another backbone ({differs}); "
            "extract with that backbone, or name another run"
        )


def _check_towers(source: str, params: dict[str, np.ndarray], setup: Setup) -> None:
    """Raises `InputError` naming the first parameter of the towers that differs."""
    shapes = parameter_shapes(setup.encoders, setup.objective, widths(setup))
    ours = {name: leaf.shape for name, leaf in flatten_dict(shapes, sep="/").items()}
    theirs = {name: value.shape for name, value in params.items()}
    towers = sorted(name for name in ours | theirs if name.startswith(f"{TOWERS}/"))
    for name in towers:
        if ours.get(name) != theirs.get(name):
            raise InputError(
                f"train.init_from: {source} has other towers: {name} has the shape "
                f"{theirs.get(name, 'none: it is missing')} there and "
                f"{ours.get(name, 'none: it should not exist')} here; take the encoders.* of "
                f"{Path(source) / CONFIG_FILE}"
            )
