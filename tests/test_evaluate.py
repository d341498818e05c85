"""Evaluation end to end on a run directory with random parameters, without videos or training."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
from small_run import TOWERS, drawn_run, noise

from scav_jax import metrics, retrieve
from scav_jax.base.errors import InputError
from scav_jax.base.files import ids_sha256
from scav_jax.encoders import Encoders
from scav_jax.evaluate import __main__ as program
from scav_jax.evaluate import evaluation as evaluate
from scav_jax.evaluate import galleries
from scav_jax.features import store
from scav_jax.objectives import Separate, Sequential
from scav_jax.report import pictures
from scav_jax.retrieval.embed import embed
from scav_jax.training import runs
from scav_jax.training.config import Config

FINGERPRINT = {"backbone": "random", "rate_hz": 16000}
CLIPS = 13
WIDTHS = {"visual": 7, "audio": 6}


def write_data(folder, seed=0, labels=("drum", ""), fingerprint=FINGERPRINT):
    random = np.random.default_rng(seed)
    clips = []
    for number in range(CLIPS):
        steps = random.integers(8, 12), random.integers(4, 6)
        about = {"source": f"video {number // 4}.mp4", "start": 2.0 * (number % 4)}
        label = labels[number % len(labels)]
        clip = noise(random, number, steps, WIDTHS.values(), label=label, **about)
        clips.append(("test" if number < CLIPS - 3 else "three", clip))
    store.write(clips, folder, fingerprint=fingerprint, videos="", rejected=[])
    return folder


def write_run(folder, data, seed=0, distance=None, **objective):
    """What a finished training leaves behind, with parameters as they are at the start."""
    config = Config().replace(
        seed=seed,
        data={"path": str(data), "buckets": 2, "batch_size": 4},
        encoders=TOWERS | {"visual_blocks": 0, "audio_blocks": 0},
        distance=distance or {"resample": "audio_to_visual"},
        objective=objective,
    )
    return drawn_run(folder, config, fingerprint=FINGERPRINT, widths=WIDTHS)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_data(tmp_path_factory.mktemp("evaluate") / "data")


@pytest.fixture(scope="module")
def scav(tmp_path_factory, data):
    return write_run(tmp_path_factory.mktemp("runs") / "scav", data)


@pytest.fixture(scope="module")
def document(scav, data):
    arguments = ["--run", str(scav), "--split", "test", "--hybrid", "1,3,10", "--bootstrap", "50"]
    assert program.main(arguments) == 0
    return json.loads((scav / "evaluation" / "data-test" / "metrics.json").read_text())


def method(document, kind, k=None, run=0):
    methods = document["runs"][run]["methods"]
    return next(m for m in methods if m["method"] == kind and k in (None, m["k"]))


def naive_ranks(run, split):
    """(method, direction) -> the rank of every query, counted one by one."""
    embedded = embed(run, split, batch_size=3)
    unit = [
        e / np.linalg.norm(e, axis=1, keepdims=True)
        for e in (embedded.visual_embeddings, embedded.audio_embeddings)
    ]
    distances = retrieve.sequence_distances(
        embedded.latents, "euclidean", {"resample": "audio_to_visual"}
    )
    return {
        (kind, direction): np.array([1 + np.sum(row < row[i]) for i, row in enumerate(by_query)])
        for kind, matrix in (("aggregation", -unit[0] @ unit[1].T), ("sequence", distances))
        for direction, by_query in (("v2a", matrix), ("a2v", matrix.T))
    }


def test_figures_are_those_of_a_naive_evaluation(document, scav, data):
    naive = naive_ranks(runs.load_run(scav), store.read(data, "test"))
    for (kind, direction), ranks in naive.items():
        got = method(document, kind)[direction]
        assert got["n"] == 10
        assert got["recall_at_1"] == np.mean(ranks <= 1)
        assert got["recall_at_5"] == np.mean(ranks <= 5)
        assert got["mean_rank"] == pytest.approx(np.mean(ranks))


# Whose class is "drum": 0, 2, 4, ...; the others have none.
ANNOTATIONS = """id,label,audible,visible,background_music,static_image,voice_over
clip 0,drum,1,1,1,0,0
clip 0,dog,1,0,1,0,0
clip 1,drum,1,1,0,0,0
clip 2,drum,1,0,1,0,1
clip 6,dog,1,1,0,0,0
clip 8,drum,0,1,0,0,0
elsewhere,dog,1,1,0,1,0
"""
SUBSETS = {
    "class heard and seen": [0],
    "class heard only": [2],
    "class neither heard nor seen": [6],
    "class seen only": [8],
    "background music": [0, 2],
    "no background music": [1, 6, 8],
    "no static image": [0, 1, 2, 6, 8],
    "no voice over": [0, 1, 6, 8],
    "voice over": [2],
}


def test_annotations_divide_the_queries(scav, data, tmp_path, capsys, monkeypatch):
    known = ids_sha256(store.read(data, "test").ids)
    monkeypatch.setitem(galleries.PUBLISHED, known, "somebody's list")
    path = tmp_path / "annotations.csv"
    path.write_text(ANNOTATIONS)
    words = ["--run", str(scav), "--split", "test", "--bootstrap", "0", "--out", str(tmp_path)]
    program.main([*words, "--annotations", str(path), "--gallery", "all", "10", "4"])
    document = json.loads((tmp_path / "metrics.json").read_text())["runs"][0]
    found = document["per_subset"]
    naive = naive_ranks(runs.load_run(scav), store.read(data, "test"))
    for (kind, direction), ranks in naive.items():
        assert found[kind].keys() == SUBSETS.keys()
        for name, clips in SUBSETS.items():
            got = found[kind][name][direction]
            assert (got["n"], got["mean_rank"]) == (len(clips), np.mean(ranks[clips]))
    for (kind, direction), ranks in naive.items():
        small, whole = document["galleries"][kind]
        assert (small["size"], whole["size"]) == (4, len(ranks))
        assert whole[direction]["recall_at_1"] == pytest.approx(np.mean(ranks == 1))
        expected = metrics.gallery_recall(ranks, len(ranks), 4, 1)
        assert small[direction]["recall_at_1"] == pytest.approx(expected)
    printed = capsys.readouterr().out
    assert re.search(r"SCAV +no background music +3 ", printed)
    assert re.search(r"SCAV +sequence +4 ", printed)
    assert f"sha256 of the ids {known[:16]} somebody's list" in printed
    assert f"{known} somebody&#x27;s list" in (tmp_path / "report.html").read_text()
    assert "In smaller galleries (SCAV)" in (tmp_path / "report.html").read_text()
    assert "By subset (SCAV, sequence)" in (tmp_path / "report.html").read_text()
    path.write_text("\n".join(ANNOTATIONS.splitlines()[::7]))
    with pytest.raises(InputError, match=r"none of its 10 clips \(such as clip 0\) is among the 1"):
        program.main([*words, "--annotations", str(path)])


def test_hybrid_extremes_are_aggregation_and_sequence_in_every_figure(document):
    for kind, k in (("aggregation", 1), ("sequence", 10)):
        hybrid = method(document, "hybrid", k)
        for key in ("a2v", "v2a", "seconds_per_query"):
            assert hybrid[key] == method(document, kind)[key]


def test_the_document_says_what_was_measured(document, data):
    about = document["data"]
    ids = [f"clip {number}" for number in range(10)]
    assert (about["n"], about["sources"]) == (10, 3)
    assert about["ids_sha256"] == ids_sha256(ids)
    assert about["fingerprint"] == FINGERPRINT
    assert about["rendered"] is False
    run = document["runs"][0]
    assert run["name"] == "SCAV"
    assert run["distance"] == {"name": "euclidean", "options": {"resample": "audio_to_visual"}}
    assert set(run["seconds"]) == {"embedding", "distances", "ranking"}
    assert "average of steps 10, 20" in run["trained_with"]
    assert [stage["k"] for stage in run["first_stage"]] == [1, 3, 10]
    for direction in ("a2v", "v2a"):
        aggregation = method(document, "aggregation")[direction]
        assert run["first_stage"][0][direction] == aggregation["recall_at_1"]
        assert run["first_stage"][2][direction] == 1.0
        assert len(aggregation["recall_at_1_interval"]) == 2
    assert run["per_class"]["sequence"]["drum"]["a2v"]["n"] == 5
    assert list(run["per_class"]["sequence"]) == ["drum"]


def test_the_report_and_the_table(scav, document, capsys):
    html = (scav / "evaluation" / "data-test" / "report.html").read_text()
    assert "Thumbnails are missing: the data set does not say where its videos are" in html
    assert document["data"]["ids_sha256"] in html
    assert "http" not in re.sub(r"base64,[A-Za-z0-9+/=]+", "", html)
    assert "There is no metrics.jsonl" in html
    program.main(["--run", str(scav), "--split", "three", "--bootstrap", "0"])
    printed = capsys.readouterr().out
    assert "N = 3 clips" in printed
    assert "SCAV  aggregation" in printed
    assert "report.html" in printed


@pytest.mark.usefixtures("figures_only")
def test_runs_side_by_side_with_another_distance(scav, data, tmp_path, capsys):
    cav = write_run(tmp_path / "cav", data, seed=1, name="aggregation")
    other = write_run(tmp_path / "lr=0.1", data, seed=2)
    own = f"{write_run(tmp_path / 'own' / 'scav', data, seed=2)}={tmp_path / 'mirrored'}"
    clips = [("three", clip) for split in ("three", "test") for clip in store.read(data, split)]
    store.write(clips[::-1], tmp_path / "mirrored", fingerprint=FINGERPRINT, videos="", rejected=[])
    arguments = ["--run", str(scav), "--data", str(data), "--split", "three", "--bootstrap", "0"]
    program.main([*arguments, "--distance", "dtw", "--compare", str(cav), str(other), own])
    folder = scav / "evaluation" / "data-three-dtw"
    compared = json.loads((folder / "metrics.json").read_text())
    parent = scav.parent.name  # of another run that is called so
    names = [f"SCAV ({parent}/scav)", "CAV", "SCAV (lr=0.1)", "SCAV (own/scav)"]
    assert [run["name"] for run in compared["runs"]] == names
    assert {run["distance"]["name"] for run in compared["runs"]} == {"dtw"}
    same = compared["runs"][2:]  # the same clips in another data set and order
    assert same[0]["per_class"] == same[1]["per_class"]
    assert [method(compared, "sequence", run=n)["a2v"] for n in (2, 3)] == 2 * [
        method(compared, "sequence", run=2)["a2v"]
    ]
    assert "CAV" in capsys.readouterr().out


def fake_run(distance, options=None, name="sequence"):
    objective = Sequential(name=name, distance=distance, distance_options=options or {})
    return runs.Run(None, {}, Encoders(), objective, {}, FINGERPRINT)


def test_each_way_of_ranking_has_a_folder_of_its_own(data, tmp_path):
    """Or figures of an hour would be written over by those of another option."""
    ways = [
        [],
        ["--distance", "soft_dtw"],
        ["--resample", "visual_to_audio"],
        ["--ids", "some.txt"],
        ["--static-weight", "0"],
        ["--static-weight", "0.25"],
        ["--parts"],
        ["--baselines"],
        ["--hubness", "bank"],
        ["--parts", "--hubness", "bank"],
    ]
    split = store.read(data, "test")
    named = ["--run", str(tmp_path / "run"), "--split", "test"]
    found = [program.output_folder(program.parse(named + way), split).name for way in ways]
    assert len(set(found)) == len(ways), found
    assert program.output_folder(program.parse([*named, "--out", "there", "--parts"]), split) == (
        Path("there")
    )


def test_which_distance_ranks():
    def choose(run, distance=None, resample=None):
        settings = evaluate.EvaluationSettings(distance=distance, resample=resample)
        return evaluate.retrieval_distance(run, settings)

    v2a, a2v = {"resample": "visual_to_audio"}, {"resample": "audio_to_visual"}
    assert choose(fake_run("euclidean", a2v)) == ("euclidean", a2v)
    assert choose(fake_run("euclidean", a2v), resample="visual_to_audio") == ("euclidean", v2a)
    assert choose(fake_run("soft_dtw", {"gamma": 0.5})) == ("dtw", {})
    assert choose(fake_run("soft_dtw", {"gamma": 0.5}), "soft_dtw") == ("soft_dtw", {"gamma": 0.5})
    assert choose(fake_run("soft_dtw"), "euclidean") == ("euclidean", v2a)
    assert choose(fake_run("wasserstein", {"blur": 0.1})) == ("wasserstein", {"blur": 0.1})
    assert choose(fake_run("dtw", name="aggregation")) == ("euclidean", v2a)
    with pytest.raises(InputError, match="'dtw' does not; leave it out"):
        choose(fake_run("soft_dtw"), resample="visual_to_audio")
    with pytest.raises(InputError, match="Did you mean 'euclidean'"):
        choose(fake_run("dtw"), "euclidian")


def test_another_static_weight_ranks_where_a_model_has_a_static_part():
    def choose(objective, weight, distance=None):
        run = runs.Run(None, {}, Encoders(), objective, {}, FINGERPRINT)
        settings = evaluate.EvaluationSettings(distance=distance, static_weight=weight)
        return evaluate.retrieval_distance(run, settings)

    learned, v2a = Separate(static_weight=0.5), {"resample": "visual_to_audio"}
    for asked, used in ((None, 0.5), (0.0, 0.0), (0.25, 0.25)):
        options = {"static_width": 64, "static_weight": used} | v2a
        assert choose(learned, asked) == ("euclidean+static", options)
    assert choose(learned, 0.25, "soft_dtw")[1]["static_weight"] == 0.25
    wrong = (learned, -0.5), (Sequential(), 0.5), (Separate(static_loss=0.0), 0.5)
    for objective, weight in wrong:
        with pytest.raises(InputError, match=f"static part apart, got {weight:g} with eucl"):
            choose(objective, weight)


def test_default_ks():
    assert evaluate.hybrid_ks(None, 3) == [1, 3]
    assert evaluate.hybrid_ks(None, 1) == [1]
    assert evaluate.hybrid_ks(None, 10) == [1, 10]
    assert evaluate.hybrid_ks(None, 20) == [1, 10, 20]
    assert evaluate.hybrid_ks(None, 1020) == [1, 10, 100, 1020]
    assert evaluate.hybrid_ks([5, 1, 5], 9) == [1, 5]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--split", "tset"], "no split 'tset'.*Did you mean 'test'"),
        (["--split", "test", "--hybrid", "1,x"], "whole numbers with commas"),
        (["--split", "test", "--hybrid", "0,5"], "--hybrid: expected numbers from 1 on, got 0"),
        (["--split", "test", "--hybrid", "11"], "expected 1 to 10 .*got 11"),
        (["--split", "test", "--bootstrap", "-1"], "--bootstrap: expected 0 or more, got -1"),
        (["--split", "test", "--resample", "v2a"], "--resample: expected one of .*got 'v2a'"),
        (["--split", "test", "--gallery", "4", "11"], "--gallery: .* the 10 clips .*got 11"),
        (["--split", "test", "--gallery", "0"], "expected 1 or more, or all, got '0'"),
        ([], "required: --split"),
        (["--split", "test", "--compare", "nowhere"], "nowhere: expected a run directory"),
    ],
)
def test_bad_arguments_are_one_line_before_the_work(scav, arguments, message, monkeypatch):
    monkeypatch.setattr(evaluate, "embed", lambda *_, **__: pytest.fail("embedded"))
    with pytest.raises(InputError, match=message):
        program.main(["--run", str(scav), *arguments])


def test_features_of_another_extractor_are_named(scav, tmp_path):
    other = write_data(tmp_path / "other", fingerprint=FINGERPRINT | {"rate_hz": 8000})
    with pytest.raises(InputError, match="rate_hz: expected 16000, got 8000"):
        program.main(["--run", str(scav), "--data", str(other), "--split", "test"])
    assert not (scav / "evaluation" / "other-test").exists()


def test_matrix_clips_come_in_blocks():
    sources = [f"video {number % 7}" for number in range(100)]
    chosen = pictures.matrix_clips(sources)
    assert len(chosen) == len(set(chosen)) == 48
    blocks = [sources[number] for number in chosen]
    assert all(len(set(blocks[i : i + 8])) == 1 for i in range(0, 48, 8))
    assert pictures.matrix_clips(["a", "b", "c"]) == [0, 1, 2]


def test_closest_puts_the_right_one_last_among_equals():
    distances = np.array([0.3, 0.1, 0.1, 0.2])
    assert pictures.closest(distances, 1, 3) == [2, 1, 3]
    assert pictures.closest(distances, 2, 3) == [1, 2, 3]
