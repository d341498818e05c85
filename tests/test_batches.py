"""The pipeline's promises: which clips, in which order, at which shapes, and exact resuming."""

import itertools
import math

import jax.numpy as jnp
import numpy as np
import pytest

from scav_jax import sequences
from scav_jax.base.errors import InputError
from scav_jax.features import batches, store
from scav_jax.features.clip import Clip, check_clip, overlap_window, shared_span
from scav_jax.features.options import ALIGNMENTS

VISUAL_WIDTH, AUDIO_WIDTH = 5, 3


class FakeSplit:
    """What `features.store.Split` promises, in memory; feature 0 of every step is the index."""

    def __init__(self, visual_lengths, audio_lengths, visual_spans=None, audio_spans=None):
        self.split, self.data = "train", "fake"
        self.visual_lengths = np.asarray(visual_lengths, np.int32)
        self.audio_lengths = np.asarray(audio_lengths, np.int32)
        n = len(self.visual_lengths)
        self.ids = [f"clip{index}" for index in range(n)]
        whole = np.tile(np.array([0.0, 4.0]), (n, 1))
        self.visual_spans = whole if visual_spans is None else np.asarray(visual_spans)
        self.audio_spans = whole if audio_spans is None else np.asarray(audio_spans)
        self.visual_width, self.audio_width = VISUAL_WIDTH, AUDIO_WIDTH
        self.fingerprint = {}
        self.broken, self.read = None, []

    def __len__(self):
        return len(self.ids)

    def __getitem__(self, index):
        rng = np.random.default_rng(index)
        visual = rng.normal(size=(self.visual_lengths[index], VISUAL_WIDTH)).astype(np.float16)
        audio = rng.normal(size=(self.audio_lengths[index], AUDIO_WIDTH)).astype(np.float16)
        visual[:, 0] = audio[:, 0] = index
        if index == self.broken:
            visual[1, 2] = np.nan
        clip = Clip(
            id=self.ids[index],
            visual=visual,
            visual_span=tuple(self.visual_spans[index]),
            audio=audio,
            audio_span=tuple(self.audio_spans[index]),
            source="video.mp4",
            start=0.0,
            end=4.0,
        )
        check_clip(clip)
        self.read.append(index)
        return clip


def ragged_split(n=37, seed=0):
    """Lengths, rates and spans that all differ."""
    rng = np.random.default_rng(seed)
    visual_lengths = rng.integers(9, 60, n)
    audio_lengths = rng.integers(4, 15, n)
    begins = rng.uniform(0.0, 0.5, (n, 2))
    extents = rng.uniform(2.0, 6.0, (n, 2))
    return FakeSplit(
        visual_lengths,
        audio_lengths,
        np.stack([begins[:, 0], begins[:, 0] + extents[:, 0]], axis=1),
        np.stack([begins[:, 1], begins[:, 1] + extents[:, 1]], axis=1),
    )


def first(iterable, count):
    return list(itertools.islice(iter(iterable), count))


def clips_of(batch):
    """The clips in a batch, read from the features themselves; both streams must agree."""
    visual, audio = (stream.values[:, 0, 0].astype(int).tolist() for stream in batch.features)
    assert visual == audio == batch.numbers.tolist()
    return visual


def assert_same(batch, other):
    np.testing.assert_array_equal(batch.numbers, other.numbers)
    np.testing.assert_array_equal(batch.seconds, other.seconds)
    for stream, expected in zip(batch.features, other.features, strict=True):
        for name in ("values", "lengths", "windows"):
            np.testing.assert_array_equal(getattr(stream, name), getattr(expected, name))


@pytest.mark.parametrize("read_threads", [0, 2])
def test_an_epoch_has_every_clip_once_but_the_dropped(read_threads):
    split = ragged_split(37)
    dataset = batches.training_batches(split, batch_size=6, seed=1, read_threads=read_threads)
    drawn = [clips_of(batch) for batch in first(dataset, 12)]
    epochs = [list(itertools.chain(*drawn[:6])), list(itertools.chain(*drawn[6:]))]
    for epoch in epochs:
        assert len(epoch) == len(set(epoch)) == 36
    assert epochs[0] != epochs[1]
    assert [set(batch) for batch in drawn[:6]] != [set(batch) for batch in drawn[6:]]


