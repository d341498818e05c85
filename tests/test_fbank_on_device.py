"""Log-mel frames in JAX against the numpy ones and against kaldi-native-fbank."""

import jax
import numpy as np
import pytest
from test_fbank import in_float64, kaldi_log_mel, nearly_constant, sound

from scav_jax.base.errors import InputError
from scav_jax.extract import fbank
from scav_jax.extract.fbank_on_device import log_mel_on_device

log_mel = jax.jit(log_mel_on_device)
FLOOR = np.log(np.float32(fbank.ENERGY_FLOOR))


@pytest.mark.parametrize("reference", [fbank.log_mel, kaldi_log_mel])
@pytest.mark.parametrize("samples", [400, 559, 560, 16_123, 160_000])
def test_equals_numpy_and_kaldi(samples, reference):
    waveforms = np.stack([sound(samples, seed) for seed in range(2)])
    ours = np.asarray(log_mel(waveforms))
    expected = np.stack([reference(waveform) for waveform in waveforms])
    assert ours.shape == expected.shape == (2, fbank.frame_count(samples), 128)
    assert ours.dtype == np.float32
    error = np.abs(ours - expected)[expected > FLOOR + 0.1]
    assert error.mean() <= 1e-4
    assert error.max() <= 1e-2
    np.testing.assert_array_equal(ours <= FLOOR + 1e-3, expected <= FLOOR + 1e-3)


@pytest.mark.usefixtures("optimized")  # XLA divides by 400 as a product with 1/400
@pytest.mark.parametrize("kind", nearly_constant())
def test_means_are_taken_off_to_the_last_digit(kind):
    waveforms, tolerance = nearly_constant()[kind]
    expected = np.stack([in_float64(waveform) for waveform in waveforms])
    np.testing.assert_allclose(jax.jit(log_mel_on_device)(waveforms), expected, atol=tolerance)


def test_what_is_no_sound_in_full_scale_is_refused():
    with pytest.raises(InputError, match="got int16; divide 16-bit samples"):
        log_mel(np.zeros((2, 800), np.int16))
    with pytest.raises(InputError, match=r"waveform 1: .* got a peak of 3000"):
        log_mel_on_device(np.float32([[0.0] * 800, [3000.0] * 800]))


def test_silence_is_the_floor_and_short_sounds_have_no_frames():
    np.testing.assert_allclose(log_mel(np.zeros((2, 800), np.float32)), FLOOR, rtol=1e-6)
    assert log_mel(np.zeros((3, 399), np.float32)).shape == (3, 0, 128)


def test_frames_read_their_own_window_only():
    waveforms = np.stack([sound(4_000), sound(4_000, seed=1)])
    whole = np.asarray(log_mel(waveforms))
    end = 10 * fbank.HOP_SAMPLES + fbank.WINDOW_SAMPLES  # of frame 10
    waveforms[0, end:] = np.nan
    cut = np.asarray(log_mel(waveforms))
    np.testing.assert_array_equal(cut[0, :11], whole[0, :11])
    assert np.isnan(cut[0, 13:]).all()
    np.testing.assert_array_equal(cut[1], whole[1])
