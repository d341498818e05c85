"""The Ray engine writes the same data set."""

import os
import subprocess

import pytest
from test_clip_beats import command, write_weights
from test_extract import content, good_video

from scav_jax.extract import backbones, program
from scav_jax.extract.manifest import ClipOptions

pytest.importorskip("ray")


@pytest.mark.slow
def test_ray_writes_the_same_bytes(tmp_path):
    """Two models, a video that is none, clips that share a file."""
    videos = tmp_path / "videos"
    for number in range(3):
        good_video(videos / f"{number}.mp4", 2 + number, seed=number)
    (videos / "bad.mp4").write_text("hello")
    files = write_weights(tmp_path)
    model = backbones.load("clip_beats", weights=files)
    program.extract(
        videos, tmp_path / "whole", backbone=model, clips=ClipOptions(seconds=1.5), workers=1
    )
    line = command(videos, tmp_path / "data", files, "--clip-seconds", 1.5, "--workers", 2)
    environment = {**os.environ, "JAX_NUM_CPU_DEVICES": "1"}
    done = subprocess.run(
        [*line, "--engine", "ray"], capture_output=True, text=True, env=environment, timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert content(tmp_path / "data") == content(tmp_path / "whole")
