"""Towers as ONNX, for who has neither JAX nor Python: `scav export --onnx N,M`.

    DIR/onnx/visual.onnx    features [B, N, Dv] float32, lengths [B] int32
    DIR/onnx/audio.onnx       -> latents [B, N, C], embedding [B, C]

Of any batch B and a fixed number of steps N: shorter clips are padded, and `lengths` say how many
steps are real. The embedding is the mean of the latents over these; a model whose objective embeds
in a way of its own has latents only. What is written is run once and compared with the towers.
"""

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from scav_jax.base.errors import InputError
from scav_jax.base.files import write_atomically
from scav_jax.export.towers import tower_function, width_read
from scav_jax.objectives.objective import embeds_its_own_way
from scav_jax.retrieval.model import Model
from scav_jax.sequences import masked_mean

FOLDER = "onnx"
OPSET = 20
TOLERANCE = 1e-5  # of the largest number that comes out


def write_graphs(model: Model, folder: Path, steps: Mapping[str, int]) -> None:
    """Writes FOLDER/onnx.

    Args:
      model: whose towers.
      folder: of an export.
      steps: of each stream, by its name.

    Raises:
      InputError: the packages are not installed, or what they make is not the same numbers.
    """
    (folder / FOLDER).mkdir()
    for stream, count in steps.items():
        content = graph(model, stream, count)
        _check(content, model, stream, count)
        write_atomically(folder / FOLDER / f"{stream}.onnx", content)


def graph(model: Model, stream: str, steps: int) -> bytes:
    """A tower of that many steps, and the embedding, as one ONNX file."""
    to_onnx = _packages()[0]
    (batch,) = jax.export.symbolic_shape("B")
    width = width_read(model, stream)
    shapes = [
        jax.ShapeDtypeStruct((batch, steps, width), jnp.float32),
        jax.ShapeDtypeStruct((batch,), jnp.int32),
    ]
    outputs = ["latents"]
    if not embeds_its_own_way(model.run.objective):
        outputs.append("embedding")
    # What they warn of: every helper value whose type is inferred; plug-ins for other packages.
    logs = {log: log.level for log in map(logging.getLogger, ("onnx_ir", "jax2onnx"))}
    for log in logs:
        log.setLevel(logging.ERROR)
    try:
        made = to_onnx(
            _function(model, stream),
            shapes,
            model_name=stream,
            opset=OPSET,
            input_names=["features", "lengths"],
            output_names=outputs,
        )
    finally:
        for log, level in logs.items():
            log.setLevel(level)
    return made.SerializeToString()


def _function(model: Model, stream: str):
    latents_of = tower_function(model.run.encoders, stream)
    params = model.run.params["encoders"][stream]
    alone = embeds_its_own_way(model.run.objective)

    def outputs(features, lengths):
        with jax.disable_jit():  # blocks are written out: jax2onnx does not take their loop
            latents = latents_of(params, features, lengths)
        return latents if alone else (latents, masked_mean(latents, lengths))

    return outputs


def _check(content: bytes, model: Model, stream: str, steps: int) -> None:
    """Raises `InputError` where the file gives other numbers than the tower; on noise, ragged."""
    session = _packages()[1].InferenceSession(content, providers=["CPUExecutionProvider"])
    random = np.random.default_rng(0)
    width = width_read(model, stream)
    features = random.normal(size=(3, steps, width)).astype(np.float32)
    lengths = np.array([steps, max(1, steps // 2), 1], np.int32)
    got = session.run(None, {"features": features, "lengths": lengths})
    expected = jax.tree.leaves(_function(model, stream)(features, lengths))
    for one, other in zip(got, expected, strict=True):
        largest = float(np.abs(np.asarray(other)).max())
        if not np.abs(one - np.asarray(other)).max() <= TOLERANCE * max(largest, 1.0):
            raise InputError(
                f"--onnx: expected the {stream} tower's numbers from its ONNX file, they differ by "
                f"{np.abs(one - np.asarray(other)).max():.2g}; leave it out, and use the tower as "
                "StableHLO"
            )


def _packages() -> tuple[Any, Any]:
    """What writes ONNX, and what runs it."""
    try:
        import onnxruntime
        from jax2onnx import to_onnx
    except ModuleNotFoundError as error:
        raise InputError(
            f"--onnx: expected the extra onnx, {error.name} is not installed: "
            "pip install -c constraints.txt '.[onnx]'"
        ) from None
    return to_onnx, onnxruntime
