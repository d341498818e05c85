"""The self-check passes here, and fails where decoders, resizing or models differ."""

import dataclasses
import json
from importlib import resources

import numpy as np
import pytest
from test_extract import run_program

from scav_jax.extract import selfcheck
from scav_jax.extract.backbones import beats, clip_model, clip_pixels, clip_visual
from scav_jax.extract.decoding import media

STORED = json.loads(resources.files("scav_jax.extract").joinpath("golden.json").read_text())


def failures():
    """The names of what differs, without a table."""
    return {
        check.name
        for check in selfcheck.checks()
        if not selfcheck._difference(check.values, STORED[check.name]) <= check.tolerance
    }


def test_the_program_passes_and_shows_what_it_compared():
    done = run_program("--selfcheck")
    assert done.returncode == 0, done.stdout + done.stderr
    for name in (*STORED.keys() - {"versions"}, *STORED["versions"]):
        assert name in done.stdout
    assert "everything is as stored" in done.stdout


def test_crops_are_the_hosts_where_the_device_resizes(monkeypatch):
    on_device = dataclasses.replace(clip_model.FRAME_CHUNKS, resize="device")
    monkeypatch.setattr(clip_model, "FRAME_CHUNKS", on_device)
    assert not selfcheck.small_clip_beats().preparer.visual.whole


def test_every_value_is_compared_and_none_is_trivial():
    names = [check.name for check in selfcheck.checks()]
    assert sorted(names) == sorted(STORED.keys() - {"versions"})
    for name in names:
        assert np.isfinite(STORED[name]).all() and np.any(STORED[name]), name
        if "exact" in name or "decoded" in name:
            assert np.std(STORED[name]) > 0.3, name


def change_clip(monkeypatch, **changes):
    original = media.Reader.cut

    def cut(*arguments):
        clip = original(*arguments)
        new = {name: change(getattr(clip, name)) for name, change in changes.items()}
        return dataclasses.replace(clip, **new)

    monkeypatch.setattr(media.Reader, "cut", cut)


DECODED_FRAMES = {"frames, cell means (of 255)", "CLIP, decoded frames", "plain, decoded frames"}


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        (
            {"frames": lambda x: x[..., ::-1], "waveform": lambda x: 0.9 * x},
            {*DECODED_FRAMES, "sound, level", "sound, both tones"},
        ),
        (
            {"frames": lambda x: np.roll(x, 1, axis=0), "waveform": lambda x: np.roll(x, 160)},
            {"frames, the flash (frame)", "sound, the burst (s)"},
        ),
        (
            {"frames": lambda x: x[:-1] - x[:-1] // 64, "waveform": lambda x: x[:-200]},
            {"frames, count", "frames, cell means (of 255)", "sound, samples"},
        ),
    ],
)
def test_another_decoder_is_noticed(monkeypatch, changes, expected):
    change_clip(monkeypatch, **changes)
    assert expected <= failures()


def test_another_pillow_is_noticed(monkeypatch):
    pil = clip_pixels.resize_crop_pil

    def shifted(frames, preprocessing):
        out = pil(frames, preprocessing)
        out[:, 0, 0, 0] ^= 1
        return out

    monkeypatch.setattr(clip_visual, "resize_crop_pil", shifted)
    assert failures() == {"crops, exact frames (sums of pixels)"}


def test_another_model_is_noticed(monkeypatch):
    monkeypatch.setattr(beats, "LOG_MEL_CENTRE", 15.5)
    monkeypatch.setattr(beats, "_forward", beats._forward.__wrapped__)
    assert failures() == {"BEATs, exact sound"}


def test_a_difference_ends_with_1_and_says_why(monkeypatch, capsys):
    change_clip(monkeypatch, frames=lambda x: x[..., ::-1])
    assert not selfcheck.selfcheck()
    said = capsys.readouterr().out
    assert "DIFFERS   decoder or colour matrix" in said
    assert selfcheck._difference([1.0], None) == np.inf
    assert selfcheck._difference([1.0, np.nan], [1.0, 2.0]) == np.inf
