"""The backbone's door: a stranger's side goes the whole way, pairs mix, a stream may lack."""

import json
import sys

import numpy as np
import pytest
from small_run import ROOT, assert_same_run, small_config, train_here
from test_clip_beats import write_weights
from test_extract import good_video

from scav_jax.base.errors import InputError
from scav_jax.evaluate import __main__ as evaluate_program
from scav_jax.extract import __main__ as extract_program
from scav_jax.extract import backbones, jobs, program
from scav_jax.extract.backbones.plain import PlainAudio
from scav_jax.extract.decoding import media
from scav_jax.extract.manifest import ClipRequest
from scav_jax.features import store
from scav_jax.features.resampled import write_resampled
from scav_jax.index import __main__ as index_program
from scav_jax.index import open_index
from scav_jax.inspect.features import inspect_features
from scav_jax.retrieval import embed, model
from scav_jax.search import __main__ as search_program
from scav_jax.train.loop import train
from scav_jax.training.config_files import load_file
from scav_jax.training.runs import load_run
from scav_jax.training.setup import set_up

STRANGER = '''
import numpy as np

from scav_jax.extract.backbones.sides import Visual


class Thumbnail(Visual):
    """A grid of grey levels of each frame, less the mean of the frame."""

    frame_size = (32, 32)

    def __init__(self, cells=4):
        self.cells, self.width = cells, cells * cells

    def fingerprint(self):
        return {"revision": 1}

    def prepare(self, frames, previous):
        side = 32 // self.cells
        grey = frames.mean(axis=-1).reshape(-1, self.cells, side, self.cells, side)
        grid = grey.mean(axis=(2, 4)).reshape(len(frames), -1) / 64
        return (grid - grid.mean(axis=1, keepdims=True)).astype(np.float32)


class Changes(Thumbnail):
    def prepare(self, frames, previous):
        return np.diff(super().prepare(frames, previous), axis=0)  # none of the first frame


class Leaves(Thumbnail):
    def prepare(self, frames, previous):
        exit(7)


class Nameless(Visual):
    def __init__(self, cells):
        self.cells = cells

    def fingerprint(self):
        return {"scale": np.float32(1)}
'''
NAME = "stranger_side:Thumbnail"


@pytest.fixture(scope="module")
def package(tmp_path_factory):
    """The stranger's module, where this process and those that it starts find it."""
    folder = tmp_path_factory.mktemp("package")
    (folder / "stranger_side.py").write_text(STRANGER)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(folder))
        yield folder
    sys.modules.pop("stranger_side", None)


def ten_films(folder):
    """Ten films of 2 s, and a list that says which are for what."""
    rows = ["file,split"]
    for number in range(10):
        good_video(folder / f"{number}.mp4", 2, seed=number)
        rows.append(f"{number}.mp4,{'validation' if number >= 6 else 'train'}")
    (folder / "clips.csv").write_text("\n".join(rows) + "\n")
    return folder


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    return ten_films(tmp_path_factory.mktemp("films"))


def extract(videos, out, *words):
    """The program, in this process."""
    with pytest.MonkeyPatch.context() as patch:
        line = ["--videos", videos, "--out", out, "--workers", "1", *words]
        patch.setattr("sys.argv", ["extract", *map(str, line)])
        assert extract_program.main() == 0
    return out


@pytest.fixture(scope="module")
def features(package, videos, tmp_path_factory):
    out = tmp_path_factory.mktemp("features") / "data"
    side = ["--visual", NAME, "--audio", "plain", "--option", "visual.cells=2"]
    return extract(videos, out, *side)


@pytest.fixture(scope="module")
def plain(videos, tmp_path_factory):
    out = tmp_path_factory.mktemp("plain") / "data"
    program.extract(videos, out, workers=1)
    return out


def trained(features, run, until=None):
    """Some steps on them; told to stop after step `until`."""
    changes = {"data.batch_size": 4, "train.steps": 4, "train.validate_every": 2}
    config = small_config(features, **changes, **{"objective.name": "aggregation"})
    return train_here(config, run, until)


