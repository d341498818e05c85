"""Silent films and sounds alone: listed, indexed, searched; ranks equal those of whole films."""

from dataclasses import replace

import av
import numpy as np
import pytest
from test_index import embedded
from test_model import film, write_run

from scav_jax.base.errors import InputError
from scav_jax.extract import manifest
from scav_jax.index import __main__ as program
from scav_jax.index import create, open_index
from scav_jax.index import program as index_program
from scav_jax.retrieval import model
from scav_jax.search import __main__ as search

KINDS = {"visual": "video", "audio": "audio"}


def alone(clips, stream):
    """The same clips with one stream; the other one's steps are known."""
    other = "audio" if stream == "visual" else "visual"
    away = getattr(clips, other)
    partner = replace(away, values=away.values[..., :0])
    return replace(clips, **{other: None, f"{other}_embeddings": None, "partner": partner})


def found(index, queries, direction, retrieval="exact"):
    hits = index.search(queries, direction, len(index), retrieval)
    return [[(hit.id, hit.score) for hit in of_query] for of_query in hits]


@pytest.mark.parametrize(
    ("name", "stored"), [("euclidean", "float32"), ("euclidean", "int8"), ("dtw", "float32")]
)
def test_mixed_clips_are_found_as_whole_ones(tmp_path, name, stored):
    clips = embedded(12, steps=5, width=4, lengths=[3, 5, 4] * 4)
    films, sounds, both = (list(range(first, 12, 3)) for first in range(3))
    options = {"distance": (name, {}), "identity": "m", "storage": stored}
    whole, mixed = create(tmp_path / "whole", **options), create(tmp_path / "mixed", **options)
    whole.add(clips)
    mixed.add(clips.take(both))  # float32 has no centre; that of int8 is of what came first
    mixed.add(alone(clips.take(films), "visual"))
    mixed.add(alone(clips.take(sounds), "audio"))
    assert len(mixed) == 12
    counts = {"both": 4, "pictures alone": 4, "sounds alone": 4}
    assert {key: mixed.info()[key] for key in counts} == counts
    queries = embedded(3, steps=4, width=4, seed=9)
    certain = "exact" if name == "euclidean" else "sequence"
    for direction, without in (("a2v", sounds), ("v2a", films)):
        missing = {clips.ids[number] for number in without}
        for retrieval in ("aggregation", "hybrid:12", certain):
            expected = [
                [hit for hit in of_query if hit[0] not in missing]
                for of_query in found(whole, queries, direction, retrieval)
            ]
            got = found(mixed, queries, direction, retrieval)
            tolerance = 1e-6 if stored == "float32" else 0.05  # other centres, other rounding
            for one, other in zip(got, expected, strict=True):
                assert len(one) == len(other) == 8
                if stored == "float32":
                    assert [id for id, _ in one] == [id for id, _ in other]
                np.testing.assert_allclose(
                    sorted(score for _, score in one),
                    sorted(score for _, score in other),
                    atol=tolerance,
                )
    before = [found(mixed, queries, way) for way in ("a2v", "v2a")] if name == "euclidean" else []
    mixed.delete([clips.ids[0], clips.ids[1]])
    mixed.compact()
    assert len(open_index(tmp_path / "mixed")) == 10 and mixed.verify() == 10
    gone = {clips.ids[0], clips.ids[1]}
    for way, old in zip(("a2v", "v2a"), before, strict=False):
        kept = [[hit for hit in of_query if hit[0] not in gone] for of_query in old]
        assert found(mixed, queries, way) == kept


def test_an_index_of_one_kind_answers_one_way(tmp_path):
    clips = alone(embedded(4), "audio")
    index = create(tmp_path / "i", identity="m")
    index.add(clips)
    queries = embedded(2, seed=5)
    assert found(index, queries, "a2v") == [[], []]
    assert [len(hits) for hits in found(index, queries, "v2a")] == [4, 4]
    with pytest.raises(InputError, match=r"no clip has a picture, which a2v is to find"):
        index_program.tuned(index, queries, "a2v", k=1)
    with pytest.raises(InputError, match=r"expected audio latents, or the steps"):
        index.add(replace(alone(embedded(2, prefix="film"), "visual"), partner=None))
    none = replace(clips, audio=None, audio_embeddings=None)
    with pytest.raises(InputError, match="with picture or sound"):
        index.add(replace(none, ids=[f"other {one}" for one in none.ids]))


