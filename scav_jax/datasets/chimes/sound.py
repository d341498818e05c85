"""The sound: modes of the struck bars, a little reverberation, and the room's noise."""

import numpy as np

from scav_jax.datasets.chimes.instrument import Instrument, Timbre, random_generator
from scav_jax.datasets.chimes.performance import Score
from scav_jax.datasets.chimes.presets import Parameters, Performance

NOTE_SECONDS = 2.0
LOUDNESS = 0.11  # root mean square of the first 0.1 s of every bar's full strike
NOISE_SAMPLES = 1 << 17  # the room's noise repeats after this many


def make_notes(instrument: Instrument, parameters: Parameters, seed: int) -> np.ndarray:
    """`[bars, 2, samples]` float32: each bar struck softly and hard, from the moment of contact."""
    timbre, rate = instrument.timbre, parameters.audio_rate_hz
    random = random_generator(seed, instrument.id, "notes")
    samples = int(NOTE_SECONDS * rate)
    time = np.arange(samples) / rate
    rise = np.minimum(time / timbre.attack, 1.0)
    fade = np.minimum((NOTE_SECONDS - time) / 0.05, 1.0)
    room = _room_response(random, timbre, rate)
    size = 1 << (samples + len(room) - 1).bit_length()
    room = np.fft.rfft(room, size)
    notes = np.empty((instrument.bars, 2, samples), np.float32)
    for bar in range(instrument.bars):
        frequencies = timbre.fundamentals[bar] * timbre.ratios[bar]
        audible = frequencies < 0.45 * rate
        knock = random.standard_normal(samples) * np.exp(-time / 0.004)
        for hard in (0, 1):
            # A soft mallet or a soft stroke leaves out the upper partials.
            amplitudes = timbre.amplitudes * (frequencies / frequencies[0]) ** (0.35 * hard - 0.55)
            note = timbre.click * (0.3 + 0.7 * hard) * knock
            for k in np.flatnonzero(audible):
                mode = np.sin(2 * np.pi * frequencies[k] * time + random.uniform(0, 2 * np.pi))
                note += amplitudes[k] * mode * np.exp(-time / timbre.decays[bar, k])
            note *= rise * fade
            note = np.fft.irfft(np.fft.rfft(note, size) * room, size)[:samples] * fade
            notes[bar, hard] = note * (LOUDNESS / np.sqrt(np.mean(note[: rate // 10] ** 2)))
    return notes


def _room_response(random: np.random.Generator, timbre: Timbre, rate: int) -> np.ndarray:
    """The direct sound and a tail of decaying noise behind it."""
    time = np.arange(int(0.6 * rate)) / rate
    tail = random.standard_normal(len(time)) * np.exp(-time / timbre.reverb_decay)
    tail[: int(0.012 * rate)] = 0.0  # the walls are two metres away
    response = timbre.reverb_level * tail / np.sqrt(np.sum(tail**2))
    response[0] = 1.0
    return response


def synthesize(
    instrument: Instrument,
    notes: np.ndarray,
    performance: Performance,
    score: Score,
    parameters: Parameters,
    seed: int,
) -> np.ndarray:
    """`[samples]` float32 in -1..1: the performance's sound from its first frame on."""
    random = random_generator(seed, performance.name, "sound")
    rate = parameters.audio_rate_hz
    length = round(parameters.performance_seconds * rate)
    sound = _room_noise(random, instrument.timbre.noise_color, parameters.room_noise, length)
    for time, bar, strength in zip(score.sound_times, score.bars, score.strengths, strict=True):
        begin = round(time * rate)
        part = sound[begin : begin + notes.shape[-1]]
        soft, hard = notes[bar, :, : len(part)]
        part += np.float32(strength * (1.0 - strength)) * soft
        part += np.float32(strength * strength) * hard
    return np.clip(sound, -0.98, 0.98, out=sound)


def _room_noise(random: np.random.Generator, color: float, level: float, length: int) -> np.ndarray:
    """Noise whose power falls with frequency to the power of `color`, the same over all time."""
    spectrum = np.fft.rfft(random.standard_normal(NOISE_SAMPLES))
    bins = np.arange(len(spectrum))
    spectrum *= np.where(bins > NOISE_SAMPLES // 400, np.maximum(bins, 1.0) ** (-color / 2), 0.0)
    noise = np.fft.irfft(spectrum, NOISE_SAMPLES)
    return np.resize(noise * (level / noise.std()), length).astype(np.float32)