@pytest.fixture(scope="module")
def run(features, tmp_path_factory):
    """Stopped on the way, and gone on with."""
    run = tmp_path_factory.mktemp("run") / "stranger"
    assert trained(features, run, until=3) is None
    assert not (run / "averaged").exists()
    assert trained(features, run) is not None
    return run


# ---- a side of a stranger's -----------------------------------------------------------------


def test_what_a_side_gives_is_what_it_says(package, videos):
    strange = backbones.load(visual="stranger_side:Changes", audio="plain")
    job = jobs.Job(0, ((0, ClipRequest("0.mp4", 0.0, None, "x")),))
    with pytest.raises(InputError, match=r"Changes.prepare: expected a row for .* 50, got 49"):
        list(jobs.prepare(job, videos=videos, preparer=strange.preparer))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("stranger_side.Changes.prepare", lambda *_: None)
        with pytest.raises(InputError, match=r"Changes.prepare: expected to get an array .* None"):
            list(jobs.prepare(job, videos=videos, preparer=strange.preparer))
    for frame, words in (
        (lambda *_: None, "Changes.shrink: expected to get an array .*, got a NoneType"),
        (lambda *_: np.zeros(3), r"Changes.shrink: expected a picture .* shape \[3\]"),
        (lambda *_: 1 / 0, "test_backbone_door.py, line .*: ZeroDivisionError"),
    ):
        with pytest.MonkeyPatch.context() as patch, pytest.raises(InputError, match=words):
            patch.setattr("stranger_side.Changes.shrink", frame)
            list(jobs.prepare(job, videos=videos, preparer=strange.preparer))
    sound = np.zeros((2, strange.audio.width), np.float32)
    for shape in ((5, 15), (5,)):
        clip = backbones.Prepared(np.zeros(shape, np.float32), sound)
        with pytest.raises(
            InputError, match=r"Changes.prepare: expected features \[steps, 16\] of"
        ):
            strange.encode([clip])


GOOD = np.zeros((5, 16), np.float32)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (None, "a list of each clip's features, got a NoneType"),
        ((one for one in [GOOD]), "a list of each clip's features, got a generator"),
        ([], "features of each of 1 clips, got 0"),
        ([GOOD.tolist()], "an array of NumPy back, got a list"),
        ([np.ma.masked_array(GOOD)], "an array of NumPy back, got a MaskedArray"),
        ([GOOD[1:]], "a row for each frame .*, 5, got 4"),
        ([GOOD.astype(complex)], "real numbers, got complex128"),
        ([GOOD.astype(str)], "real numbers, got <U32"),
        ([GOOD.astype(np.uint8)], "`dtype` of float16, got uint8; return them as float32, or"),
    ],
)
def test_what_a_side_encodes_is_what_it_says(package, given, words):
    side = backbones.load(visual="stranger_side:Thumbnail").visual
    side.encode = lambda clips: given
    with pytest.raises(InputError, match=f"Thumbnail.encode: expected .*{words}"):
        backbones.checks.features_of(side, [GOOD])


def test_steps_of_sound_last_as_long_as_the_side_says(package, videos, monkeypatch):
    plain = backbones.load(visual="plain", audio="plain")
    job = jobs.Job(0, ((0, ClipRequest("0.mp4", 0.0, None, "x")),))
    for step_s in (0.08, 0.32):  # of 0.16
        monkeypatch.setattr(plain.audio, "step_s", step_s)
        (outcome,) = jobs.prepare(job, videos=videos, preparer=plain.preparer)
        (features,) = plain.encode([outcome.prepared])
        with pytest.raises(
            InputError, match=rf"'x': expected steps of {step_s} s, .* 2\.00 s of so"
        ):
            outcome.clip(features)


