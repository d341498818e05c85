"""The probe: labels, tasks beside priors and controls, changed copies, and the program."""

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from small_run import untrained
from test_extract import good_video
from test_temporal import config_of, write

from scav_jax import retrieve
from scav_jax.base.errors import InputError
from scav_jax.evaluate import __main__ as evaluate_program
from scav_jax.extract.decoding.media import RATE_HZ, Reader
from scav_jax.features import store
from scav_jax.objectives.objective import Task
from scav_jax.probe import __main__ as probe_program
from scav_jax.probe import changes, labels, probing, tasks
from scav_jax.probe.labels import NEAREST, STRENGTHS, Labelled, linear_probe, neighbours
from scav_jax.report import figures, probed
from scav_jax.training.runs import load_run

# ---- labels -------------------------------------------------------------------------------------


def clouds(random, count, spread, classes=3):
    """Points around a centre for each class, one coordinate constant, scales far apart."""
    labels = [f"class {number % classes}" for number in range(count)]
    centres = np.eye(4)[[int(label[-1]) for label in labels]]
    vectors = (centres + spread * random.normal(size=(count, 4))) * [1e3, 1.0, 1e-3, 1.0]
    vectors[:, 3] = 7.0
    return Labelled(vectors.astype(np.float32), labels)


def test_what_a_line_separates_is_learned_and_chance_is_not(random):
    train_, validation, asked = (clouds(random, n, 0.1) for n in (90, 30, 60))
    found = linear_probe(train_, validation, asked)
    assert found["accuracy"] == 1.0 and found["n"] == 60 and found["classes"] == 3
    assert found["chance"] == pytest.approx(1 / 3)
    assert found["C"] == min(STRENGTHS)  # of those that do as well, the one that is penalised most
    shuffled = Labelled(train_.vectors, list(random.permutation(train_.labels)))
    assert linear_probe(shuffled, validation, asked)["accuracy"] < 0.75


def test_the_probe_is_where_its_penalised_loss_is_least(random):
    """Of the mean cross entropy and `|W|^2 / (2 C n)`, whose slopes cancel there; not of biases."""
    x, y, strength = random.normal(size=(20, 3)), random.integers(3, size=20), 0.5
    weights = labels._fit(x, y, 3, strength, np.zeros(12), lambda: None).reshape(4, 3)
    odds = np.exp(x @ weights[:3] + weights[3])
    wrong = odds / odds.sum(axis=1, keepdims=True) - np.eye(3)[y]
    assert np.abs(weights[:3]).max() > 0.1
    np.testing.assert_allclose(x.T @ wrong, -weights[:3] / strength, atol=0.01)
    np.testing.assert_allclose(wrong.sum(axis=0), 0.0, atol=0.01)


def test_noise_gives_chance(random):
    train_, validation, asked = (clouds(random, n, 50.0) for n in (60, 200, 300))
    assert 0.2 < linear_probe(train_, validation, asked)["accuracy"] < 0.5


def test_labels_that_were_not_learned_are_left_out_and_counted(random):
    train_, validation, asked = (clouds(random, n, 0.1) for n in (30, 12, 12))
    asked.labels[:3] = ["", "another", "another"]
    found = linear_probe(train_, validation, asked)
    assert (found["n"], found["left_out"]) == (9, 3)
    strangers = Labelled(asked.vectors, ["another"] * 12)
    with pytest.raises(InputError, match="expected clips of train's classes in the split, got no"):
        linear_probe(train_, validation, strangers)
    with pytest.raises(InputError, match="expected two classes or more to learn, got 1"):
        linear_probe(strangers, validation, asked)
    assert neighbours(train_, strangers) == {"n": 0}


