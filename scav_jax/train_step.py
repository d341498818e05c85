"""The training state and its pure step function: no config, no input or output, no logging.

A step is views -> towers -> heads -> loss (see `objectives.objective`), whatever the objective is.
"""

from collections.abc import Callable
from functools import partial

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh
from jaxtyping import Array, Bool, Float, Int, PyTree

from scav_jax import gradient_cache, sharding
from scav_jax.distances import MEMORY_BYTES
from scav_jax.encoders import Towers
from scav_jax.encoders.precision import as_multiplied, wide
from scav_jax.objectives import free
from scav_jax.objectives.objective import Metrics, Objective, Outputs, Place
from scav_jax.objectives.returns import (
    check_frozen,
    health_of,
    loss_of,
    memory_of,
    mixed_of,
    of_heads,
    outputs_of,
    remembered,
    returned,
    temperatures_of,
    views_of,
)
from scav_jax.sequences import Batch

# What is folded into a key, for a stream of random numbers of its own.
VIEWS, HEADS, MIXED, FREE = 1, 2, 2**16, 2**17


@flax.struct.dataclass
class TrainState:
    """Everything that training changes.

    Attributes:
      step: batches seen, skipped ones included; it also seeds dropout and views.
      params: `{"encoders": ...}`, and `"log_temperature"` and `"heads"` where there are any.
      opt_state: the optimizer's.
      memory: the objective's, without gradient.
      skipped: steps without an update because loss or gradient were not finite.
      skipped_in_row: how many of them were the latest ones.
    """

    step: Int[Array, ""]
    params: PyTree
    opt_state: PyTree
    memory: PyTree
    skipped: Int[Array, ""]
    skipped_in_row: Int[Array, ""]


def init_params(encoders: Towers, objective: Objective, example: Batch, seed: int) -> PyTree:
    """Parameters at the start; `example` gives the feature widths, its content is not read."""
    key = jax.random.key(seed)
    tiny = jax.tree.map(lambda leaf: jnp.asarray(leaf)[:1], example)
    # One program, without the towers' own work: parameters need shapes only.
    params = {"encoders": jax.jit(encoders.init)(key, tiny.features)["params"]}
    if temperatures := temperatures_of(objective):
        params["log_temperature"] = {
            name: jnp.log(jnp.float32(value)) for name, value in temperatures.items()
        }
    heads = objective.heads(encoders.width)
    if heads is not None:
        returned(objective, "heads", heads, nn.Module)

        @jax.jit
        def start(tiny: Batch) -> PyTree:
            views = views_of(objective, objective.views(tiny, jax.random.fold_in(key, VIEWS)), tiny)
            latents = {
                name: encoders.apply({"params": params["encoders"]}, view)
                for name, view in views.features.items()
            }
            init = nn.init(lambda heads: objective.of_clips(heads, latents, views.about), heads)
            return of_heads(objective, init(jax.random.fold_in(key, HEADS)))

        params["heads"] = start(tiny)
    check_frozen(objective, params)
    return params


def init_state(
    encoders: Towers,
    objective: Objective,
    optimizer: optax.GradientTransformation,
    example: Batch,
    seed: int,
) -> TrainState:
    """The state before the first step; the same seed gives the same numbers."""
    params = init_params(encoders, objective, example, seed)
    # Three arrays, not one: a step may donate its state, and a buffer can be donated only once.
    step, skipped, in_row = (jnp.zeros((), jnp.int32) for _ in range(3))
    memory = memory_of(objective)
    return TrainState(step, params, optimizer.init(params), memory, skipped, in_row)


def compute_loss(
    encoders: Towers,
    objective: Objective,
    params: PyTree,
    batch: Batch,
    key: Array | None = None,
    *,
    memory: PyTree = (),
    place: Place = Place(MEMORY_BYTES),  # noqa: B008
) -> tuple[Float[Array, ""], dict]:
    """The objective on one batch of features, exactly as the step sees it.

    Args:
      encoders: the towers.
      objective: which loss.
      params: of `init_params`.
      batch: B clips' features, padded.
      key: of dropout and views; None turns dropout off, and draws views with a key of its own.
      memory: the objective's.
      place: where it is computed; the `[B, B]` matrix itself is all that is kept of a distance.

    Returns:
      The loss, and the objective's aux.
    """
    batch = mixed(objective, batch, key, place)
    outputs = of_clips(encoders, objective, per_clip(params), batch, None, key)
    return loss_of(objective, params.get("log_temperature", {}), outputs, memory, place)