def test_what_a_side_does_not_say_is_asked_for(package):
    side, options = {"visual": "stranger_side:Nameless", "audio": "plain"}, {"visual": {"cells": 2}}
    with pytest.raises(InputError, match=r"--option visual\.cells=VALUE: expected one, Nameless"):
        backbones.load(**side)
    with pytest.raises(InputError, match=r"Nameless: expected a side with `width`, it has none"):
        backbones.load(**side, options=options)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("stranger_side.Nameless.width", 2, raising=False)
        draws, ring = iter(range(9)), {}
        ring["ring"] = ring
        for told, words in (
            (np.float32(1), r"expected a fingerprint of JSON types .*float32"),
            (float("nan"), r"expected a fingerprint of JSON types and finite numbers: Out"),
            (ring, r"expected a fingerprint of JSON types .*: Circular"),
            (
                lambda: next(draws),
                r"Nameless: expected fingerprint\(\) to return the same whenever",
            ),
        ):
            told = told if callable(told) else lambda told=told: told
            patch.setattr("stranger_side.Nameless.fingerprint", lambda _, told=told: {"a": told()})
            with pytest.raises(InputError, match=words):
                backbones.load(**side, options=options).fingerprint()
        for whole, words in ((None, "a dictionary, got a None"), ({"name": "x"}, "without 'name'")):
            patch.setattr("stranger_side.Nameless.fingerprint", lambda _, whole=whole: whole)
            with pytest.raises(InputError, match=rf"Nameless: expected fingerprint\(\) .*{words}"):
                backbones.load(**side, options=options).fingerprint()
        patch.delattr("stranger_side.Nameless.fingerprint")
        with pytest.raises(InputError, match=r"Nameless: expected a method fingerprint\(\)"):
            backbones.load(**side, options=options).fingerprint()


@pytest.mark.parametrize(
    ("attribute", "wrong"),
    [
        ("width", 0),
        ("width", 3.0),
        ("width", "3"),
        ("width", True),
        ("steps", 0),
        ("dtype", np.float32),
        ("dtype", "none"),
        ("max_seconds", float("nan")),
        ("clips_at_once", 0),
        ("frame_size", "32x32"),
        ("frame_size", (0, 32)),
        ("step_s", 0.0),
        ("step_s", float("inf")),
        ("step_s", np.float32(0.1)),
    ],
)
def test_what_a_side_says_of_itself_is_checked_before_the_work(package, attribute, wrong):
    kind = "audio" if attribute == "step_s" else "visual"
    name = {"audio": "test_backbone_door:Ticks", "visual": NAME}[kind]

    def made(self):
        self.width = 16
        setattr(self, attribute, wrong)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(name.replace(":", ".") + ".__init__", made)
        with pytest.raises(InputError, match=rf"--{kind} {name}: expected `{attribute}` .*, got"):
            backbones.load(**{kind: name})


@pytest.mark.parametrize(
    ("method", "wrong", "words"),
    [
        (
            "prepare",
            lambda self, frames: frames,
            r"prepare\(frames, previous\), its own .*: too many",
        ),
        ("shrink", None, r"a method shrink\(frame\), got None"),
        ("encode", lambda self: [], r"a method encode\(clips\), its own is called otherwise"),
        ("fingerprint", {"a": 1}, r"a method fingerprint\(\), got {'a': 1}"),
        ("preparer", 3, "`preparer` to be a Visual, got a int"),
        ("prepare", lambda self, *frames: frames, r"can be sent to worker processes .*pickle"),
    ],
)
def test_how_a_side_is_called_is_checked_before_the_work(package, method, wrong, words):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(f"stranger_side.Thumbnail.{method}", wrong, raising=False)
        if "sent" in words:
            patch.setattr("stranger_side.Thumbnail.alike", lambda *_: 0)
            patch.setattr("stranger_side.Thumbnail.__reduce__", lambda self: (lambda: 0, ()))
        with pytest.raises(InputError, match=f"--visual {NAME}: expected .*{words}"):
            backbones.load(visual=NAME)


def test_a_side_that_ends_its_worker_is_told(package, videos, tmp_path):
    leaves = backbones.load(visual="stranger_side:Leaves", audio="plain")
    with pytest.raises(InputError, match=r"stranger_side\.py, line .*, in prepare: SystemExit: 7"):
        program.extract(videos, tmp_path / "data", backbone=leaves, workers=1)


