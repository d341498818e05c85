"""How good a model in training is, and which checkpoint is better."""

import dataclasses
import sys
from functools import partial

import jax
import jax.numpy as jnp

from scav_jax import metrics, retrieve, sharding
from scav_jax.objectives import Objective
from scav_jax.objectives.returns import decided_by, expected, score_of
from scav_jax.retrieval import classify, embed
from scav_jax.sequences import STREAMS, AudioVisual, Batch, as_batch, sequences
from scav_jax.training.config import as_dict
from scav_jax.training.runs import Run, parameter_shapes
from scav_jax.training.setup import Setup, widths

CLIPS = 5  # that are traced


def validate(setup: Setup, params) -> dict[str, float]:
    """What is found on the validation split, and n, its clips.

    R@1 in both directions by each method of the objective; of one that classifies, its accuracy or
    mAP. And what the objective decides on this split, by which sequences are ranked then.
    """
    wanted = setup.config.train.devices or sys.maxsize
    mesh = sharding.local_mesh(min(jax.local_device_count(), wanted))
    run, split = run_of(setup, jax.device_get(params)), setup.validation
    if setup.objective.classes:
        logits = classify.logits_of(run, split, setup.data.batch_size, mesh=mesh)
        found = classify.figures(setup.objective, logits, split.labels, bootstrap=0)
        return {"n": float(len(split)), classify.metric_name(setup.objective): found["figure"]}
    embedded = embed.embed(run, split, batch_size=setup.data.batch_size, mesh=mesh)
    ranks_by = setup.objective.ranks_by()
    similarities, found = embed.all_against_all(embedded, *ranks_by)
    decided = decided_by(setup.objective, similarities, found)
    after = dataclasses.replace(setup.objective, **decided).ranks_by()
    if after != ranks_by:
        found = retrieve.sequence_distances(embedded.latents, *after)
    matrices = {"sequence": found, "aggregation": -similarities}
    return {"n": float(len(setup.validation)), **decided} | {
        f"{method}_{direction}": metrics.recall_at_k(
            metrics.ranks(retrieve.queries_first(matrix, direction)), 1
        )
        for method, matrix in matrices.items()
        if method in setup.objective.methods
        for direction in retrieve.DIRECTIONS
    }


def score(setup: Setup, found: dict[str, float]) -> float:
    """What ranks checkpoints, of what `validate` found."""
    return score_of(setup.objective, found)


def check_used(setup: Setup) -> None:
    """Raises `InputError` where an objective of one's own could not be validated, before the work.

    Nothing is computed: what would be made of a clip is traced.
    """
    objective = setup.objective
    if ":" not in objective.name or objective.classes:
        return
    names = [one.name for one in dataclasses.fields(objective)]
    if not (isinstance(objective.decided, tuple) and set(objective.decided) <= set(names)):
        raise expected(objective, f"`decided` as a tuple of its fields, got {objective.decided!r}")
    shapes = parameter_shapes(setup.encoders, objective, widths(setup))
    function = partial(embed.encode, setup.encoders, objective, STREAMS)
    made = jax.eval_shape(function, shapes, jax.eval_shape(partial(_some_clips, setup)))
    for number, method in enumerate(("kept", "embed")):  # latents, embeddings
        one, other = (jax.tree.leaves(made[stream][number])[0].shape[-1] for stream in STREAMS)
        if one != other:
            words = f"`{method}` to give both streams one width, got {one} of pictures and {other}"
            raise expected(objective, f"{words} of sounds")
    ranks_by = objective.ranks_by()
    if not (isinstance(ranks_by, tuple) and len(ranks_by) == 2 and isinstance(ranks_by[1], dict)):
        words = "`ranks_by` to return a distance's name and its options"
        raise expected(objective, f"{words}, got {ranks_by!r:.80}")
    Objective("", *ranks_by)
    found = {"n": 2.0} | {name: getattr(objective, name) for name in objective.decided}
    for method in objective.methods:
        found |= {f"{method}_{direction}": 0.5 for direction in retrieve.DIRECTIONS}
    score(setup, found)


def _some_clips(setup: Setup) -> Batch:
    """As long as the longest that validation has."""
    split = setup.validation
    steps = {"visual": split.visual_lengths.max(), "audio": split.audio_lengths.max()}
    shapes = ((int(steps[stream]), width) for stream, width in widths(setup).items())
    return as_batch(AudioVisual(*(sequences(jnp.zeros((CLIPS, *shape))) for shape in shapes)))


def run_of(setup: Setup, params) -> Run:
    """The towers with some parameters, as they are used after training."""
    fingerprint = setup.training.fingerprint
    return Run(None, as_dict(setup.config), setup.encoders, setup.objective, params, fingerprint)


def in_words(values: dict[str, float]) -> str:
    """What `validate` found, for people."""
    told = [f"{name} {values[name]:.1%}" for name in classify.METRIC_NAMES if name in values]
    if told:
        return f"N = {values['n']:,.0f}: {told[0]}"
    found = ", ".join(
        f"{method} R@1 A->V {values[f'{method}_a2v']:.1%} V->A {values[f'{method}_v2a']:.1%}"
        for method in ("sequence", "aggregation")
        if f"{method}_a2v" in values
    )
    weights = [f", {name} {value:g}" for name, value in values.items() if name.endswith("_weight")]
    return f"N = {values['n']:,.0f}: {found}" + "".join(weights)