def test_every_clip_is_drawn_equally_often_in_the_long_run():
    """Rare lengths and the dropped clip rotate: none is left out by its length."""
    n, epochs = 25, 600
    lengths = np.array([[10, 4]] * 20 + [[20, 5]] * 3 + [[30, 6]] * 2)
    plan = batches.BatchPlan(lengths, batch_size=8, seed=0, buckets=3)
    counts = np.zeros(n)
    for epoch in range(epochs):
        for indices, _ in plan.epoch(epoch):
            counts[indices] += 1
    assert plan.dropped_per_epoch == 1
    expected = epochs * 24 / 25
    np.testing.assert_allclose(counts, expected, atol=5 * math.sqrt(epochs / 25))


def test_same_seed_same_batches_and_another_seed_others():
    split = ragged_split(20)
    dataset = [
        first(batches.training_batches(split, batch_size=4, seed=seed, read_threads=threads), 7)
        for seed, threads in [(3, 0), (3, 2), (4, 2)]
    ]
    for batch, same in zip(dataset[0], dataset[1], strict=True):
        assert_same(batch, same)
    assert [clips_of(b) for b in dataset[0]] != [clips_of(b) for b in dataset[2]]


@pytest.mark.parametrize("process_count", [2, 3, 6])
def test_processes_together_have_the_rows_of_one(process_count):
    split = ragged_split(31)
    options = {"batch_size": 6, "seed": 5, "read_threads": 1}
    alone = first(batches.training_batches(split, **options), 9)
    shares = [
        first(
            batches.training_batches(split, process=(index, process_count), **options),
            9,
        )
        for index in range(process_count)
    ]
    for number, batch in enumerate(alone):
        for stream in (0, 1):
            for name in ("values", "lengths", "windows"):
                rows = [getattr(share[number].features[stream], name) for share in shares]
                assert all(len(row) == 6 // process_count for row in rows)
                np.testing.assert_array_equal(
                    np.concatenate(rows), getattr(batch.features[stream], name)
                )


def test_a_process_reads_only_its_own_clips():
    split = ragged_split(24)
    dataset = batches.training_batches(split, batch_size=6, seed=0, process=(1, 3), read_threads=0)
    first(dataset, 2)
    assert len(split.read) == 2 * 2


@pytest.mark.parametrize("stop", [0, 1, 4, 5, 6, 13])
@pytest.mark.parametrize("threads", [(0, 2), (2, 0), (2, 2)])
def test_a_restored_iterator_continues_exactly(stop, threads):
    split = ragged_split(22)  # 5 batches an epoch
    before, after = (
        batches.training_batches(split, batch_size=4, seed=9, read_threads=n) for n in threads
    )
    iterator = iter(before)
    first(iterator, stop)
    state = iterator.get_state()
    expected = first(iterator, 7)
    assert state == {"next_index": stop}
    resumed = iter(after)
    resumed.set_state(state)
    for batch, same in zip(first(resumed, 7), expected, strict=True):
        assert_same(batch, same)
    assert resumed.get_state() == {"next_index": stop + 7}


def test_an_iterator_can_be_set_back_after_it_has_read_ahead():
    split = ragged_split(22)
    iterator = iter(batches.training_batches(split, batch_size=4, seed=9, read_threads=2))
    expected = first(iterator, 8)
    iterator.set_state({"next_index": 3})
    for batch, same in zip(first(iterator, 5), expected[3:], strict=True):
        assert_same(batch, same)


def test_few_static_shapes_that_hold_every_clip():
    split = ragged_split(97)
    plan = batches.plan_training(split, batch_size=7, seed=2, buckets=3)
    assert 1 < len(plan.paddings) <= 3
    for small, large in itertools.pairwise(plan.paddings):
        assert small.visual_steps <= large.visual_steps and small.audio_steps <= large.audio_steps
    dataset = batches.training_batches(split, batch_size=7, seed=2, buckets=3, read_threads=1)
    shapes = set()
    for (indices, padding), batch in zip(plan.epoch(0), first(dataset, 13), strict=True):
        assert clips_of(batch) == indices.tolist()
        assert batch.features.visual.values.shape == (7, padding.visual_steps, VISUAL_WIDTH)
        assert batch.features.audio.values.shape == (7, padding.audio_steps, AUDIO_WIDTH)
        assert batch.features.visual.lengths.max() <= padding.visual_steps
        assert batch.features.audio.lengths.max() <= padding.audio_steps
        shapes.add(padding)
    assert shapes == set(plan.paddings)


def test_clips_of_a_rare_length_join_the_next_larger_shape():
    """3 and 2 clips of two shapes cannot fill a batch of 4 alone: all are drawn all the same."""
    lengths = np.array([[10, 4]] * 3 + [[20, 5]] * 2 + [[30, 6]] * 7)
    plan = batches.BatchPlan(lengths, batch_size=4, seed=0, buckets=12)
    assert plan.paddings == [(10, 4), (20, 5), (30, 6)]
    for epoch in range(20):
        drawn = plan.epoch(epoch)
        assert sorted(np.concatenate([indices for indices, _ in drawn])) == list(range(12))
        assert all((lengths[indices] <= padding).all() for indices, padding in drawn)


def waste(plan, split):
    """The share of an epoch's steps, both streams together, that are padding."""
    lengths = batches.trimmed_lengths(split)
    real = sum(lengths[indices].sum() for indices, _ in plan.epoch(0))
    return 1 - real / sum(len(indices) * sum(padding) for indices, padding in plan.epoch(0))


def test_one_length_is_one_shape_without_waste():
    split = FakeSplit([9] * 20, [4] * 20)
    plan = batches.plan_training(split, batch_size=5, seed=0)
    assert plan.paddings == [(9, 4)] and waste(plan, split) == 0.0


def test_buckets_save_padding():
    split = ragged_split(400)
    one, four = (
        waste(batches.plan_training(split, batch_size=8, seed=0, buckets=n), split) for n in (1, 4)
    )
    lengths = batches.trimmed_lengths(split)
    plan = batches.plan_training(split, batch_size=8, seed=0, buckets=1)
    padded = np.asarray(plan.paddings[0]).sum() * 400
    assert one == pytest.approx(1 - lengths.sum() / padded)
    assert four < 0.75 * one


def test_batches_of_all_shapes_are_mixed_in_an_epoch():
    lengths = np.array([[10, 4]] * 40 + [[30, 6]] * 40)
    plan = batches.BatchPlan(lengths, batch_size=4, seed=0, buckets=2)
    order = [padding.visual_steps for _, padding in plan.epoch(0)]
    assert order != sorted(order) and order != sorted(order, reverse=True)


@pytest.mark.parametrize("align", ["time", "index"])
def test_planned_lengths_are_what_trim_keeps(align):
    split = ragged_split(300, seed=4)
    planned = batches.trimmed_lengths(split, align)
    for index in range(len(split)):
        visual, _, audio, _ = batches.trim(split[index], align)
        assert planned[index].tolist() == [len(visual), len(audio)]


def timed_clip(n, m, visual_span, audio_span):
    """A clip whose feature at a step is the time of the step's centre, in float64 seconds."""

    def centres(steps, span):
        edges = np.linspace(*span, steps + 1)
        return ((edges[1:] + edges[:-1]) / 2)[:, None]

    return Clip(
        "timed", centres(n, visual_span), visual_span, centres(m, audio_span), audio_span,
        "video.mp4", 0.0, 10.0,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("n", "m", "visual_span", "audio_span"),
    [
        (100, 24, (0.0, 4.0), (0.0, 3.84)),
        (298, 62, (0.0, 10.0), (0.0, 9.92)),
        (97, 23, (0.13, 4.01), (0.0, 3.68)),
        (31, 62, (0.4, 9.7), (0.0, 9.92)),
        (7, 40, (0.0, 9.0), (3.1, 4.9)),
    ],
)
def test_windows_lie_on_each_other_in_time(n, m, visual_span, audio_span):
    clip = timed_clip(n, m, visual_span, audio_span)
    visual, visual_window, audio, audio_window = batches.trim(clip)
    shared = (max(visual_span[0], audio_span[0]), min(visual_span[1], audio_span[1]))
    for kept, stored, span, window in [
        (visual, clip.visual, visual_span, visual_window),
        (audio, clip.audio, audio_span, audio_window),
    ]:
        inside = [t for t in stored[:, 0] if shared[0] - 1e-3 < t < shared[1] + 1e-3]
        np.testing.assert_array_equal(kept[:, 0], inside)
        step_s = (span[1] - span[0]) / len(stored)
        first_edge = kept[0, 0] - step_s / 2
        assert first_edge + window[0] * step_s == pytest.approx(shared[0], abs=1e-9)
        assert first_edge + sum(window) * step_s == pytest.approx(shared[1], abs=1e-9)


def test_features_resampled_by_time_are_read_at_their_own_time():
    clip = timed_clip(100, 24, (0.0, 4.0), (0.0, 3.84))
    read = {}
    for align in ALIGNMENTS:
        visual, visual_window, audio, audio_window = batches.trim(clip, align)
        streams = [
            sequences.sequences(
                jnp.asarray(values, jnp.float32),
                jnp.int32(len(values)),
                jnp.asarray(window, jnp.float32),
            )
            for values, window in [(visual, visual_window), (audio, audio_window)]
        ]
        read[align] = sequences.resample_like(*streams).values[:, 0]
    np.testing.assert_allclose(read["time"], clip.audio[:, 0], atol=2e-6)
    assert np.abs(read["index"] - clip.audio[:, 0]).max() > 0.1  # stretched: up to 160 ms late


def test_index_alignment_keeps_whole_streams():
    clip = timed_clip(50, 12, (0.0, 4.0), (1.0, 3.0))
    visual, visual_window, audio, audio_window = batches.trim(clip, "index")
    np.testing.assert_array_equal(visual, clip.visual)
    np.testing.assert_array_equal(audio, clip.audio)
    assert visual_window == (0.0, 50.0) and audio_window == (0.0, 12.0)


def test_content_of_a_batch_is_the_clips_and_zeros():
    split = ragged_split(11)
    batch = batches.load_batch(split, np.array([4, 9, 2]), batches.Padding(70, 20)).features
    for row, index in enumerate([4, 9, 2]):
        clip = split[index]
        shared = shared_span(clip.visual_span, clip.audio_span)
        for stream, stored, span in [
            (batch.visual, clip.visual, clip.visual_span),
            (batch.audio, clip.audio, clip.audio_span),
        ]:
            steps, window = overlap_window(span, len(stored), shared)
            length = steps.stop - steps.start
            assert stream.lengths[row] == length
            np.testing.assert_array_equal(stream.values[row, :length], stored[steps])
            assert not stream.values[row, length:].any()
            np.testing.assert_allclose(stream.windows[row], window, rtol=1e-6)
    for stream in batch:
        assert stream.values.dtype == stream.windows.dtype == np.float32
        assert stream.lengths.dtype == np.int32


def test_every_float16_becomes_its_float32():
    every = np.arange(2**16, dtype=np.uint16).view(np.float16).reshape(256, 256)
    finite = every[np.isfinite(every).all(axis=1)]
    assert finite.size == 2 * 2**10 * 31  # every sign and mantissa, every exponent but the last
    out = np.full(finite.shape, 7.0, np.float32)
    batches.widen(finite, out)
    np.testing.assert_array_equal(out.view(np.int32), finite.astype(np.float32).view(np.int32))
    out = np.empty((1, 3), np.float32)
    for values in ([np.nan, 1.0, -2.0], [np.inf, -np.inf, 0.5]):
        batches.widen(np.array([values], np.float16), out)
        np.testing.assert_array_equal(out, [values])
    batches.widen(np.array([[0.1, 1e-30, 3e38]], np.float32), out)
    np.testing.assert_array_equal(out, np.array([[0.1, 1e-30, 3e38]], np.float32))


@pytest.mark.parametrize("batch_size", [1, 5, 8, 29, 100])
def test_evaluation_has_every_clip_once_in_order_with_a_smaller_last_batch(batch_size):
    split = ragged_split(29)
    seen, shapes = [], set()
    for batch in batches.evaluation_batches(split, batch_size=batch_size, buckets=3):
        indices = batch.numbers
        assert clips_of(batch) == indices.tolist()
        assert len(batch.features.visual.lengths) == len(indices) == min(batch_size, 29 - len(seen))
        seen += indices.tolist()
        shapes.add(tuple(stream.values.shape[1] for stream in batch.features))
    assert seen == list(range(29))
    assert len(shapes) <= 3


def test_a_broken_clip_is_named_by_the_iterator_and_the_others_are_read():
    split = FakeSplit([9] * 12, [4] * 12)
    split.broken = 7
    for threads in (0, 2):
        dataset = batches.training_batches(split, batch_size=3, seed=0, read_threads=threads)
        with pytest.raises(InputError, match=r"'clip7'.*visual.*step 1 of 9.*NaN"):
            first(dataset, 4)
    with pytest.raises(InputError, match="'clip7'"):
        list(batches.evaluation_batches(split, batch_size=5))


def test_a_clip_longer_than_listed_is_an_error_that_names_it():
    split = FakeSplit([9] * 6, [4] * 6)
    plan = batches.plan_training(split, batch_size=3, seed=0)
    split.visual_lengths[2] = 12
    with pytest.raises(InputError, match=r"'clip2': visual .*at most 9 steps.*got 12"):
        batches.load_batch(split, np.arange(6), plan.paddings[0])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 13}, "data.batch_size: expected at most the 12 clips.* got 13"),
        ({"batch_size": 1}, "data.batch_size: expected at least 2, got 1; without other clips"),
        (
            {"batch_size": 10, "process": (0, 4)},
            "data.batch_size: expected a multiple of the 4 processes, got 10; use 8 or 12",
        ),
        (
            {"batch_size": 11, "process": (0, 6)},
            "of the 6 processes, got 11; use 6 or 12",
        ),
        ({"batch_size": 12, "process": (0, 5)}, "5 processes, got 12; use 10$"),
        ({"batch_size": 4, "process": (0, 20)}, "use fewer processes"),
        ({"batch_size": 4, "align": "tiem"}, "expected one of time, index, got 'tiem'.*'time'"),
        ({"batch_size": 4, "buckets": 0}, "data.buckets: expected at least 1, got 0; 4 is"),
        ({"batch_size": 4, "dtype": "float64"}, "data.features: expected one of float32, float16"),
        ({"batch_size": 4, "read_threads": -1}, "data.read_threads: expected at least 0, got -1"),
        ({"batch_size": 4, "seed": -1}, "seed: expected 0 or more, got -1"),
    ],
)
def test_what_cannot_be_batched_is_one_line(options, message):
    split = FakeSplit([9] * 12, [4] * 12)
    with pytest.raises(InputError, match=message):
        batches.training_batches(split, **({"seed": 0} | options))