def mixed(objective: Objective, batch: Batch, key: Array | None, place: Place) -> Batch:
    """The batch as it is trained on; without a key, as it is."""
    if key is None:
        return batch
    found = objective.mixed(batch, jax.random.fold_in(key, MIXED), place)
    return mixed_of(objective, found, len(batch.numbers))


def per_clip(params: PyTree) -> PyTree:
    """The parameters of what is done with each clip alone."""
    return {name: params[name] for name in ("encoders", "heads") if name in params}


def of_clips(
    encoders: Towers,
    objective: Objective,
    params: PyTree,
    batch: Batch,
    rows: Int[Array, " B"] | None,
    key: Array | None,
) -> Outputs:
    """Views, towers and heads of some clips, each alone.

    Args:
      encoders, objective: as for `compute_loss`.
      params: `encoders`, and `heads` where there are any.
      batch: the clips.
      rows: which of the global batch they are, for dropout; None is all of it.
      key: the step's; None turns dropout and augmentation off.
    """
    if key is not None:
        batch = free.changed(objective.free, batch, jax.random.fold_in(key, FREE))
    view_key = jax.random.fold_in(jax.random.key(0) if key is None else key, VIEWS)
    views = views_of(objective, objective.views(batch, view_key), batch)
    which = {} if rows is None else {"rows": rows}
    latents = {}
    for number, (name, view) in enumerate(views.features.items()):
        # Every view has masks of its own.
        own = key if number == 0 or key is None else jax.random.fold_in(key, VIEWS + number)
        rngs = None if own is None else {"dropout": own}
        variables = {"params": params["encoders"]}
        latents[name] = encoders.apply(
            variables, view, deterministic=own is None, rngs=rngs, **which
        )
    heads = bound_heads(encoders, objective, params)
    return outputs_of(
        objective, objective.of_clips(heads, latents, views.about), len(batch.numbers)
    )


def bound_heads(encoders: Towers, objective: Objective, params: PyTree) -> nn.Module | None:
    """The objective's heads with their parameters, or None."""
    heads = objective.heads(encoders.width)
    return None if heads is None else heads.bind({"params": params["heads"]})


def loss_and_gradients(
    encoders: Towers,
    objective: Objective,
    params: PyTree,
    batch: Batch,
    key: Array | None = None,
    *,
    memory: PyTree = (),
    microbatch: int = 0,
    place: Place = Place(MEMORY_BYTES),  # noqa: B008
) -> tuple[tuple[Float[Array, ""], tuple[dict, Outputs]], PyTree]:
    """`compute_loss` and the gradient for `params`; the same numbers with and without caching.

    Args:
      encoders, objective, params, batch, key, memory, place: as for `compute_loss`.
      microbatch: clips that are encoded at a time, over all devices; 0 is all of them, with every
        activation kept. See `gradient_cache`, and `sharding.check_cuts` for what divides.

    Returns:
      The loss and (aux, what the loss saw of each clip); the gradients, those of kernels in
      bfloat16 where they were computed in it and not summed.
    """
    encode = partial(of_clips, encoders, objective)
    batch = mixed(objective, batch, key, place)

    def loss(log_temperature: PyTree, outputs: Outputs):
        value, aux = loss_of(objective, log_temperature, outputs, memory, place)
        return value, (aux, outputs)

    if not microbatch:

        def of_params(params):
            outputs = encode(per_clip(params), batch, None, key)
            return loss(params.get("log_temperature", {}), outputs)

        return jax.value_and_grad(of_params, has_aux=True)(
            params | {"encoders": _differentiated(encoders, objective, params["encoders"], batch)}
        )
    result, (of_clip_params, of_temperature) = gradient_cache.value_and_gradients(
        encode,
        loss,
        per_clip(params),
        params.get("log_temperature", {}),
        batch,
        key,
        microbatch=microbatch,
        mesh=place.mesh,
    )
    has_any = {"log_temperature": of_temperature} if "log_temperature" in params else {}
    return result, of_clip_params | has_any


def _differentiated(encoders: Towers, objective: Objective, params: PyTree, batch: Batch) -> PyTree:
    """What gradients of the towers' parameters are taken for.

    In bfloat16 kernels as they are multiplied: the gradient of a product is bfloat16, and widening
    it here would be a pass of its own over all parameters. Those of several views are summed, which
    is done in float32.
    """
    if encoders.precision != "bfloat16":
        return params
    views = jax.eval_shape(objective.views, batch, jax.random.key(0))
    return params if len(views.features) > 1 else as_multiplied(encoders, params)