def test_a_stranger_is_extracted_with_his_options(features, videos):
    split = store.read(features, "train")
    assert (split.visual_width, split.audio_width, len(split)) == (4, 2048, 6)
    about = split.fingerprint["backbone"]
    assert about["name"] == f"{NAME}+plain"
    assert about["visual"] == {
        "revision": 1,
        "name": NAME,
        "options": {"cells": 2},
        "has_weights": False,
    }
    with media.Reader(videos / split.sources[1], (32, 32)) as reader:
        frames = reader.cut(0.0, None).frames
    grey = frames.mean(axis=-1)
    corners = np.stack(
        [grey[:, r : r + 16, c : c + 16].mean(axis=(1, 2)) for r in (0, 16) for c in (0, 16)], 1
    )
    expected = (corners - corners.mean(axis=1, keepdims=True)) / 64
    np.testing.assert_allclose(split[1].visual, expected, atol=2e-3)
    other = dict(visual=NAME, audio="plain", options={"visual": {"cells": 8}})
    with pytest.raises(InputError, match=r"visual\.options\.cells: expected 2, got 8"):
        program.extract(videos, features, backbone=backbones.load(**other))


def test_a_stranger_trains_and_resumes(features, run, tmp_path):
    """To the same bits as without a stop."""
    assert trained(features, tmp_path / "whole") is not None
    assert_same_run(run, tmp_path / "whole")
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if line["kind"] == "validation"] == [2, 4]
    first = load_run(run).params["encoders"]["visual"]["projection_in"]["kernel"]
    assert first.shape[0] == 4 and np.isfinite(first).all()


@pytest.mark.usefixtures("figures_only")
def test_a_stranger_is_evaluated(features, run, tmp_path):
    words = ["--run", run, "--split", "validation", "--out", tmp_path / "e", "--bootstrap", 0]
    words += ["--hybrid", 2]
    assert not evaluate_program.main([*map(str, words)])
    document = json.loads((tmp_path / "e" / "metrics.json").read_text())
    assert document["data"]["n"] == 4
    assert document["data"]["fingerprint"]["backbone"]["visual"]["name"] == NAME


def test_a_stranger_is_indexed_from_videos_and_searched(features, run, videos, tmp_path, capsys):
    given = ["--model", str(run), "--trust", NAME]
    path = str(tmp_path / "index")
    assert index_program.main(["build", path, *given, "--videos", str(videos)]) == 0
    assert sorted(open_index(path).ids()) == [f"{number}.mp4" for number in range(10)]
    capsys.readouterr()
    assert (
        search_program.main([path, str(videos / "7.mp4"), *given, "--video", "--k", "4", "--json"])
        == 0
    )
    (query,) = json.loads(capsys.readouterr().out)["queries"]
    # From files as from the features that it was trained on.
    stored = embed.embed(load_run(run), store.read(features, "validation"))
    made = model.load(run, trust=[NAME]).embed(videos / "7.mp4")
    np.testing.assert_allclose(made.visual_embeddings[0], stored.visual_embeddings[1], atol=1e-4)
    (hits,) = open_index(path).search(made, "v2a", 4)
    assert [hit["id"] for hit in query["hits"]] == [hit.id for hit in hits]


def test_code_that_a_model_names_is_not_imported_unasked(run, videos, monkeypatch):
    monkeypatch.delitem(sys.modules, "stranger_side", raising=False)
    with pytest.raises(InputError, match=rf"{NAME}: .*not part of this package.*--trust {NAME}"):
        model.load(run).embed(videos / "1.mp4")
    with pytest.raises(InputError, match="not part of this package"):
        model.load(run, trust=["stranger_side:Other"]).embed(videos / "1.mp4")
    assert "stranger_side" not in sys.modules
    assert model.load(run, trust=[NAME]).backbone.name == f"{NAME}+plain"
    assert "stranger_side" in sys.modules


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("stranger_side:Thumbnial", "--visual: .*Thumbnial"),
        ("no_such_package:Side", "--visual: .*no_such_package"),
        ("stranger_side:np", "--visual stranger_side:np: expected a class of .*Visual"),
        ("scav_jax.extract.backbones.plain:PlainAudio", "expected a class of .*Visual"),
    ],
)
def test_what_is_no_side_says_so(package, name, words):
    with pytest.raises(InputError, match=words):
        backbones.load(visual=name, audio="plain")


# ---- any pairing ----------------------------------------------------------------------------


