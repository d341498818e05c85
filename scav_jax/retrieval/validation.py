"""How good a model in training is, and which checkpoint is better."""

import dataclasses
import sys

import jax

from scav_jax import metrics, retrieve, sharding
from scav_jax.retrieval import classify, embed
from scav_jax.training.config import as_dict
from scav_jax.training.runs import Run
from scav_jax.training.setup import Setup


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
    similarities, distances = embed.all_against_all(embedded, *ranks_by)
    decided = setup.objective.decide(similarities, distances)
    after = dataclasses.replace(setup.objective, **decided).ranks_by()
    if after != ranks_by:
        distances = retrieve.sequence_distances(embedded.latents, *after)
    matrices = {"sequence": distances, "aggregation": -similarities}
    return {"n": float(len(setup.validation)), **decided} | {
        f"{method}_{direction}": metrics.recall_at_k(
            metrics.ranks(retrieve.queries_first(matrix, direction)), 1
        )
        for method, matrix in matrices.items()
        if method in setup.objective.methods
        for direction in retrieve.DIRECTIONS
    }


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
