"""The training state and its pure step function: no config, no input or output, no logging."""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int, PyTree

from scav_jax import gradient_cache, sharding
from scav_jax.distances import MEMORY_BYTES, find, pairwise_with_aux
from scav_jax.encoders import Encoders
from scav_jax.errors import InputError, did_you_mean
from scav_jax.objectives import aggregation_loss, sequence_loss
from scav_jax.objectives.cross_entropy import block_of, over_blocks
from scav_jax.sequences import AudioVisual, Sequences, masked_mean

OBJECTIVES = ("sequence", "aggregation", "sequence+aggregation")
Metrics = dict[str, Float[Array, ""]]


@dataclass(frozen=True)
class Objective:
    """What is minimised: SCAV, CAV or both; they differ by the name only.

    Attributes:
      name: "sequence" (SCAV), "aggregation" (CAV) or "sequence+aggregation" (the multitask
        ablation, equal weights and a temperature each).
      distance: the distance of L_seq, a key of `distances.DISTANCES`. CAV does not train with it.
      distance_options: its options, for example `{"resample": "visual_to_audio"}`.
      normalize: z-score the distance matrix (False: an ablation of Table IV).
      temperature: lambda at the start (paper: 1).
      aggregation_temperature: tau at the start (paper: 0.07).
    """

    name: str = "sequence"
    distance: str = "euclidean"
    distance_options: dict = field(default_factory=dict)
    normalize: bool = True
    temperature: float = 1.0
    aggregation_temperature: float = 0.07

    def __post_init__(self):
        if self.name not in OBJECTIVES:
            raise InputError(
                f"objective.name: expected one of {', '.join(OBJECTIVES)}, got {self.name!r}."
                + did_you_mean(self.name, OBJECTIVES)
            )
        find(self.distance, self.distance_options)

    @property
    def losses(self) -> tuple[str, ...]:
        """The losses that are summed: "sequence", "aggregation" or both."""
        return tuple(self.name.split("+"))


@flax.struct.dataclass
class TrainState:
    """Everything that training changes.

    Attributes:
      step: batches seen, skipped ones included; it also seeds dropout.
      params: `{"encoders": ..., "log_temperature": {"sequence": ..., "aggregation": ...}}`.
      opt_state: the optimizer's.
      skipped: steps without an update because loss or gradient were not finite.
      skipped_in_row: how many of them were the latest ones.
    """

    step: Int[Array, ""]
    params: PyTree
    opt_state: PyTree
    skipped: Int[Array, ""]
    skipped_in_row: Int[Array, ""]


def init_params(
    encoders: Encoders, objective: Objective, example: AudioVisual, seed: int
) -> PyTree:
    """Parameters at the start; `example` gives the feature widths, its content is not read."""
    # Two steps of one clip are enough to know the widths, and cheap.
    tiny = jax.tree.map(jnp.asarray, _first_clip(example))
    log_temperature = {
        "sequence": jnp.log(jnp.float32(objective.temperature)),
        "aggregation": jnp.log(jnp.float32(objective.aggregation_temperature)),
    }
    return {
        "encoders": encoders.init(jax.random.key(seed), tiny)["params"],
        "log_temperature": {name: log_temperature[name] for name in objective.losses},
    }


def _first_clip(batch: AudioVisual) -> AudioVisual:
    def cut(stream):
        steps = min(2, stream.values.shape[1])
        window = np.asarray([[0.0, steps]], np.float32)
        values = jnp.zeros((1, steps, stream.values.shape[2]), jnp.float32)
        return stream.replace(
            values=values, lengths=jnp.full((1,), steps, jnp.int32), windows=window
        )

    return AudioVisual(*(cut(stream) for stream in batch))


def init_state(
    encoders: Encoders,
    objective: Objective,
    optimizer: optax.GradientTransformation,
    example: AudioVisual,
    seed: int,
) -> TrainState:
    """The state before the first step; the same seed gives the same numbers."""
    params = init_params(encoders, objective, example, seed)
    # Three arrays, not one: a step may donate its state, and a buffer can be donated only once.
    step, skipped, in_row = (jnp.zeros((), jnp.int32) for _ in range(3))
    return TrainState(step, params, optimizer.init(params), skipped, in_row)


