"""The report: what it shows, from as little as there may be, and nothing from the network."""

import base64
import re

import jax.numpy as jnp
import numpy as np
import pytest

from scav_jax import metrics, retrieve
from scav_jax.report import figures, markup, page
from scav_jax.report.pictures import make_resampled
from scav_jax.retrieval import results
from scav_jax.sequences import RESAMPLINGS, AudioVisual, sequences

DIRECTIONS = ("a2v", "v2a")


def document(clips=23, runs=("SCAV",), labels=True, rendered=False, bootstrap=20):
    """A results document from random matrices."""
    return {
        "format_version": results.FORMAT_VERSION,
        "data": {
            "path": "some/features",
            "split": "test",
            "n": clips,
            "sources": 4,
            "ids_sha256": "c0ffee" * 8,
            "fingerprint": {"backbone": "plain <b>"},
            "fingerprint_id": "0123456789abcdef",
            "rendered": rendered,
        },
        "bootstrap": bootstrap,
        "seed": 0,
        "tie_rule": metrics.TIE_RULE,
        "machine": "1 x cpu",
        "runs": [
            run_document(name, seed, clips, labels, bootstrap) for seed, name in enumerate(runs)
        ],
    }


def run_document(name, seed, clips, labels, bootstrap):
    similarities, distances = np.random.default_rng(seed).normal(size=(2, clips, clips))
    ks = sorted({1, min(3, clips), clips})
    hybrid = {d: retrieve.hybrid_ranks(similarities, distances, ks, d) for d in DIRECTIONS}
    first = {d: metrics.ranks(-retrieve.queries_first(similarities, d)) for d in DIRECTIONS}

    def method(kind, k, ranks):
        summaries = {d: metrics.summary(ranks[d], bootstrap=bootstrap) for d in DIRECTIONS}
        return {"method": kind, "k": k, "seconds_per_query": 0.001 * k, **summaries}

    rows = [method("hybrid", k, {d: hybrid[d][i] for d in DIRECTIONS}) for i, k in enumerate(ks)]
    names = [f"class & {number % 30}" for number in range(clips)] if labels else [""] * clips
    classes = {d: metrics.per_class(first[d], names) for d in DIRECTIONS}
    by_class = {c: {d: classes[d][c] for d in DIRECTIONS} for c in classes["a2v"]}
    return {
        "name": name,
        "run": "runs/x",
        "objective": "aggregation" if name == "CAV" else "sequence",
        "own_method": "aggregation" if name == "CAV" else "sequence",
        "trained_with": "sequence objective, batch 64",
        "training": "some/features, 100 clips",
        "parameters": 1234,
        "config": {"seed": 0},
        "distance": {"name": "euclidean", "options": {"resample": "visual_to_audio"}},
        "methods": [
            method("aggregation", 1, first),
            *rows,
            method("sequence", clips, {d: hybrid[d][-1] for d in DIRECTIONS}),
        ],
        "first_stage": [
            {"k": k} | {d: metrics.recall_at_k(first[d], k) for d in DIRECTIONS} for k in ks
        ],
        "per_class": {"aggregation": by_class, "sequence": by_class},
        "per_subset": {},
        "galleries": {},
        "seconds": {"embedding": 1.0, "distances": 2.0, "ranking": 0.5},
    }


def history(runs=("SCAV",)):
    train = [
        {"kind": "train", "step": s, "loss": 3 / s, "temperature": 1.0, "distance_spread": 0.1}
        for s in (10, 20, 30)
    ]
    keys = ("sequence_a2v", "sequence_v2a", "aggregation_a2v", "aggregation_v2a")
    validation = [
        {"kind": "validation", "step": s} | {key: s / 100 for key in keys} for s in (10, 30)
    ]
    return [(name, train + validation) for name in runs]