def copied(path, target, kinds):
    """The packets of some streams in another file."""
    with av.open(str(path)) as source, av.open(str(target), "w") as out:
        streams = [stream for stream in source.streams if stream.type in kinds]
        made = {stream.index: out.add_stream_from_template(stream) for stream in streams}
        for packet in source.demux(streams):
            if packet.dts is not None:
                packet.stream = made[packet.stream.index]
                out.mux(packet)
    return target


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Whole films; the same, some silent and some heard only."""
    root = tmp_path_factory.mktemp("films")
    for name in ("whole", "mixed"):
        (root / name).mkdir()
    for number in range(6):
        path = film(root / "whole" / f"{number}.mkv", 2 + number % 2, seed=number)
        if number < 2:
            copied(path, root / "mixed" / f"{number}.mkv", {"video"})
        elif number < 4:
            copied(path, root / "mixed" / f"{number}.mka", {"audio"})
        else:
            copied(path, root / "mixed" / f"{number}.mkv", {"video", "audio"})
    (root / "mixed" / "notes.txt").write_text("no film")
    (root / "mixed" / "broken.wav").write_text("no sound")
    return root


@pytest.mark.parametrize("pre_resample", ["visual_to_audio", None])
def test_a_mixed_folder_is_indexed_and_ranked_as_whole_films(
    folders, tmp_path, capsys, pre_resample
):
    run = write_run(tmp_path / "run", pre_resample=pre_resample)
    for name in ("whole", "mixed"):
        words = ["build", str(tmp_path / name), "--model", str(run)]
        program.main([*words, "--videos", str(folders / name)])
    told = capsys.readouterr()
    assert "rejected broken.wav" in told.err
    whole, mixed = open_index(tmp_path / "whole"), open_index(tmp_path / "mixed")
    assert sorted(mixed.ids()) == ["0.mkv", "1.mkv", "2.mka", "3.mka", "4.mkv", "5.mkv"]
    counts = {"both": 2, "pictures alone": 2, "sounds alone": 2}
    assert {key: mixed.info()[key] for key in counts} == counts
    made_model = model.load(run)
    for direction, stream, gone in (("a2v", "audio", "23"), ("v2a", "visual", "01")):
        query = made_model.embed(folders / "whole" / "5.mkv", streams=[stream])
        expected = whole.search(query, direction, 10)[0]
        expected = [hit for hit in expected if hit.id[0] not in gone]
        got = mixed.search(query, direction, 10)[0]
        assert [hit.id[0] for hit in got] == [hit.id[0] for hit in expected]
        for one, other in zip(got, expected, strict=True):
            assert one.score == pytest.approx(other.score, abs=1e-5)
            assert (one.start, one.end) == (other.start, pytest.approx(other.end, abs=0.1))


def test_nothing_usable_is_an_error(folders, tmp_path):
    run = write_run(tmp_path / "run")
    (tmp_path / "films").mkdir()
    (tmp_path / "films" / "a.wav").write_text("no sound")
    words = ["build", str(tmp_path / "i"), "--model", str(run)]
    with pytest.raises(InputError, match="the index is empty"):
        program.main([*words, "--videos", str(tmp_path / "films")])
    assert not (tmp_path / "i").exists()  # whose options would bind the next attempt


def test_a_query_without_the_stream_that_asks_is_told_of_the_other(folders, tmp_path):
    run, index = str(write_run(tmp_path / "run")), str(tmp_path / "i")
    program.main(["build", index, "--model", run, "--videos", str(folders / "mixed")])
    for name, words, advice in (
        ("0.mkv", [], "no audio stream; --video asks by its picture"),
        ("2.mka", ["--video"], "no video stream; --sound asks by its sound"),
    ):
        with pytest.raises(InputError, match=advice):
            search.main([index, str(folders / "mixed" / name), "--model", run, *words])


def test_sounds_are_listed_where_no_picture_is_needed(folders):
    names = [clip.file for clip in manifest.list_clips(folders / "mixed").clips]
    assert names == ["0.mkv", "1.mkv", "4.mkv", "5.mkv"]
    options = manifest.ClipOptions(sounds=True)
    listing = manifest.list_clips(folders / "mixed", options)
    assert [clip.file for clip in listing.clips] == sorted([*names, "2.mka", "3.mka", "broken.wav"])
    assert listing.passed_over == {".txt": 1}