def compute_loss(
    encoders: Encoders,
    objective: Objective,
    params: PyTree,
    batch: AudioVisual,
    dropout_key: Array | None = None,
    *,
    memory_bytes: int = MEMORY_BYTES,
    mesh: Mesh | None = None,
) -> tuple[Float[Array, ""], dict]:
    """The objective on one batch of features, exactly as the step sees it.

    Args:
      encoders: the towers.
      objective: which loss, with which distance.
      params: of `init_params`.
      batch: B clips' features, padded.
      dropout_key: None turns dropout off.
      memory_bytes: working memory of the distance matrix; the `[B, B]` matrix itself is all that
        is kept of it.
      mesh: over which the batch is cut; each device compares its visual rows with all audio.

    Returns:
      The loss, and aux: `latents`, `embeddings` (visual, audio), the aux of each loss under its
      name ("sequence", "aggregation"), and that of the distance ("distance").
    """
    latents = _encode(encoders, params["encoders"], batch, None, dropout_key)
    return _loss_of_latents(
        objective, params["log_temperature"], latents, memory_bytes=memory_bytes, mesh=mesh
    )


def _encode(
    encoders: Encoders,
    params: PyTree,
    batch: AudioVisual,
    rows: Int[Array, " B"] | None,
    dropout_key: Array | None,
) -> AudioVisual:
    """Latents of some clips; `rows` says which of the global batch they are, None all of it."""
    rngs = None if dropout_key is None else {"dropout": dropout_key}
    which = {} if rows is None else {"rows": rows}
    return encoders.apply(
        {"params": params}, batch, deterministic=dropout_key is None, rngs=rngs, **which
    )


def _loss_of_latents(
    objective: Objective,
    log_temperature: PyTree,
    latents: AudioVisual,
    *,
    memory_bytes: int,
    mesh: Mesh | None,
) -> tuple[Float[Array, ""], dict]:
    """The objective on the latents of a whole batch; see `compute_loss`."""
    embeddings = [masked_mean(stream.values, stream.lengths) for stream in latents]
    aux = {"latents": latents, "embeddings": embeddings}
    loss = jnp.zeros((), jnp.float32)
    if "sequence" in objective.losses:
        compare = partial(_distances, objective, memory_bytes)
        (distances, of_rows), of_audio = sharding.against_all(compare, mesh)(*latents)
        aux["distance"] = of_rows | of_audio
        part, aux["sequence"] = sequence_loss(
            distances, log_temperature["sequence"], normalize=objective.normalize
        )
        loss = loss + part
    if "aggregation" in objective.losses:
        part, aux["aggregation"] = aggregation_loss(*embeddings, log_temperature["aggregation"])
        loss = loss + part
    return loss, aux


def _distances(objective: Objective, memory_bytes: int, visual: Sequences, audio: Sequences):
    """-> (D of these visual clips, what is known of it), what follows from the audio alone."""
    distances, aux = pairwise_with_aux(
        objective.distance, visual, audio, memory_bytes=memory_bytes, **objective.distance_options
    )
    of_audio = {"usable_audio": aux.pop("usable_audio")}
    return (distances, aux), of_audio


def loss_and_gradients(
    encoders: Encoders,
    objective: Objective,
    params: PyTree,
    batch: AudioVisual,
    dropout_key: Array | None = None,
    *,
    memory_bytes: int = MEMORY_BYTES,
    microbatch: int = 0,
    mesh: Mesh | None = None,
) -> tuple[tuple[Float[Array, ""], dict], PyTree]:
    """`compute_loss` and the gradient for `params`; the same numbers with and without caching.

    Args:
      encoders, objective, params, batch, dropout_key, memory_bytes: as for `compute_loss`.
      microbatch: clips that are encoded at a time, over all devices; 0 is all of them, with every
        activation kept. See `gradient_cache`, and `sharding.check_microbatch` for what divides.
      mesh: over which the batch is cut.
    """
    if not microbatch:

        def loss(params):
            return compute_loss(
                encoders,
                objective,
                params,
                batch,
                dropout_key,
                memory_bytes=memory_bytes,
                mesh=mesh,
            )

        return jax.value_and_grad(loss, has_aux=True)(params)
    result, (of_encoders, of_temperature) = gradient_cache.value_and_gradients(
        partial(_encode, encoders),
        partial(_loss_of_latents, objective, memory_bytes=memory_bytes, mesh=mesh),
        params["encoders"],
        params["log_temperature"],
        batch,
        dropout_key,
        microbatch=microbatch,
        mesh=mesh,
    )
    return result, {"encoders": of_encoders, "log_temperature": of_temperature}


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


