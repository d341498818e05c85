"""The data that a run was trained on, read again: what is fitted on them must be fitted on them."""

from pathlib import Path

from scav_jax.base.errors import InputError
from scav_jax.features import store
from scav_jax.features.store import Split
from scav_jax.training.runs import Run


def own_split(run: Run, role: str) -> Split:
    """A run's split of `role`, "train" or "validation".

    Raises:
      InputError: it is not there, or other clips or features lie behind its path now.
    """
    data = run.config["data"]
    split = store.read(Path(data["path"]), data[f"{role}_split"])
    content = run.config.get("features", {}).get("content", {}).get(role)
    if content is not None and split.content != content:
        raise InputError(
            f"{split.data} ({split.split}): expected the clips that {run.path} was trained with, "
            "other clips or features lie there now; bring the former ones back"
        )
    return split