def test_neighbours_are_those_of_brute_force(random, monkeypatch):
    monkeypatch.setattr(labels, "BLOCK", 7)
    candidates, asked = clouds(random, 40, 0.7), clouds(random, 25, 0.7)
    found = neighbours(candidates, asked)
    for k in NEAREST:
        hits = 0
        for vector, label in zip(asked.vectors, asked.labels, strict=True):
            cosines = [
                vector @ other / np.linalg.norm(vector) / np.linalg.norm(other)
                for other in candidates.vectors
            ]
            nearest = np.argsort(-np.array(cosines))[:k]
            hits += any(candidates.labels[number] == label for number in nearest)
        assert found[str(k)] == pytest.approx(hits / 25)
    collapsed = [
        Labelled(np.full_like(one.vectors, 0.1), one.labels) for one in (candidates, asked)
    ]
    assert neighbours(*collapsed) == {"n": 25} | {str(k): 0.0 for k in NEAREST}
    both = probing._of_stream(
        {"visual": np.array([[3.0, 4]]), "audio": np.array([[0, 2.0]])}, "both"
    )
    np.testing.assert_allclose(both, [[0.6, 0.8, 0.0, 1.0]])


# ---- tasks --------------------------------------------------------------------------------------


def test_what_a_task_tells_is_counted_over_usable_clips_of_all_batches(
    monkeypatch, unchecked_shapes
):
    """Clips have two views each; the last of the first batch has no such label."""
    true = [[0, 1], [1, 1], [0, 0]], [[1, 1]]
    own = [[0, 1], [1, 0], [1, 1]], [[0, 0]]
    usable = [True, True, False], [True]

    def every_clip(run, split, function, batch_size, progress):
        objective = function.args[1]
        for right, said, there in zip(true, objective.said, usable, strict=True):
            parts = np.eye(2)[np.array(said)], np.array(right), np.array(there)
            yield {"order": Task(*parts)}

    monkeypatch.setattr(tasks, "of_every_clip", every_clip)
    monkeypatch.setattr(tasks, "_has_tasks", lambda *_: True)
    always = SimpleNamespace(said=[np.ones_like(one) for one in true])
    objective = SimpleNamespace(said=own, controls=("static",), under=lambda _: always)
    found = tasks.accuracies(SimpleNamespace(encoders=None, objective=objective), None, 3)
    assert found == {
        "order": {
            "accuracy": pytest.approx(0.5),  # 1, 1 / 2 and 0
            "error": pytest.approx(1.96 * np.sqrt(1 / 6) / np.sqrt(3)),
            "prior": pytest.approx(5 / 6),
            "static": pytest.approx(5 / 6),
            "n": 3,
        }
    }


def test_shares_are_shown_in_percent_beside_what_they_are_of():
    probe = {"accuracy": 0.5, "chance": 0.125, "C": 0.01, "n": 1200, "left_out": 3, "classes": 8}
    document = {
        "name": "SCAV",
        "data": {"path": "data", "split": "test", "n": 1300},
        "labels": {"visual": probe, "both": probe | {"accuracy": 0.75}},
        "neighbours": {"visual": {"n": 1200, "1": 0.25, "5": 0.5, "10": 1.0}, "both": {"n": 0}},
        "tasks": {
            "order_va": {"accuracy": 0.5, "error": 0.02, "prior": 0.25, "static": 0.3, "n": 1100}
        },
        "changes": {"crop": {"visual": 1.0, "audio": 0.5, "both": 0.75, "n": 90, "rejected": 10}},
        "left_out": {"speed": "all 100 copies were rejected"},
        "chose_C": 0,
    }
    shown = [(head, rows) for _, head, rows in probed.tables(document)]
    learned = ["12.5", "0.01", "1,200", "3"]
    assert shown[0][1] == [
        ["picture", "50.0", *learned, "25.0", "50.0", "100.0"],
        ["both", "75.0", *learned, "-", "-", "-"],
    ]
    assert shown[1] == (
        ["task", "accuracy", "prior", "static", "clips"],
        [["order va", "50.0 ± 2.0", "25.0", "30.0", "1,100"]],
    )
    assert shown[2][1] == [["crop", "100.0", "50.0", "75.0", "90", "10"]]
    assert probed.notes(document)[0] == "no speed: all 100 copies were rejected"
    assert "N = 90 is few" in probed.notes(document)[1]  # the fewest that a share is of
    told = probing.table(document).splitlines()
    assert (
        told[0] == "SCAV on data, split test: 1,300 clips" and told[-1] == probed.notes(document)[1]
    )


