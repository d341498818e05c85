"""A model in mteb: sequences rank a task of its own form. Skipped where mteb is not installed."""

import importlib.util
import sys
from pathlib import Path

import numpy as np
import pytest
from test_media import click_track
from test_model import RATE, film, write_run, write_sound

from scav_jax.retrieval import model
from scav_jax.retrieve import sequence_distances
from scav_jax.sequences import AudioVisual

SCRIPT = Path(__file__).parents[1] / "scripts" / "mteb_scav.py"


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("mteb_scav", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    sys.modules["mteb_scav"] = module
    spec.loader.exec_module(module)
    yield module
    del sys.modules["mteb_scav"]


@pytest.fixture(scope="module")
def films(tmp_path_factory):
    """Six films, a silent one behind them, and the sound of each as a file; none for the last."""
    folder = tmp_path_factory.mktemp("gallery")
    made = [film(folder / f"{n}.mp4", 2.0 + 0.4 * n, seed=n) for n in range(6)]
    track = np.zeros_like(click_track(2.0, RATE, [0.5], seed=7))
    sounds = [
        write_sound(
            folder / f"{n}.wav", "pcm_s16le", click_track(2.0 + 0.4 * n, RATE, [0.5], seed=n)
        )
        for n in range(6)
    ]
    silent = write_sound(folder / "silent.wav", "pcm_s16le", track)
    still = film(folder / "still.mp4", 2.0, seed=9, frames=[np.zeros((64, 64, 3), np.uint8)] * 50)
    return [*made, still], [*sounds, silent]


@pytest.fixture(scope="module")
def loaded(tmp_path_factory):
    return model.load(write_run(tmp_path_factory.mktemp("run")))


class Rows(list):
    """As much of a `datasets.Dataset` as the script reads; `undecoded` by what is in it already."""

    class Feature:
        def __init__(self, decode=True):
            self.decode = decode

    def __init__(self, column, files):
        super().__init__(
            {"id": f"clip {n}", column: {"bytes": Path(file).read_bytes(), "path": None}}
            for n, file in enumerate(files)
        )
        self.column_names, self.features = ["id", column], {column: self.Feature()}

    def __getitem__(self, key):
        return [row[key] for row in self] if isinstance(key, str) else super().__getitem__(key)

    def cast_column(self, column, feature):
        assert not feature.decode
        return self


def test_search_ranks_by_sequences(script, films, loaded, monkeypatch):
    """Distances of all pairs, made here file by file; what cannot be used is last, or a miss."""
    monkeypatch.setattr(script, "described", lambda *_: None)
    searcher = script.Searcher(loaded)
    searcher.index(Rows("audio", films[1]))
    found = searcher.search(Rows("video", films[0]), top_k=4)
    whole = searcher.search(Rows("video", films[0]), top_k=99)
    visual = loaded.embed(films[0][:6], streams=["visual"])
    audio = loaded.embed(films[1][:6], streams=["audio"])
    D = sequence_distances(AudioVisual(visual.visual, audio.audio), *loaded.distance)
    for number, row in enumerate(D):
        expected = [f"clip {one}" for one in np.argsort(row)]
        assert list(found[f"clip {number}"]) == expected[:4]
        assert list(whole[f"clip {number}"]) == [*expected, "clip 6"]  # silent: behind all others
        np.testing.assert_allclose(
            list(whole[f"clip {number}"].values())[:6], -np.sort(row), rtol=1e-5
        )
    assert found["clip 6"] == {script.NOTHING: 0.0}
    narrowed = searcher.search(
        Rows("video", films[0][:1]), top_k=9, top_ranked={"clip 0": ["clip 2", "clip 1"]}
    )
    assert set(narrowed["clip 0"]) == {"clip 1", "clip 2"}
    with pytest.raises(script.InputError, match="expected video that finds audio"):
        searcher.search(Rows("audio", films[1]), top_k=1)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("method", ["sequence", "aggregation"])
def test_mteb_evaluates_a_task_of_its_own_form(script, films, loaded, tmp_path, method):
    """R@1 and nDCG@10 are those of the ranks; the query that cannot be used counts as a miss."""
    mteb = pytest.importorskip("mteb")
    datasets = pytest.importorskip("datasets")
    from mteb.abstasks.retrieval_dataset_loaders import RetrievalSplitData

    def rows(column, files, kind):
        content = [{"bytes": Path(file).read_bytes(), "path": None} for file in files]
        held = {"id": [f"clip {n}" for n in range(len(files))], column: content}
        return datasets.Dataset.from_dict(held).cast_column(column, kind())

    class Task(mteb.get_task("VGGSoundAVV2ARetrieval").__class__):
        def load_data(self, **_):
            relevant = {f"clip {n}": {f"clip {n}": 1} for n in range(7)}
            queries = rows("video", films[0], datasets.Video)
            corpus = rows("audio", films[1], datasets.Audio)
            held = RetrievalSplitData(
                queries=queries, corpus=corpus, relevant_docs=relevant, top_ranked=None
            )
            self.dataset, self.data_loaded = {"default": {"test": held}}, True

    searcher = script.Searcher(loaded, method)
    (told,) = script.evaluate(searcher, [Task()], tmp_path).values()
    visual = loaded.embed(films[0][:6], streams=["visual"])
    audio = loaded.embed(films[1][:6], streams=["audio"])
    nearest = sequence_distances(AudioVisual(visual.visual, audio.audio), *loaded.distance)
    if method == "aggregation":
        nearest = -script.aggregation_similarities(visual.visual_embeddings, audio.audio_embeddings)
    ranks = np.sum(nearest <= np.diag(nearest)[:, None], axis=1)
    assert told["recall_at_1"] == pytest.approx(np.sum(ranks == 1) / 7, abs=1e-5)
    assert told["ndcg_at_10"] == pytest.approx(np.sum(1 / np.log2(1 + ranks)) / 7, abs=1e-5)
