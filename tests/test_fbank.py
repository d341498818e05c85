"""Log-mel frames against kaldi-native-fbank, which is what Kaldi itself computes."""

import kaldi_native_fbank as knf
import numpy as np
import pytest

from scav_jax.base.errors import InputError
from scav_jax.extract import fbank


def kaldi_log_mel(waveform):
    options = knf.FbankOptions()
    options.frame_opts.samp_freq = 16000
    options.frame_opts.dither = 0
    options.frame_opts.window_type = "povey"
    options.frame_opts.snip_edges = True
    options.mel_opts.num_bins = 128
    computer = knf.OnlineFbank(options)
    computer.accept_waveform(16000, (waveform * 32768.0).tolist())
    computer.input_finished()
    return np.stack([computer.get_frame(i) for i in range(computer.num_frames_ready)])


def sound(samples, seed=0):
    random = np.random.default_rng(seed)
    seconds = np.arange(samples) / 16000
    sweep = 0.3 * np.sin(2 * np.pi * (90 + 350 * seconds) * seconds)
    loudness = np.linspace(0.01, 1, samples)
    return (sweep + 0.1 * loudness * random.standard_normal(samples) + 0.02).astype(np.float32)


@pytest.mark.parametrize("samples", [400, 559, 560, 16_123, 160_000])
def test_equals_kaldi(samples):
    waveform = sound(samples)
    ours, kaldi = fbank.log_mel(waveform), kaldi_log_mel(waveform)
    assert ours.shape == kaldi.shape == (fbank.frame_count(samples), 128)
    assert ours.dtype == np.float32
    floor = np.log(np.float32(fbank.ENERGY_FLOOR))
    error = np.abs(ours - kaldi)[kaldi > floor + 0.1]
    assert error.mean() <= 1e-4
    assert error.max() <= 1e-2
    # Bands that hold no FFT bin stay at the floor in both.
    np.testing.assert_array_equal(ours <= floor + 1e-3, kaldi <= floor + 1e-3)


def in_float64(waveform):
    """Kaldi's steps once more, without rounding."""
    windows = np.lib.stride_tricks.sliding_window_view(waveform.astype(float) * 32768, 400)[::160]
    x = windows - windows.mean(axis=1, keepdims=True)
    x = np.concatenate([0.03 * x[:, :1], x[:, 1:] - 0.97 * x[:, :-1]], axis=1)
    x = x * (0.5 - 0.5 * np.cos(2 * np.pi * np.arange(400) / 399)) ** 0.85
    power = np.abs(np.fft.rfft(x, 512)[:, :256]) ** 2
    return np.log(np.maximum(power @ fbank.mel_filters().astype(float), fbank.ENERGY_FLOOR))


def nearly_constant():
    """Sounds of which little or nothing is left without their mean; (waveform, tolerance)."""
    offsets = np.float32([0.1, 0.3, 0.5, 1.0, -0.7, 1e-3, 0.02, 1 / 3, 0.999, 1e-20])
    flat = np.repeat(offsets[:, None], 2_000, axis=1)
    click = flat.copy()
    click[:, 700] += 1e-2
    slope = flat + np.linspace(0, 1e-4, 2_000, dtype=np.float32)
    hiss = np.random.default_rng(5).normal(0, 1e-4, flat.shape).astype(np.float32)
    # Float32's Fourier transform loses what is 10^7 times weaker than the strongest.
    return {"flat": (flat, 1e-5), "click": (click, 1e-2), "slope": (slope, 1e-1)} | {
        "hiss": (hiss, 1e-3),
        "hiss on a constant": (flat + hiss, 1e-2),
    }


@pytest.mark.parametrize("kind", nearly_constant())
def test_means_are_taken_off_to_the_last_digit(kind):
    """Of a constant nothing is left, whatever its size, and a weak sound on it stays as it is."""
    waveforms, tolerance = nearly_constant()[kind]
    for waveform in waveforms:
        np.testing.assert_allclose(fbank.log_mel(waveform), in_float64(waveform), atol=tolerance)


@pytest.mark.parametrize(
    ("waveform", "words"),
    [
        (np.zeros(800, np.int16), r"mono floats .* of int16; divide 16-bit samples by 32768"),
        (
            np.full(800, 3000.0, np.float32),
            r"\[-1, 1\], got a peak of 3000; divide by full",
        ),
        (np.full(800, np.nan, np.float32), "finite samples"),
        (np.zeros((2, 800), np.float32), r"shape \(2, 800\)"),
    ],
)
def test_what_is_no_sound_in_full_scale_is_refused(waveform, words):
    with pytest.raises(InputError, match=words):
        fbank.log_mel(waveform)


def test_silence_is_the_floor_and_short_sounds_have_no_frames():
    np.testing.assert_allclose(fbank.log_mel(np.zeros(800, np.float32)), np.log(1.1920929e-07))
    assert fbank.log_mel(np.zeros(399, np.float32)).shape == (0, 128)
    assert fbank.frame_count(160_000) == 998  # 10 s: 62 steps of 16 frames, 6 left over


def test_long_sounds_are_cut_into_blocks_without_a_seam(monkeypatch):
    waveform = sound(40_000, seed=1)
    whole = fbank.log_mel(waveform)
    monkeypatch.setattr(fbank, "FRAMES_AT_ONCE", 37)
    np.testing.assert_allclose(fbank.log_mel(waveform), whole, atol=1e-5)