def pictures(clips=23, runs=("SCAV",), thumbnail=True):
    random = np.random.default_rng(0)
    shown = min(clips, 9)
    matrices = random.normal(size=(3, shown, shown))
    small = figures.Thumbnail("data:image/jpeg;base64,AAAA", random.random(96))
    sound = "data:audio/mp4;base64,AAAA" if thumbnail else ""
    clip = page.ClipView("id <1>", "a.mp4", 0.0, 4.0, "", small if thumbnail else None, sound)
    found = [(clip, "other", 0.1), (clip, "right", 0.2), (clip, "same source", 0.3)]
    return page.Pictures(
        histories=history(runs),
        matrices=figures.Matrices(*matrices, [f"v{i // 3}" for i in range(shown)]),
        alignments=[
            figures.Alignment(title, random.random((7, 5)), random.random((7, 5)))
            for title in ("own", "other")
        ],
        comparison=[
            figures.Alignment("a path", random.random((7, 5)), random.random((7, 5)), path)
            for path in (np.array([[0, 0], [1, 1], [6, 4]]), None)
        ],
        resampled=figures.Resampled(
            random.normal(size=(5, 3)), random.normal(size=(5, 3)), {"own": random.random(5)}
        ),
        searches=[page.ExampleSearch(d, clip, 2, found) for d in DIRECTIONS],
        no_thumbnails="" if thumbnail else "the folder is not there any more",
    )


def addresses(html):
    return re.findall(r"""(?:src|href)\s*=\s*["']?([^"'\s>]+)|url\(([^)]*)\)""", html)


@pytest.fixture(scope="module")
def whole():
    """A page with everything that there can be, two runs side by side; drawing takes seconds."""
    runs = ("SCAV", "CAV")
    return page.html(document(60, runs, rendered=True), pictures(60, runs))


def test_the_page_has_its_figures_and_needs_no_network(whole):
    html = whole
    images = [first or second for first, second in addresses(html)]
    assert images
    assert all(address.startswith(("data:image/", "data:audio/")) for address in images)
    assert html.count("<audio controls") == 8  # each query and three that were found
    assert 'aria-label="sound of id &lt;1&gt;"' in html and "<th></th>" not in html
    assert "http" not in re.sub(r"base64,[A-Za-z0-9+/=]+", "", html)
    assert "<script" not in html
    assert "@import" not in html
    drawings = [image for image in images if image.startswith("data:image/svg+xml")]
    # recall, k sweep, matrices, alignment (and by distance, and on one grid), training
    assert len(drawings) == 7
    for drawing in drawings:
        svg = base64.b64decode(drawing.split(",")[1]).decode()
        assert "<svg" in svg
        # Names of XML vocabularies are addresses that nobody opens; nothing else may be one.
        assert not re.search(r'(?:href|src)="(?!#|data:)', svg)
    for heading in (
        "Recall by method",
        "Retrieved clips",
        "second stage",
        "z-score",
        "Alignment",
        "Training",
        "By class",
        "What was measured",
    ):
        assert heading in html
    assert results.RENDERED in html
    assert "c0ffee" in html
    assert "0123456789abcdef" in html


def test_figures_in_the_page_are_those_of_the_document(whole):
    for run in document(60, ("SCAV", "CAV"))["runs"]:
        for method in results.main_methods(run):
            for direction in DIRECTIONS:
                summary = method[direction]
                assert f"<b>{100 * summary['recall_at_1']:.1f}</b>" in whole
                cells = [f"{100 * summary[f'recall_at_{k}']:.1f}" for k in (5, 10)]
                cells += [f"{summary['median_rank']:,g}", f"{summary['mean_rank']:,.1f}"]
                if direction == DIRECTIONS[1]:  # the last column, in milliseconds
                    cells.append(f"{1e3 * method['seconds_per_query']:.3g}")
                assert "".join(f"<td>{cell}</td>" for cell in cells) in whole


def test_the_page_from_nearly_nothing():
    """Three clips, no labels, no videos, no history, no intervals, one source."""
    little = document(clips=3, labels=False, bootstrap=0)
    html = page.html(little, page.Pictures())
    assert "By class" not in html
    assert "Retrieved clips" not in html
    assert "There is no metrics.jsonl" in html
    assert "CAUTION: N = 3 is few" in html
    assert results.RENDERED not in html
    assert "nan" not in html.lower().replace("nan is an error", "")


def test_missing_thumbnails_are_said():
    shown = pictures(thumbnail=False)
    shown = page.Pictures(searches=shown.searches, no_thumbnails=shown.no_thumbnails)
    html = page.html(document(clips=3), shown)
    assert "Thumbnails are missing: the folder is not there any more" in html
    assert "image/jpeg" not in html
    assert "no picture" in html