def make_train_step(
    encoders: Encoders,
    objective: Objective,
    optimizer: optax.GradientTransformation,
    seed: int,
    *,
    memory_bytes: int = MEMORY_BYTES,
    microbatch: int = 0,
    mesh: Mesh | None = None,
) -> Callable[[TrainState, AudioVisual], tuple[TrainState, Metrics]]:
    """`step(state, batch) -> (state, metrics)`, pure and ready for `jit`.

    A step whose loss or gradient is not finite changes neither parameters nor optimizer: it is
    counted instead. Dropout depends on the seed, the step and a clip's row in the batch only, so a
    resumed run is the same, and so is one with another `microbatch` (see `loss_and_gradients`).
    """
    key = jax.random.key(seed)

    def step(state: TrainState, batch: AudioVisual) -> tuple[TrainState, Metrics]:
        dropout_key = jax.random.fold_in(key, state.step)
        (loss, aux), gradients = loss_and_gradients(
            encoders,
            objective,
            state.params,
            batch,
            dropout_key,
            memory_bytes=memory_bytes,
            microbatch=microbatch,
            mesh=mesh,
        )
        gradient_norm = optax.tree.norm(gradients)
        finite = jnp.isfinite(loss) & jnp.isfinite(gradient_norm)
        with jax.numpy_dtype_promotion("standard"):  # optax mixes dtypes; strictness is for us
            updates, opt_state = optimizer.update(gradients, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)

        def keep(new, old):
            return jax.tree.map(lambda n, o: jnp.where(finite, n, o), new, old)

        failed = 1 - finite.astype(jnp.int32)
        new_state = TrainState(
            step=state.step + 1,
            params=keep(params, state.params),
            opt_state=keep(opt_state, state.opt_state),
            skipped=state.skipped + failed,
            skipped_in_row=(state.skipped_in_row + 1) * failed,
        )
        metrics = {
            "loss": loss,
            "gradient_norm": gradient_norm,
            "skipped": new_state.skipped,
            "skipped_in_row": new_state.skipped_in_row,
            **_health(objective, aux),
        }
        return new_state, metrics

    return step


def _health(objective: Objective, aux: dict) -> Metrics:
    """What tells a healthy run from a collapsed one, as scalars."""
    metrics = {}
    for name in objective.losses:
        prefix = "" if name == objective.losses[0] else f"{name}_"
        part = aux[name]
        metrics[f"{prefix}temperature"] = part["temperature"]
        # As the logits rank, which fall with D along each row and column.
        distances = part["distances"] if name == "sequence" else -part["similarities"]
        metrics[f"{prefix}recall_v2a"] = _recall_at_1(distances, axis=1)
        metrics[f"{prefix}recall_a2v"] = _recall_at_1(distances, axis=0)
    if "sequence" in aux:
        distances = aux["sequence"]["distances"]
        metrics["distance_mean"] = jnp.mean(distances)
        metrics["distance_spread"] = jnp.std(distances)
    metrics["embedding_spread"] = jnp.minimum(*(_spread(e) for e in aux["embeddings"]))
    return metrics


def _recall_at_1(distances: Float[Array, "B B"], axis: int) -> Float[Array, ""]:
    """The share of queries whose own pair beats every other; a tie counts against the query."""

    def add(number: Int[Array, ""], found: Int[Array, ""]) -> Int[Array, ""]:
        some, is_own = block_of(distances, axis, number)
        own = jnp.min(jnp.where(is_own, some, jnp.inf), axis=axis, keepdims=True)
        return found + jnp.sum(jnp.sum(some <= own, axis=axis) == 1)

    found = over_blocks(distances, add, jnp.zeros((), jnp.int32))
    return found.astype(jnp.float32) / len(distances)


def _spread(embeddings: Float[Array, "B C"]) -> Float[Array, ""]:
    """How far a batch's embeddings lie apart, relative to their length; 0 when all are equal."""
    deviation = jnp.sum(jnp.var(embeddings, axis=0))
    return jnp.sqrt(deviation / (jnp.mean(jnp.sum(embeddings**2, axis=-1)) + 1e-12))
