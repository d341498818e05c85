"""Kaldi-compatible log-mel frames in numpy, as BEATs and AST models want them.

The same numbers as torchaudio's `compliance.kaldi.fbank` and kaldi-native-fbank with
`num_mel_bins=128, window povey, dither 0, snip_edges`, within float32 rounding (tested).
"""

from functools import cache
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float

from scav_jax.base.errors import InputError
from scav_jax.base.log_mel import MEL_BINS

if TYPE_CHECKING:
    from scipy.sparse import csr_array

RATE_HZ = 16_000
WINDOW_SAMPLES = 400  # 25 ms
HOP_SAMPLES = 160  # 10 ms
FFT_SAMPLES = 512
LOW_HZ, HIGH_HZ = 20.0, 8000.0
PREEMPHASIS = 0.97
POVEY_EXPONENT = 0.85
FULL_SCALE = 32_768.0  # Kaldi counts in 16-bit steps
ENERGY_FLOOR = 1.1920929e-07  # float32 epsilon
FRAMES_AT_ONCE = 4096  # bounds the memory for long waveforms
LOUDEST = 16.0  # 24 dB above full scale: no mix and no resampler gets there, 16-bit steps do


def frame_count(samples: int) -> int:
    """Frames in a waveform; only whole windows count (Kaldi's `snip_edges`).

    >>> frame_count(160_000), frame_count(400), frame_count(399)
    (998, 1, 0)
    """
    return 0 if samples < WINDOW_SAMPLES else 1 + (samples - WINDOW_SAMPLES) // HOP_SAMPLES


def check_waveform(waveform: np.ndarray, name: str = "waveform") -> None:
    """Raises `InputError` unless it is finite mono floats in about [-1, 1].

    Integers are refused rather than scaled: what full scale is, int16 alone does not say.
    """
    if waveform.ndim != 1 or waveform.dtype.kind != "f":
        divide = "; divide 16-bit samples by 32768" if waveform.dtype.kind in "iu" else ""
        raise InputError(
            f"{name}: expected mono floats [samples] in [-1, 1], got shape {waveform.shape} of "
            f"{waveform.dtype}{divide}"
        )
    if not waveform.size:
        return
    peak = max(float(waveform.max()), -float(waveform.min()))
    if not np.isfinite(peak):
        raise InputError(f"{name}: expected finite samples, got NaN or infinity")
    if peak > LOUDEST:
        raise InputError(
            f"{name}: expected samples in [-1, 1], got a peak of {peak:.6g}; divide by full scale, "
            "32768 for 16-bit samples"
        )


def log_mel(
    waveform: np.ndarray,
    window: Float[np.ndarray, "400"] | None = None,
    full_scale: float = FULL_SCALE,
) -> Float[np.ndarray, "frames 128"]:
    """The natural logarithm of the energy in 128 mel bands, every 10 ms.

    Frame k sees the 25 ms from `10 k` ms, so its centre lies at `10 k + 12.5` ms. We say that it
    covers `10 k .. 10 (k + 1)` ms, as frame counts suggest and BEATs' users do: 7.5 ms early.

    Args:
      waveform: `[S]`, mono, 16 kHz, in [-1, 1].
      window: of a frame; None is Kaldi's own, `povey_window`.
      full_scale: what 1 of the waveform counts as; torchaudio's users leave it 1.

    Returns:
      float32, at least log(1.19e-7) = -15.94; no rows for less than 25 ms.

    Raises:
      InputError: not mono floats, not finite, or far outside of [-1, 1] (`check_waveform`).
    """
    check_waveform(waveform)
    frames = frame_count(len(waveform))
    out = np.empty((frames, MEL_BINS), np.float32)
    if frames == 0:
        return out
    window = povey_window() if window is None else window
    scaled = waveform.astype(np.float32) * np.float32(full_scale)
    windows = np.lib.stride_tricks.sliding_window_view(scaled, WINDOW_SAMPLES)[::HOP_SAMPLES]
    for begin in range(0, frames, FRAMES_AT_ONCE):
        stop = begin + FRAMES_AT_ONCE
        out[begin:stop] = _log_mel_of_windows(windows[begin:stop], window)
    return out


def _log_mel_of_windows(
    windows: Float[np.ndarray, "n 400"], window: Float[np.ndarray, "400"]
) -> Float[np.ndarray, "n 128"]:
    centred = windows - windows.mean(axis=1, keepdims=True)  # Kaldi's remove_dc_offset
    # What the mean was rounded by; of a constant it were all that is left, far above the floor.
    centred -= centred.mean(axis=1, keepdims=True)
    padded = np.zeros((len(windows), FFT_SAMPLES), np.float32)
    emphasised = padded[:, :WINDOW_SAMPLES]
    emphasised[:, 1:] = centred[:, 1:] - np.float32(PREEMPHASIS) * centred[:, :-1]
    emphasised[:, 0] = np.float32(1 - PREEMPHASIS) * centred[:, 0]  # its own predecessor
    emphasised *= window
    spectrum = np.fft.rfft(padded, axis=1)
    power = spectrum.real**2 + spectrum.imag**2
    # Kaldi's filters end before the Nyquist bin.
    energies = _sparse_filters() @ power[:, : FFT_SAMPLES // 2].T
    return np.log(np.maximum(energies.T, np.float32(ENERGY_FLOOR)))


@cache
def povey_window() -> Float[np.ndarray, "400"]:
    """Symmetric Hann window to the power 0.85."""
    return hann_window(POVEY_EXPONENT)


@cache
def hann_window(exponent: float = 1.0) -> Float[np.ndarray, "400"]:
    """Symmetric Hann window, Kaldi's `hanning`, to a power."""
    phase = 2 * np.pi * np.arange(WINDOW_SAMPLES) / (WINDOW_SAMPLES - 1)
    return ((0.5 - 0.5 * np.cos(phase)) ** exponent).astype(np.float32)


@cache
def mel_filters() -> Float[np.ndarray, "256 128"]:
    """Triangles that are linear in mel, `mel(f) = 1127 ln(1 + f / 700)`, of height 1.

    The lowest bands are narrower than an FFT bin; those that hold none stay at the floor, in
    Kaldi too.
    """

    low, high = 1127.0 * np.log1p(np.array([LOW_HZ, HIGH_HZ]) / 700.0)
    edges = np.linspace(low, high, MEL_BINS + 2)
    left, centre, right = edges[:-2], edges[1:-1], edges[2:]
    frequencies = np.arange(FFT_SAMPLES // 2) * (RATE_HZ / FFT_SAMPLES)
    bins = 1127.0 * np.log1p(frequencies / 700.0)[:, None]
    rising = (bins - left) / (centre - left)
    falling = (right - bins) / (right - centre)
    return np.maximum(np.minimum(rising, falling), 0.0).astype(np.float32)


@cache
def _sparse_filters() -> "csr_array":
    """`mel_filters`, transposed: a sum of the few bins of a band, always in their order.

    BLAS adds in an order that depends on the processor and on how many threads it has: a worker
    that decodes has one. It is no faster.
    """
    from scipy.sparse import csr_array  # half of the start of whatever decodes

    return csr_array(mel_filters().T)