def test_an_empty_split_is_an_error():
    split = FakeSplit(np.zeros(0), np.zeros(0))
    with pytest.raises(InputError, match="empty"):
        batches.training_batches(split, batch_size=4, seed=0)
    with pytest.raises(InputError, match="'train' is empty"):
        batches.evaluation_batches(split, batch_size=4)


def test_batches_of_a_data_set_on_disk(tmp_path):
    memory = ragged_split(14)
    clips = [("train", memory[index]) for index in range(14)]
    store.write(clips, tmp_path / "data", fingerprint={"rate_hz": 1}, videos="", rejected=[])
    disk = store.read(tmp_path / "data", "train")
    for align in ALIGNMENTS:
        options = {"batch_size": 4, "seed": 3, "align": align, "buckets": 2}
        stored = first(batches.training_batches(disk, **options), 5)
        for batch, same in zip(stored, batches.training_batches(memory, **options), strict=False):
            for stream, expected in zip(batch.features, same.features, strict=True):
                np.testing.assert_array_equal(stream.values, expected.values)
                np.testing.assert_array_equal(stream.lengths, expected.lengths)
                np.testing.assert_allclose(stream.windows, expected.windows, rtol=1e-5, atol=1e-5)
    seen = [clips_of(batch) for batch in batches.evaluation_batches(disk, batch_size=5)]
    assert list(itertools.chain(*seen)) == list(range(14))