def test_sides_are_the_same_in_any_pair(videos, plain, tmp_path):
    files = write_weights(tmp_path)
    pairs = {
        "plain": backbones.load("plain"),
        "clip_beats": backbones.load("clip_beats", weights=files),
        "plain+beats": backbones.load(
            visual="plain", audio="beats", weights={"beats": files["beats"]}
        ),
        "clip_mel": backbones.load("clip_mel", weights={"clip": files["clip"]}),
    }
    made = {}
    for name, pair in pairs.items():
        assert pair.name == name
        data = plain if name == "plain" else tmp_path / name
        program.extract(videos, data, backbone=pair, workers=1)
        made[name] = store.read(data, "validation")[2]
        about = made_by = store.read(data, "validation").fingerprint["backbone"]
        weights = {key: files[key] for key in pair.weights}
        assert backbones.from_fingerprint(about, weights).fingerprint() == made_by
    for name, (visual, audio) in {
        "plain+beats": ("plain", "clip_beats"),
        "clip_mel": ("clip_beats", "plain"),
    }.items():
        np.testing.assert_array_equal(made[name].visual, made[visual].visual)
        np.testing.assert_array_equal(made[name].audio, made[audio].audio)
        assert made[name].audio_span == made[audio].audio_span
    with pytest.raises(InputError, match=r"--weights beats=PATH .*\{'beats': PATH\}"):
        backbones.from_fingerprint(pairs["plain+beats"].fingerprint())


class Ticks(PlainAudio):
    """Steps of another length."""

    width, step_s = 1, 0.05

    def prepare(self, waveform):
        return waveform[: len(waveform) // 800 * 800].reshape(-1, 800).std(axis=1, keepdims=True)


def test_the_step_of_sound_is_its_sides_own(videos, tmp_path):
    pair = backbones.load(visual="plain", audio="test_backbone_door:Ticks")
    program.extract(videos, tmp_path / "data", backbone=pair, workers=1)
    split = store.read(tmp_path / "data", "train")
    clip = split[0]
    assert split.fingerprint["audio_step_s"] == 0.05
    assert 39 <= len(clip.audio) <= 41
    assert clip.audio_span == (0.0, pytest.approx(0.05 * len(clip.audio)))


# ---- one stream, and features of another backbone -------------------------------------------


@pytest.mark.parametrize("stream", ["visual", "audio"])
def test_a_data_set_may_see_or_hear_alone(plain, videos, stream, tmp_path):
    other = "audio" if stream == "visual" else "visual"
    alone = store.read(extract(videos, tmp_path / "data", f"--{other}", "none"), "train")
    assert alone.streams == (stream,) and len(alone) == 6
    both = store.read(plain, "train")
    for number in (0, 5):
        clip = alone[number]
        np.testing.assert_array_equal(getattr(clip, stream), getattr(both[number], stream))
        assert getattr(clip, f"{stream}_span") == getattr(both[number], f"{stream}_span")
        assert getattr(clip, other).shape == (0, 0)
        assert getattr(clip, f"{other}_span") == (0.0, 0.0)
    words = f"expected features of picture and sound, .* got {stream} features alone"
    with pytest.raises(InputError, match=words):
        trained(tmp_path / "data", tmp_path / "run")
    with pytest.raises(InputError, match=words):
        write_resampled(tmp_path / "data", tmp_path / "copy")
    found = inspect_features(tmp_path / "data")
    assert found["clips"] == 10 and not found["faults"]


def test_training_refuses_features_of_another_backbone(features, tmp_path):
    config = small_config(features, **{"data.backbone": "clip_beats"})
    with pytest.raises(
        InputError, match=rf"data\.backbone: expected features of 'clip_beats', .* '{NAME}\+plain'"
    ):
        train(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()
    assert load_file(str(ROOT / "configs/vggsound.py")).data.backbone == "clip_beats"


def test_training_refuses_features_of_the_same_backbone_with_other_options(features):
    own = store.read(features, "train").fingerprint_id
    assert inspect_features(features)["about"]["fingerprint_id"] == own
    set_up(small_config(features, **{"data.backbone": f"{NAME}+plain@{own}"}))
    other = small_config(features, **{"data.backbone": f"@{own[::-1]}"})
    with pytest.raises(InputError, match=rf"of the extractor {own[::-1]}, .* those of {own}; "):
        set_up(other)