# ---- changed copies -----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def films(tmp_path_factory):
    """A folder of six films of 2 s, each of its own noise."""
    folder = tmp_path_factory.mktemp("films")
    for number in range(6):
        good_video(folder / f"{number}.mp4", 2, seed=number)
    return folder


class Split(SimpleNamespace):
    """What is asked of a split here."""

    def __len__(self):
        return len(self.sources)


def split_of(films):
    files = sorted(path.name for path in films.glob("*.mp4"))
    return Split(sources=files, starts=np.zeros(6), ends=np.full(6, 2.0))


def test_a_change_is_what_it_is_called(films, tmp_path, random, unchecked_shapes):
    split = split_of(films)
    film = changes._film(split, 2, films)
    count, height, width = film.frames.shape[:3]
    assert film.rate == pytest.approx(25, abs=0.5) and len(film.sound) >= 2 * RATE_HZ - 1
    written = {}
    for name, change in changes.CHANGES.items():
        path = tmp_path / f"{name}.mp4"
        changes.write(path, change(film, random))
        with Reader(path, None) as reader:
            written[name] = reader.cut(0.0, None)
    shapes = {name: media.frames.shape for name, media in written.items()}
    assert shapes["reencode"] == shapes["noise"] == (count, height, width, 3)
    for side, whole in zip(shapes["crop"][1:3], (height, width), strict=True):
        assert side == (whole - 2 * int(0.1 * whole)) // 2 * 2
    assert shapes["speed"][0] == pytest.approx(count / 1.25, abs=1)
    seconds = {name: len(media.waveform) / RATE_HZ for name, media in written.items()}
    assert seconds["speed"] == pytest.approx(2 / 1.25, abs=0.1)
    assert seconds["noise"] == pytest.approx(2.0, abs=0.1)
    sizes = {name: (tmp_path / f"{name}.mp4").stat().st_size for name in written}
    assert sizes["reencode"] < 0.3 * sizes["noise"]
    level = np.sqrt(np.mean((written["noise"].waveform[: len(film.sound)] - film.sound) ** 2))
    assert level > 0.5 * np.sqrt(np.mean(film.sound**2)) * 10 ** (-15 / 20)


def test_changes_are_made_to_the_sample():
    frames = np.arange(2 * 20 * 30 * 3).reshape(2, 20, 30, 3).astype(np.uint8)
    film = changes.Recording(frames, 25.0, np.arange(-50, 50, dtype=np.float32) / 100)
    random = np.random.default_rng(3)
    np.testing.assert_array_equal(changes.crop(film, random).frames, frames[:, 2:18, 3:27])
    assert changes.reencode(film, random) == film._replace(quality=changes.BAD)
    grey = film._replace(frames=np.full((9, 20, 30, 3), 128, np.uint8), sound=film.sound.repeat(99))
    noisy = changes.noise(grey, random)
    assert np.std(noisy.frames) == pytest.approx(255 * 0.08, rel=0.02)
    added = noisy.sound - grey.sound
    assert np.std(added) == pytest.approx(10 ** (-15 / 20) * np.std(grey.sound), rel=0.03)
    bright = changes.noise(film._replace(frames=np.full_like(frames, 255)), random).frames
    assert bright.min() > 100  # what is more than white is white
    faster = changes.speed(film._replace(frames=frames.reshape(20, 2, 30, 3)), random)
    np.testing.assert_array_equal(faster.frames[:5, 0, 0, 0], [0, 180, 104, 28, 132])
    np.testing.assert_allclose(faster.sound, np.arange(0, 99, 1.25) / 100 - 0.5, atol=1e-6)


class Part(SimpleNamespace):
    """Stands for embedded clips."""

    def __len__(self):
        return len(self.ids)


