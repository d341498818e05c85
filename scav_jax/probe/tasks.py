"""The tasks that a model was trained with, on fixed views of a split's clips.

Beside each accuracy stands the prior's (always the most frequent answer), and that under the
objective's controls: the same views of the same clips without what the task is about. What a
control leaves above the prior, a task tells from something else.
"""

from functools import partial

import jax
import numpy as np

from scav_jax.base.errors import InputError
from scav_jax.features.batches import evaluation_batches
from scav_jax.features.store import Split
from scav_jax.retrieval.embed import of_every_clip
from scav_jax.train_step import of_clips
from scav_jax.training.runs import Run


def accuracies(run: Run, split: Split, batch_size: int) -> dict[str, dict]:
    """By task: `accuracy`, `error` (1.96 standard errors), `prior`, each control, `n`.

    Args:
      run: the model; {} where its objective has no tasks.
      split: its views follow from the clips' numbers, so they are the same for every model with
        the same views.
      batch_size: clips at a time.

    Raises:
      InputError: no clip is long enough for views.
    """
    if not _has_tasks(run, split):  # else all clips would be read for nothing
        return {}
    right, answers = _answers(run, run.objective, split, batch_size)
    others = {
        control: _answers(run, run.objective.under(control), split, batch_size)[0]
        for control in run.objective.controls
    }
    found = {}
    for name, each in right.items():
        if not len(each):
            raise InputError(
                f"{split.data} ({split.split}): expected clips that are long enough for two "
                "segments, got none"
            )
        clips = each.mean(axis=1)
        error = 1.96 * clips.std() / np.sqrt(len(clips))
        counts = np.bincount(answers[name].reshape(-1))
        found[name] = {
            "accuracy": float(clips.mean()),
            "error": float(error),
            "prior": float(counts.max() / counts.sum()),
            **{control: float(of_task[name].mean()) for control, of_task in others.items()},
            "n": len(clips),
        }
    return found


def _has_tasks(run: Run, split: Split) -> bool:
    """Whether the objective says anything of a clip; nothing is computed."""
    data = run.config["data"]
    batch = next(evaluation_batches(split.take([0]), batch_size=1, align=data["align"]))
    return bool(jax.eval_shape(partial(_tasks, run.encoders, run.objective), run.params, batch))


def _answers(run: Run, objective, split: Split, batch_size: int) -> tuple[dict, dict]:
    """By task, whether each view `[clips, views]` was told rightly; and what is true of it."""
    right: dict[str, list] = {}
    true: dict[str, list] = {}
    function = partial(_tasks, run.encoders, objective)
    for tasks in of_every_clip(run, split, function, batch_size, progress=True):
        for name, task in tasks.items():
            labels = task.labels[task.usable].reshape(task.usable.sum(), -1)
            said = task.logits.argmax(axis=-1)[task.usable].reshape(labels.shape)
            right.setdefault(name, []).append(said == labels)
            true.setdefault(name, []).append(labels)
    return tuple({k: np.concatenate(parts) for k, parts in one.items()} for one in (right, true))


@partial(jax.jit, static_argnums=(0, 1))
def _tasks(encoders, objective, params, batch):
    return objective.tasks(of_clips(encoders, objective, params, batch, None, None))
