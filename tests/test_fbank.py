"""Log-mel frames against kaldi-native-fbank, which is what Kaldi itself computes."""

import kaldi_native_fbank as knf
import numpy as np
import pytest

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


def test_silence_is_the_floor_and_short_sounds_have_no_frames():
    np.testing.assert_allclose(fbank.log_mel(np.zeros(800, np.float32)), np.log(1.1920929e-07))
    assert fbank.log_mel(np.zeros(399, np.float32)).shape == (0, 128)
    assert fbank.frame_count(160_000) == 998  # 10 s: 62 steps of 16 frames, 6 left over


def test_long_sounds_are_cut_into_blocks_without_a_seam(monkeypatch):
    waveform = sound(40_000, seed=1)
    whole = fbank.log_mel(waveform)
    monkeypatch.setattr(fbank, "FRAMES_AT_ONCE", 37)
    np.testing.assert_allclose(fbank.log_mel(waveform), whole, atol=1e-5)