class ColoursOnly:
    """Stands for a model: small pictures of first and last frames, and the sound's envelope."""

    unread = ()  # of copies: "change/file"

    def stream(self, folder, streams):
        """Two films at a time, after a part that has none."""
        yield Part(ids=[])
        files = sorted(path.name for path in Path(folder).glob("*.mp4"))
        files = [name for name in files if f"{Path(folder).name}/{name}" not in self.unread]
        for first in range(0, len(files), 2):
            yield self.embed(Path(folder), files[first : first + 2])

    def embed(self, folder, files):
        rows = [self.one(folder, name) for name in files]
        visual, audio = (np.stack(part) for part in zip(*rows, strict=True))
        return Part(ids=files, visual_embeddings=visual, audio_embeddings=audio)

    def one(self, folder, name):
        with Reader(folder / name, (8, 8)) as reader:
            media = reader.cut(0.0, None)
        sound = np.abs(media.waveform[:24_000]).reshape(24, -1).mean(axis=1)
        picture = media.frames[:30].mean(axis=0).ravel() - 128.0
        return picture, sound - sound.mean()


def test_copies_ask_for_their_originals(films, unchecked_shapes):
    """And for no other: with the originals turned round nothing is found."""
    split, model = split_of(films), ColoursOnly()
    originals = model.embed(films, split.sources)
    numbers = changes.chosen(split, films, 4)
    assert numbers.tolist() == [0, 1, 3, 5]
    found = changes.fingerprint(model, originals, split, films, numbers)
    assert set(found) == set(changes.CHANGES)
    assert all(one["n"] == 4 and one["rejected"] == 0 for one in found.values())
    assert found["noise"]["both"] >= 0.75  # what tells these films apart is noise: no other lasts
    turned = SimpleNamespace(
        visual_embeddings=np.roll(originals.visual_embeddings, 1, axis=0),
        audio_embeddings=np.roll(originals.audio_embeddings, 1, axis=0),
    )
    model.unread = ("crop/3.mp4", *(f"speed/{number}.mp4" for number in numbers))
    found = changes.fingerprint(model, turned, split, films, numbers)
    assert found["noise"]["both"] <= 0.25
    assert (found["crop"]["n"], found["crop"]["rejected"]) == (3, 1)
    assert list(found) == ["crop", "reencode", "noise"]  # of speed none can be read
    collapsed = SimpleNamespace(**{k: np.full_like(v, 0.1) for k, v in vars(turned).items()})
    first = numbers[:1]  # as each would be
    found = changes.fingerprint(model, collapsed, split, films, first)
    assert {found["noise"][asked] for asked in ("visual", "audio", "both")} == {0.0}
    split.sources[0] = "gone.mp4"
    with pytest.raises(InputError, match=r"gone\.mp4: expected a clip's source, .* --videos"):
        changes.chosen(split, films, 4)


# ---- the program --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """The folder of a run of SCAV + Temporal, and its data."""
    folder = tmp_path_factory.mktemp("temporal")
    small = {"encoders.visual_blocks": 0, "encoders.audio_blocks": 0}
    untrained(config_of(write(folder / "data"), "sequence+temporal", **small), folder / "run")
    return folder