def held(updates: PyTree, frozen: tuple[str, ...]) -> PyTree:
    """Zeros for parameters that are not trained: decay moves them where a gradient does not."""

    def of(path, update: Array) -> Array:
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        return jnp.zeros_like(update) if name.startswith(frozen) else update

    return jax.tree_util.tree_map_with_path(of, updates) if frozen else updates


def state_shardings(
    state: TrainState, mesh: Mesh, *, shard_params: bool = False, shard_optimizer: bool = False
) -> TrainState:
    """Where every array of the state lives: whole on every device, or cut over them.

    Args:
      state: of arrays or shapes.
      mesh: the devices.
      shard_params: cuts parameters along their largest axis that the devices divide.
      shard_optimizer: the same for the optimizer's moments, as ZeRO-1 does: each device updates
        its part of the parameters, and these are gathered.
    """
    place = {True: sharding.cut_along_largest, False: sharding.all_replicated}
    shardings = sharding.all_replicated(state, mesh)
    return shardings.replace(
        params=place[shard_params](state.params, mesh),
        opt_state=place[shard_optimizer](state.opt_state, mesh),
    )


def _updated_if(finite: Bool[Array, ""], update: Callable, *old: PyTree) -> tuple:
    """`update(*old)` if all is finite, else what there was.

    On a GPU a branch copies the whole state and waits for the host, while a choice for every number
    is part of the optimizer's kernels; on a CPU it would read the state once more.
    """
    update = jax.jit(update)  # both devices' forms from one trace

    def by_branch(finite: Array, *old: PyTree) -> tuple:
        return jax.lax.cond(finite, update, lambda *same: same, *old)

    def by_number(finite: Array, *old: PyTree) -> tuple:
        return jax.tree.map(partial(jnp.where, finite), update(*old), old)

    return jax.lax.platform_dependent(finite, *old, cpu=by_branch, default=by_number)


def _norms(gradients: PyTree) -> Metrics:
    """Of all gradients, and of all but the temperatures', which a constant distance has too."""
    weights = {name: part for name, part in gradients.items() if name != "log_temperature"}
    of = {"gradient_norm": gradients, "weights_gradient_norm": weights}
    return {name: optax.tree.norm(jax.tree.map(wide, part)) for name, part in of.items()}


def make_train_step(
    encoders: Towers,
    objective: Objective,
    optimizer: optax.GradientTransformation,
    seed: int,
    *,
    memory_bytes: int = MEMORY_BYTES,
    microbatch: int = 0,
    mesh: Mesh | None = None,
) -> Callable[[TrainState, Batch], tuple[TrainState, Metrics]]:
    """`step(state, batch) -> (state, metrics)`, pure and ready for `jit`.

    A step whose loss or gradient is not finite changes neither parameters, optimizer nor memory: it
    is counted instead. Dropout depends on the seed, the step and a clip's row, views on its number:
    so a resumed run is the same, and so is one with another `microbatch`.
    """
    key = jax.random.key(seed)
    place = Place(memory_bytes, mesh)

    def step(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        (loss, (aux, outputs)), gradients = loss_and_gradients(
            encoders,
            objective,
            state.params,
            batch,
            jax.random.fold_in(key, state.step),
            memory=state.memory,
            microbatch=microbatch,
            place=place,
        )
        norms = _norms(gradients)
        finite = jnp.isfinite(loss) & jnp.isfinite(norms["gradient_norm"])

        def update(params: PyTree, opt_state: PyTree, memory: PyTree) -> tuple:
            with jax.numpy_dtype_promotion("standard"):  # optax mixes dtypes; strictness is for us
                # Widened here and not before: what a branch takes is written to memory.
                widened = jax.tree.map(wide, gradients)
                updates, opt_state = optimizer.update(widened, opt_state, params)
            params = optax.apply_updates(params, held(updates, objective.frozen))
            return params, opt_state, remembered(objective, memory, jax.lax.stop_gradient(outputs))

        old = state.params, state.opt_state, state.memory
        params, opt_state, memory = _updated_if(finite, update, *old)
        failed = 1 - finite.astype(jnp.int32)
        counts = state.skipped + failed, (state.skipped_in_row + 1) * failed
        new_state = TrainState(state.step + 1, params, opt_state, memory, *counts)
        metrics = {
            "loss": loss,
            **norms,
            "skipped": new_state.skipped,
            "skipped_in_row": new_state.skipped_in_row,
            **health_of(objective, aux),
        }
        return new_state, metrics

    return step