def test_names_cannot_break_the_page(whole):
    assert "id &lt;1&gt;" in whole
    assert "<1>" not in whole
    assert "class &amp; 3" in whole
    assert "plain &lt;b&gt;" in whole


def test_a_run_that_beats_no_baseline_is_named_as_it_is():
    data = document(clips=3, runs=("a & b", "CCA"))
    data["runs"][1] |= {"objective": results.BASELINE, "methods": data["runs"][0]["methods"]}
    found = page.html(data, page.Pictures())
    assert re.search(r">a &amp; b finds [^<]*, CCA, [^<]*electricity<", found)


def test_many_classes_are_cut_and_said(whole):
    section = whole[whole.index("By class") :]
    assert section.count("class &amp; ") == 24
    assert "The 12 best and the 12 worst of 30 classes" in section


def test_the_table_of_the_terminal():
    text = results.table(document(runs=("SCAV", "CAV"), rendered=True))
    lines = text.splitlines()
    rows = lines[2:8]
    assert [row.split()[0] for row in rows] == ["SCAV"] * 3 + ["CAV"] * 3
    assert "hybrid, k = 3" in rows[1]
    assert "hybrid, k = 1 " not in text
    assert len({len(row) for row in rows}) == 1
    run = document(runs=("SCAV", "CAV"))["runs"][0]
    for direction in DIRECTIONS:
        assert f"{100 * run['methods'][0][direction]['recall_at_1']:.1f}" in rows[0]
    assert "N = 23 clips" in text
    assert results.RENDERED in text
    assert not text.encode("ascii", "replace").count(b"?")


def test_a_name_is_one_line_of_a_table_and_turns_no_terminal():
    plain = results.table(document(runs=("SCAV", "CAV")))
    text = results.table(document(runs=("SC\n\x1b[31mAV", "CAV")))
    assert len(text.splitlines()) == len(plain.splitlines()) and "\x1b" not in text
    assert text.count(r"SC\n\x1b[31mAV") == plain.count("SCAV")


def test_own_method():
    runs = document(runs=("SCAV", "CAV"))["runs"]
    assert [results.own_method(run)["method"] for run in runs] == ["sequence", "aggregation"]


def test_the_same_figure_has_the_same_bytes():
    run = document()["runs"][0]
    rows = [("x", run["methods"][0])]
    assert figures.recall_by_method(rows) == figures.recall_by_method(rows)


def test_constant_matrices_can_be_drawn():
    same = np.zeros((4, 4))
    matrices = figures.Matrices(same, same, same, list("aabb"))
    assert figures.distance_matrices(matrices).startswith("data:image/svg")


def test_thumbnails_of_broken_videos_say_why(tmp_path):
    (tmp_path / "broken.mp4").write_bytes(b"not a video")
    for name in ("broken.mp4", "missing.mp4"):
        assert name in figures.thumbnail(tmp_path / name, 0.0, 4.0)


def test_envelope_is_drawn_over_all_bins():
    svg = markup.envelope(np.array([0.0, 1.0, 0.5]))
    assert svg.count("M") == 3
    assert 'viewBox="0 0 3 40"' in svg


@pytest.mark.parametrize("resample", RESAMPLINGS)
def test_the_mean_of_what_is_shown_on_one_grid_is_the_distance(random, resample):
    drawn = random.normal(size=(2, 3, 6, 4))
    latents = AudioVisual(
        sequences(jnp.asarray(drawn[0], jnp.float32), jnp.array([4, 6, 5])),
        sequences(jnp.asarray(drawn[1, :, :3], jnp.float32), jnp.array([3, 2, 3])),
    )
    D = retrieve.sequence_distances(latents, "euclidean", {"resample": resample})
    pair = make_resampled(latents, D, 1, resample)
    closest = min(D[1, 0], D[1, 2])
    found = [float(values.mean()) for values in pair.differences.values()]
    np.testing.assert_allclose(found, [D[1, 1], closest], rtol=1e-5)
    assert pair.visual.shape == pair.audio.shape and pair.moved == resample.partition("_")[0]