def test_a_run_is_probed_and_its_report_says_so(run, capsys, monkeypatch):
    words, computed = ["--run", str(run / "run"), "--split", "validation"], []

    def once(*arguments, probe=probing.probe):
        computed[:] = computed or [probe(*arguments)]
        return computed[0]

    def full(*_):
        raise OSError(28, "No space left on device")

    probe = probing.probe
    monkeypatch.setattr(probing, "probe", once)
    with pytest.raises(
        InputError, match=r"--videos: expected .* it does not say which; or --changed 0"
    ):
        probe_program.main(words)
    assert probe_program.main([*words, "--changed", "0"]) == 0
    said = capsys.readouterr().out
    file = run / "run" / "probe" / "data-validation" / "probe.json"
    assert str(file) in said and "SCAV + Temporal" in said and "order va" in said
    document = json.loads(file.read_text())
    of_these = document["data"]["ids_sha256"]
    there = probed.read(run / "run", run / "data", "validation", of_these)
    assert there == {key: value for key, value in document.items() if key != "checksum"}
    assert probed.read(run / "run", run / "data", "validation", "of others") is None
    assert probed.read(run / "run", run / "data", "train", of_these) is None
    assert document["left_out"] == {} and document["changes"] == {}
    assert set(document["labels"]) == {"visual", "audio", "both"}
    tasks = document["tasks"]
    assert set(tasks) == {
        *(f"{task}_{stream}" for task in ("speed", "direction") for stream in ("visual", "audio")),
        *(f"order_{pair}" for pair in ("vv", "aa", "va", "av")),
    }
    for task in tasks.values():
        assert set(task) == {"accuracy", "error", "prior", "static", "shuffled", "n"}
        assert task["n"] == 5 and 0 <= task["accuracy"] <= 1 and task["prior"] > 0.3
    assert "CAUTION: N = 5 is few: a share may be off by 44 points" in said
    assert "C was chosen on 5 of these very clips" in said
    copies = {"visual": 1.0, "audio": 0.5, "both": 1.0, "n": 2, "rejected": 0}
    title = probed.tables(document | {"changes": {"crop": copies}})[-1][0]
    assert title == "Changed copies that find their original among 5 clips, R@1 in %"
    with pytest.raises(InputError, match="expected a folder at"):
        probe_program.main([*words, "--changed", "0", "--out", str(file / "below a file")])
    assert not capsys.readouterr().out
    with monkeypatch.context() as patched, pytest.raises(OSError):  # what was computed is shown
        patched.setattr(probing, "write", full)
        probe_program.main([*words, "--changed", "0"])
    again = capsys.readouterr().out.strip()
    assert again == said.partition(f"\n{file}")[0].strip() and len(again) > 500
    of_weights = ["--changed", "1", "--videos", str(run), "--weights", "clip=FOLDER"]
    with (
        monkeypatch.context() as patched,
        pytest.raises(InputError, match=r"--weights clip: expected the name of a side with"),
    ):
        patched.setattr(probing, "probe", probe)
        patched.setattr(changes, "chosen", lambda *_: np.arange(1))
        patched.setattr(probing, "embed", None)  # before the work
        probe_program.main([*words, *of_weights])
    of_train = store.read(run / "data", "train")
    told = probing._learned_from(of_train, probing.ProbeSettings())
    assert "expected clips that labels are not learned from" in str(told)
    asked = probing.ProbeSettings(train_split="trian")  # and not passed over
    with pytest.raises(InputError, match=r"no split 'trian', .* Did you mean 'train'"):
        probing._learned_from(of_train, asked)
    monkeypatch.setattr(retrieve, "_shortest", lambda _: 1.0)  # `test_evaluate` has times, pictures
    monkeypatch.setattr(figures, "image", lambda _: "")
    told = ["--run", str(run / "run"), "--split", "validation", "--bootstrap", "0"]
    assert evaluate_program.main(told) == 0
    report = next((run / "run" / "evaluation").glob("*/report.html")).read_text()
    assert "What the features tell (SCAV + Temporal)" in report and "shuffled" in report
    file.write_text("{")
    with pytest.raises(InputError, match="expected the figures of a probe"):
        probed.read(run / "run", run / "data", "validation", "")


def test_labels_outlive_copies_that_fail(run, tmp_path, monkeypatch):
    labels = {"labels": {"both": {"accuracy": 1.0}}, "neighbours": {}}
    monkeypatch.setattr(probing, "_labels", lambda *_: dict(labels))
    monkeypatch.setattr(probing.tasks, "accuracies", lambda *_: {})
    monkeypatch.setattr(probing, "Model", lambda *_: "a model")
    monkeypatch.setattr(changes, "chosen", lambda *_: np.arange(2))

    def probed_with(fingerprint):
        monkeypatch.setattr(changes, "fingerprint", fingerprint)
        settings = probing.ProbeSettings(changed=2, videos=tmp_path)
        document = probing.probe(load_run(run / "run"), run / "data", "validation", settings)
        assert document["labels"] == labels["labels"]
        return document["changes"], document["left_out"]

    def damaged(*_):
        raise InputError("film.mp4: damaged")

    assert probed_with(damaged)[1]["changed copies"] == "film.mp4: damaged"
    some = {change: {"n": 2} for change in ("crop", "noise", "speed")}
    found, left_out = probed_with(lambda *_: some)
    assert found == some and left_out["reencode"] == "all 2 copies were rejected"
