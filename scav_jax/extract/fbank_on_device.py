"""The log-mel frames of `fbank` in JAX: jitted, batched, on the device that runs the model.

Decode workers have no JAX, so both forms exist; a test holds them together.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from scav_jax.base.errors import InputError
from scav_jax.extract import fbank

HOPS_A_WINDOW = -(-fbank.WINDOW_SAMPLES // fbank.HOP_SAMPLES)  # 3: windows are 2.5 hops long


def log_mel_on_device(waveforms: Array | np.ndarray) -> Float[Array, "B frames 128"]:
    """`fbank.log_mel` of every row: the same numbers within float32 rounding (tested).

    Everything is float32, matrix products at full precision. A frame reads its own 25 ms only, so
    whatever lies beyond a sound's end (NaN included) stays in the frames that reach beyond it.

    Args:
      waveforms: `[B, S]`, mono, 16 kHz, in [-1, 1].

    Returns:
      float32, at least log(1.19e-7) = -15.94; no frames for less than 25 ms.

    Raises:
      InputError: not floats; outside of `jit`, far outside of [-1, 1] too.
    """
    _check(waveforms)
    frames = fbank.frame_count(waveforms.shape[1])
    windows = _windows(waveforms.astype(jnp.float32) * fbank.FULL_SCALE, frames)
    centred = windows - _means(windows)  # Kaldi's remove_dc_offset
    # What the mean was rounded by; of a constant it were all that is left, far above the floor.
    centred = centred - _means(centred)
    # The first sample is its own predecessor.
    before = jnp.concatenate([centred[..., :1], centred[..., :-1]], axis=-1)
    emphasised = (centred - fbank.PREEMPHASIS * before) * fbank.povey_window()[None, None]
    spectrum = jnp.fft.rfft(emphasised, fbank.FFT_SAMPLES, axis=-1)
    power = jnp.square(spectrum.real) + jnp.square(spectrum.imag)
    # Kaldi's filters end before the Nyquist bin.
    energies = jnp.matmul(
        power[..., : fbank.FFT_SAMPLES // 2],
        fbank.mel_filters(),
        precision=jax.lax.Precision.HIGHEST,
    )
    return jnp.log(jnp.maximum(energies, fbank.ENERGY_FLOOR))


def _check(waveforms) -> None:
    if not jnp.issubdtype(waveforms.dtype, jnp.floating):
        raise InputError(
            f"waveforms: expected floats in [-1, 1], got {waveforms.dtype}; divide 16-bit samples "
            "by 32768"
        )
    if not isinstance(waveforms, jax.core.Tracer):
        for number, waveform in enumerate(np.asarray(waveforms, np.float32)):
            fbank.check_waveform(np.nan_to_num(waveform, posinf=np.inf), f"waveform {number}")


def _means(windows: Float[Array, "B frames 400"]) -> Float[Array, "B frames 1"]:
    """As a product of matrices, whose result is rounded and stored.

    A mean is a sum times 1/400 to XLA, and contracted with the subtraction that follows into one
    fused multiply-add: the 1/400, which is rounded, then shows in what is left of a constant.
    """
    weights = jnp.full(windows.shape[-1], 1.0 / windows.shape[-1], windows.dtype)
    return jnp.matmul(windows, weights, precision=jax.lax.Precision.HIGHEST)[..., None]


def _windows(waveforms: Float[Array, "B S"], frames: int) -> Float[Array, "B frames 400"]:
    """Overlapping windows as hops side by side: slices only, which is faster than a gather."""
    batch, hop = len(waveforms), fbank.HOP_SAMPLES
    needed = (frames + HOPS_A_WINDOW - 1) * hop
    samples = waveforms[:, :needed]
    samples = jnp.pad(samples, ((0, 0), (0, needed - samples.shape[1])))
    hops = samples.reshape(batch, -1, hop)
    side_by_side = [hops[:, k : k + frames] for k in range(HOPS_A_WINDOW)]
    return jnp.concatenate(side_by_side, axis=-1)[..., : fbank.WINDOW_SAMPLES]
