"""The plan's arithmetic beside what XLA says of the compiled step, and beside hand counts."""

import dataclasses
import json
import math
import re
import time
from pathlib import Path
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from scav_jax.base.errors import InputError
from scav_jax.distances import DISTANCES, Distance
from scav_jax.distances.cost import PairCost
from scav_jax.encoders import Encoders, PatchEncoders
from scav_jax.features.clip import Clip
from scav_jax.objectives import Sequential
from scav_jax.objectives.equivariant import Equivariant
from scav_jax.objectives.objective import Work
from scav_jax.objectives.sequential import TITLES
from scav_jax.optimizer import make_optimizer
from scav_jax.plan import __main__ as program
from scav_jax.plan import costs, devices, estimate, memory, trial
from scav_jax.plan.compiled import memory_of
from scav_jax.sequences import AudioVisual, sequences
from scav_jax.train_step import init_params
from scav_jax.training.config import override
from scav_jax.training.config_files import load_file
from scav_jax.training.runs import build, example_batch

ROOT = Path(__file__).resolve().parents[1]
SMALL = {
    "width": 64,
    "visual_blocks": 1,
    "audio_blocks": 1,
    "visual_hidden": 96,
    "audio_hidden": 80,
    "heads": 4,
    "feedforward": 192,
    "pre_resample": "visual_to_audio",
}
MEMORY_TOLERANCE = 0.1
FLOPS_TOLERANCE = 0.05


def small(batch=32, visual=(24, 48), audio=(13, 64), microbatch=0, devices=1, **encoders):
    made = Encoders(**(SMALL | encoders))
    return costs.Workload(
        made, Sequential(), batch, visual, audio, microbatch=microbatch, devices=devices, batches=1
    )


def compiled_bytes(work):
    optimizer = make_optimizer(learning_rate=1e-3, warmup_steps=1, steps=9)
    return memory_of(trial.lowered_step(work, optimizer).compile())


ALIGNED = {"resample": "visual_to_audio"}
# One tower of the paper's proportions: nothing is run, so that sizes cost nothing here, and in
# small ones what is not planned for would show (a few megabytes of blocks in a cache).
TOWER = {
    **{"width": 512, "heads": 8, "feedforward": 2048, "visual_blocks": 3, "audio_blocks": 0},
    **{"visual_hidden": 512, "audio_hidden": 32},
}
BARE = {"visual_blocks": 0, "visual_hidden": 32, "dropout": 0.0}


def wide(batch, name="sequence", **changes):
    """A step of that tower on 62 x 62 steps."""
    streams = {"visual": (62, 64), "audio": (62, 64)}
    fields = {k: changes.pop(k) for k in ("microbatch", "devices") if k in changes}
    work = small(batch, **streams, **fields, **TOWER | changes)
    objective = Sequential(name=name, distance_options=ALIGNED)
    return dataclasses.replace(work, objective=objective, on_cpu=True)


def pictures(batch):
    """EquiAV's step with fewer blocks."""
    towers = PatchEncoders(visual_blocks=3, audio_blocks=3, precision="bfloat16", remat="blocks")
    shapes = {"visual": (1, 3 * 224**2), "audio": (64, 16 * 128)}
    return costs.Workload(
        towers, Equivariant(), batch, **shapes, feature_bytes=(1, 2), batches=1, on_cpu=True
    )


IN_BFLOAT16 = (
    pytest.mark.slow,
    pytest.mark.skipif(
        jax.__version_info__ < (0, 12),
        reason="XLA's CPU compiler of jax 0.10 widens what a loop keeps in bfloat16; cards do not",
    ),
)


@pytest.mark.skipif(jax.default_backend() != "cpu", reason="cells are planned for a CPU")
@pytest.mark.parametrize(
    "work",
    [
        wide(256),
        wide(256, remat="unrolled"),
        pytest.param(wide(256, precision="bfloat16"), marks=IN_BFLOAT16),
        pytest.param(wide(256, precision="bfloat16", remat="blocks"), marks=IN_BFLOAT16),
        pytest.param(wide(1024, microbatch=256), marks=pytest.mark.slow),
        wide(4096, microbatch=64, **BARE),
        wide(4096, microbatch=64, devices=2, **BARE),
        pytest.param(wide(8192, "aggregation", microbatch=64, **BARE), marks=pytest.mark.slow),
        pytest.param(pictures(128), marks=IN_BFLOAT16),
    ],
    ids=[
        *("all kept", "unrolled", "bfloat16", "bfloat16, blocks", "cached"),
        *("cached, SCAV's loss", "the same on 2 devices", "cached, CAV's loss", "EquiAV"),
    ],
)
def test_memory_is_what_xla_allocates(work):
    found, planned = compiled_bytes(work), memory.planned_memory(work)
    standing = planned.parameters + planned.optimizer + planned.features
    # Beside it: lengths, windows and three counters.
    assert found.arguments == pytest.approx(standing + work.batch * 24 / work.devices, rel=0.01)
    assert planned.total == pytest.approx(found.total, rel=MEMORY_TOLERANCE)


@pytest.mark.parametrize(
    "devices, batch, found",
    [
        *((1, 4096, 7355.7), (1, 16384, 27721.0), (2, 4096, 4931.9)),
        *((4, 16384, 12886.6), (8, 4096, 2710.7), (8, 16384, 9708.4)),
    ],
)
def test_memory_of_cards_is_planned(devices, batch, found):
    """As compiled for an H200 (`plan_memory.py --paper --card h200`): MiB, within 10 %."""
    work = costs.Workload(
        Encoders(pre_resample="visual_to_audio", precision="bfloat16"),
        Sequential(),
        batch,
        visual=(62, 768),
        audio=(62, 6144),
        microbatch=64 * devices,
        devices=devices,
        batches=1,
        feature_bytes=(2, 2),
    )
    planned = memory.planned_memory(work).total
    assert planned / 2**20 == pytest.approx(found, rel=0.1)


def test_blocks_of_the_loss_are_planned():
    """As compiled (`scripts/benchmarks/plan_memory.py`): MiB of the loss alone, within 10 %."""
    scav = (1024, 45.2), (2048, 178.4), (4096, 644.8), (8192, 1033.4), (16384, 3093.2)
    cav = (4096, 578.9), (16384, 2315.2)
    both = (4096, 646.5), (16384, 5143.3)
    for name, figures in zip(TITLES, (scav, cav, both), strict=True):
        for batch, found in figures:
            planned = Sequential(name=name).cost(Work(batch, batch, (6, 6), 16, 2**30)).memory
            assert planned / 2**20 == pytest.approx(found, rel=0.1)


THEIRS = Distance(
    *DISTANCES["euclidean"][:2],
    cost=lambda steps, width, resample="": PairCost(7.0 * steps[0] * len(resample), 11.0),
)


def theirs(visual, audio, *, width=1):
    return DISTANCES["euclidean"].pair(visual, audio)


def test_a_distance_says_what_its_pairs_cost():
    """By hand; one of a stranger's that says nothing is counted as the dearest of ours."""
    work, n, m = Work(10, 5, (25, 6), 16, 2**30), 25, 6
    dear = ("wasserstein", "sinkhorn", "dtw+static", "test_plan:theirs")
    cells = {"dtw": 10, "soft_dtw": 40, **dict.fromkeys(dear, 400)}
    plain = Sequential().cost(work)
    assert plain.distance == 100 * 6 * m * 16
    for name, each in cells.items():
        cost = Sequential(distance=name).cost(work)
        assert cost.distance == 100 * n * m * (6 * 16 + each)
        assert cost.memory - plain.memory == 8 * 4 * 50 * n * m
        bounded = Sequential(distance=name).cost(work._replace(memory_bytes=1000))
        assert bounded.memory - plain.memory == 1000
    by_default = Sequential(distance="test_plan:theirs", distance_options={"width": 3})
    assert by_default.cost(work).distance == 100 * n * m * (6 * 16 + 400)
    options = {"resample": "audio_to_visual"}
    assert Sequential(distance_options=options).cost(work).distance == 100 * 6 * n * 16
    cost = Sequential(distance="test_plan:THEIRS", distance_options=options).cost(work)
    assert (cost.distance, cost.memory - plain.memory) == (100 * 7 * n * 15, 50 * 11)


def lowered_flops(work, backward):
    """XLA's count for the towers alone, without dropout's random numbers."""
    widths = {"visual": work.visual[1], "audio": work.audio[1]}
    params = jax.eval_shape(
        lambda: init_params(work.encoders, work.objective, example_batch(widths), 0)["encoders"]
    )
    streams = [
        jax.eval_shape(lambda s=steps, w=width: sequences(jnp.zeros((work.batch, s, w))))
        for steps, width in (work.visual, work.audio)
    ]

    unrolled = work.encoders.clone(remat="unrolled")  # what is in a loop is counted once

    def total(params, batch):
        latents = unrolled.apply({"params": params}, batch)
        return sum(jnp.sum(stream.values) for stream in latents)

    function = jax.value_and_grad(total) if backward else total
    return jax.jit(function).lower(params, AudioVisual(*streams)).cost_analysis()["flops"]


@pytest.mark.parametrize(
    "work",
    [
        costs.Workload(Encoders(pre_resample="visual_to_audio"), Sequential(), 4),
        costs.Workload(Encoders(visual_blocks=2), Sequential(), 3, (100, 512), (31, 1024)),
    ],
    ids=["paper", "post"],
)
def test_flops_of_the_towers_are_those_of_xla(work):
    planned = costs.flops(work)
    forward = lowered_flops(work, False)
    assert planned.towers_forward == pytest.approx(forward, rel=FLOPS_TOLERANCE)
    both = planned.towers_forward + planned.towers_backward
    assert both == pytest.approx(lowered_flops(work, True), rel=FLOPS_TOLERANCE)


def test_the_paper_s_model_has_the_parameters_that_the_readme_says():
    work = costs.Workload(Encoders(pre_resample="visual_to_audio"), Sequential(), 256)
    assert costs.parameter_count(work) / 1e6 == pytest.approx(39.3, abs=0.05)


def test_caching_and_remat_add_their_forward_passes_and_save_memory():
    work = small(batch=256, visual_blocks=4)
    cached, remat = (
        dataclasses.replace(work, microbatch=32),
        dataclasses.replace(work, encoders=work.encoders.clone(remat="blocks")),
    )
    count = costs.flops(work)
    assert costs.flops(cached).recomputed == count.towers_forward
    assert 0.5 * count.towers_forward < costs.flops(remat).recomputed < count.towers_forward
    of_cached, of_plain, of_remat = map(memory.planned_memory, (cached, work, remat))
    assert of_cached.activations == pytest.approx(of_plain.activations / 8)
    assert of_remat.activations < 0.6 * of_plain.activations
    # A rematerialised tower keeps of every block its input only.
    plain, less = (memory.kept_bytes(one.encoders, 13, 48, "visual") for one in (work, remat))
    assert plain - less == 4 * 4 * 13 * (5 * 64 + 192 + 4 * 13)


def test_a_step_is_planned_for_its_fullest_moment():
    """Where a batch is large the loss is, and nothing of the towers is there then."""
    step = wide(16_384, microbatch=64)
    fullest, few = memory.planned_memory(step), memory.planned_memory(wide(64, microbatch=64))
    assert fullest.activations == 0 and few.activations > 0
    latents, matrix = 4 * 2 * 16_384 * 62 * 512, 4 * 16_384**2
    assert fullest.latents == 2 * latents  # and their gradient
    # One stream once more, in the order of grids; blocks of 4 MiB on two grids; tiles of 64 clips.
    clip = 4 * 62 * 512
    assert fullest.loss == 2 * matrix + latents / 2 + 4 * (2 * 32 + 64) * clip
    on_card = memory.planned_memory(dataclasses.replace(step, on_cpu=False))
    assert on_card.loss == 3 * matrix + latents / 2 + (1.5 * 2 * 2048 + 4 * 64) * clip
    cav = memory.planned_memory(wide(16_384, "aggregation", microbatch=64))
    assert cav.latents == latents  # means over time: their gradient takes their place


@pytest.mark.parametrize("devices", [1, 8])
def test_the_largest_batch_fits_and_the_next_does_not(devices):
    work = dataclasses.replace(small(), devices=devices, batch=devices)
    limit = 40e6
    largest = memory.largest_batch(work, limit)
    assert largest % devices == 0 and largest > 0
    assert memory.planned_memory(dataclasses.replace(work, batch=largest)).total <= limit
    assert memory.planned_memory(dataclasses.replace(work, batch=largest + devices)).total > limit
    assert memory.largest_batch(work, 1e6) == 0  # the state alone is larger
    begin = time.process_time()
    assert memory.largest_batch(work, 2**50) > 10**6  # 1024TiB
    assert time.process_time() - begin < 4  # it was minutes: every number was tried as a divisor


def test_largest_batches_grow_with_devices_and_with_caching():
    work = small()
    alone = memory.largest_batch(work, 40e6)
    assert memory.largest_batch(dataclasses.replace(work, devices=8), 40e6) > 4 * alone
    assert memory.largest_batch(dataclasses.replace(work, microbatch=16), 40e6) > 2 * alone


def test_a_step_takes_its_flops_at_the_peak_s_share():
    device = devices.Device("mine", 1e9, 1e12, 4e12, 8e12)
    work = small(batch=64)
    count = costs.flops(work)
    exact = count.distance + count.loss
    assert estimate.step_seconds(work, device, 0.5) == pytest.approx(count.total / 0.5e12)
    half = dataclasses.replace(work, encoders=work.encoders.clone(precision="bfloat16"))
    expected = ((count.total - exact) / 8e12 + exact / 1e12) / 0.5
    assert estimate.step_seconds(half, device, 0.5) == pytest.approx(expected)
    four = dataclasses.replace(work, devices=4)
    assert estimate.step_seconds(four, device, 0.5) == pytest.approx(count.total / 2e12)
    with pytest.raises(InputError, match=r"v100 has no bfloat16; .* --device"):
        estimate.step_seconds(half, devices.DEVICES["v100"], 0.4)


@pytest.mark.parametrize(
    "text, size",
    [("32GiB", 2**35), ("16 GB", 16e9), ("512MiB", 2**29), ("1.5T", 1.5e12)],
)
def test_sizes(text, size):
    assert estimate.bytes_of(text) == size


@pytest.mark.parametrize(
    "text",
    ["", "GiB", "-1GB", "32 GiBs", "1.2.3G", ".", "32", "0GiB", "٣GB", f"{10**400}GB", "1025TiB"],
)
def test_no_sizes(text):
    with pytest.raises(InputError, match=r"--memory: expected a size such as 32GiB"):
        estimate.bytes_of(text)


def words(*more):
    return ["--config", str(ROOT / "configs/vggsound.py"), *more]


def test_the_program_plans_the_paper_s_run_without_data(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "plan.json"
    assert program.main(words("--device", "h200", "--devices", "8", "--json", str(path))) == 0
    shown, found = capsys.readouterr().out, json.loads(path.read_text())
    assert "39.3 M" in shown and "the paper's VGGSound is assumed" in shown
    assert "GiB on each device when it holds most, fits in" in shown  # what stands below, too
    assert "on 8 device(s) (h200), float32" in shown and "175 GB of training clips" in shown
    assert "at 52% of the peak (measured with an earlier step" in shown and "not since)" in shown
    assert found["batch"] == 256 and found["devices"] == 8
    assert found["features"]["clip_bytes"] == 2 * (250 * 768 + 62 * 6144)
    rate = found["steps_per_s"]
    assert found["input"]["bytes_per_s"] == pytest.approx(256 * rate * 1_145_856)
    assert found["hours"] == pytest.approx(250_000 / rate / 3600)
    assert found["input"]["disk_bytes"] == pytest.approx(153_000 * 1_145_856)
    names = ("plain", "remat", "microbatch 256", "microbatch 256, remat")
    plain, remat, cached, both = (found["ways"][name] for name in names)
    assert plain["largest_batch"] < cached["largest_batch"] <= both["largest_batch"]
    assert plain["flops"] < remat["flops"] < both["flops"]


def test_memory_and_peak_can_be_given(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "plan.json"
    program.main(words("--memory", "1GiB", "--peak-tflops", "2", "--json", str(path)))
    found = json.loads(path.read_text())
    shown = capsys.readouterr().out
    assert "DOES NOT FIT in 1.00 GiB" in shown and "at 40% of the peak (assumed: " in shown
    assert found["available_bytes"] == 2**30
    # JAX takes three quarters of a card by itself.
    step = found["memory_bytes"]["total"]
    card, tpu = (devices.DEVICES[name].share for name in ("v100", "tpu-v4"))
    assert estimate._fits(step, step, card * step).endswith(", with XLA_CLIENT_MEM_FRACTION=.95")
    for available, share in ((step, tpu), (1.4 * step, card)):
        assert "MEM_FRACTION" not in estimate._fits(step, available, share * available)
    assert found["steps_per_s"] == pytest.approx(0.4 * 2e12 / found["flops"]["total"])


@pytest.mark.parametrize(
    "more, message",
    [
        (("--device", "v10"), "Did you mean 'v100'"),
        (("--memory", ""), "--memory: expected a size"),
        (("--peak-tflops", "0"), r"--peak-tflops: expected 0.001 to 1e\+06, got 0"),
        (("--peak-tflops", "1e-300"), r"--peak-tflops: expected 0.001 to 1e\+06, got 1e-300"),
        (("--efficiency", "1.5"), "--efficiency: expected 1e-06 to 1, got 1.5"),
        (("--efficiency", "1e-320"), "--efficiency: expected 1e-06 to 1, got 1e-320"),
        (("--devices", "3"), "data.batch_size: .* of the 3 devices, got 256; use 255 or 258"),
        (("--config.train.microbatch=24",), "train.microbatch: .* 256 .* got 24; use 16 or 32"),
        (("--config.train.microbatchh=3",), "microbatch"),
    ],
)
def test_mistakes_are_one_line(more, message):
    with pytest.raises(InputError, match=message) as caught:
        program.main(words(*more))
    assert "\n" not in str(caught.value)


def test_a_data_set_on_disk_is_read_instead(tmp_path):
    from scav_jax.features import store

    def clip(number, n, m):
        return Clip(
            f"{number}", np.ones((n, 7), np.float16), (0.0, 2.0), np.ones((m, 5), np.float16),
            (0.0, 2.0), "a.mp4", 0.0, 2.0,
        )  # fmt: skip

    made = [("train", clip(number, 10 + number % 3, 4)) for number in range(9)]
    store.write(made, tmp_path / "data", fingerprint={}, videos="", rejected=[])
    document = load_file(str(ROOT / "configs/demo.py"))
    changes = {"data.path": str(tmp_path / "data"), "data.batch_size": 4}
    stored = estimate.stored_features(override(document, changes))
    assert stored.clips == 9
    assert stored.clip_bytes == 2 * (11 * 7 + 4 * 5)
    assert (stored.visual, stored.audio) == ((12, 7), (4, 5))
    assert stored.source == f"{tmp_path / 'data'}, 9 clips"
    larger = estimate.stored_features(override(document, changes | {"data.batch_size": 10}))
    assert "9 clips, fewer than a batch, which `scav train` refuses" in larger.source


@pytest.fixture(scope="module")
def compiled_step():
    """-> (a small step, its optimizer, compiled)."""
    work, optimizer = (
        small(batch=8, dropout=0.0, visual_blocks=0, audio_blocks=0),
        make_optimizer(learning_rate=1e-3, warmup_steps=1, steps=9),
    )
    return work, optimizer, trial.lowered_step(work, optimizer).compile()


def test_what_xla_says_is_shown_beside_it(compiled_step):
    work, _, step = compiled_step
    found = trial.compared(step, work)
    assert found["memory_bytes"]["total"] > 0 and found["platform"] == jax.devices()[0].platform
    assert math.isclose(found["flops"], found["planned_flops"], rel_tol=0.4)  # narrow towers


def test_the_step_is_run(compiled_step):
    work, optimizer, step = compiled_step
    found = trial.run(step, work, optimizer, repeats=2)
    assert found["step_s"] > 0
    assert found["flops_per_s"] == pytest.approx(costs.flops(work).total / found["step_s"])
    cached = dataclasses.replace(work, microbatch=4)
    assert costs.flops(cached).recomputed > 0
    found = trial.run(step, cached, optimizer, repeats=1)  # what is computed twice is no progress
    assert found["flops_per_s"] == pytest.approx(costs.flops(work).total / found["step_s"])


def test_a_slow_step_is_run_once(compiled_step):
    work, optimizer, step = compiled_step
    for limits, runs in (((9, 0.0), 2), ((3, 1e9), 4)):  # the first one is not counted
        counted = mock.MagicMock(spec=jax.stages.Compiled, side_effect=step)
        trial.run(counted, work, optimizer, *limits)
        assert counted.call_count == runs


@pytest.mark.parametrize("answer", [None, {}, {"flops": -1.0}, NotImplementedError()])
def test_what_a_backend_does_not_count_is_none(answer, compiled_step):
    silent = mock.MagicMock(spec=jax.stages.Compiled)
    silent.memory_analysis.return_value = None
    silent.cost_analysis.side_effect = [answer]
    found = trial.compared(silent, compiled_step[0])
    assert found["flops"] is None and found["memory_bytes"] is None
    assert "memory unknown" in estimate._xla_in_words(found)


def test_a_large_batch_has_the_same_clips_again():
    work = small(batch=2 * trial.DRAWN + 1, visual=(3, 4), audio=(2, 5))
    found = trial.random_batch(work)
    for stream in found.features:
        assert len(stream.values) == len(stream.lengths) == work.batch
        np.testing.assert_array_equal(stream.values[0], stream.values[trial.DRAWN])
        np.testing.assert_array_equal(stream.values[0], stream.values[-1])
        assert not np.array_equal(stream.values[0], stream.values[1])


@pytest.fixture
def for_a_card(monkeypatch):
    """Distances are traced in the forms that they have on a GPU; nothing traced is kept."""
    jax.clear_caches()
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    yield
    jax.clear_caches()


@pytest.mark.usefixtures("for_a_card")
def test_on_a_v100_nothing_needs_bfloat16_or_triton():
    """A V100 has neither: what JAX hands to XLA for CUDA holds no such type and no kernel call."""
    encoders, objective = build(load_file(str(ROOT / "configs/vggsound.py")))
    assert encoders.precision == "float32"
    optimizer = make_optimizer(learning_rate=1e-3, warmup_steps=1, steps=9)

    def text(microbatch, batch=8, **towers):
        work = dataclasses.replace(small(batch=batch, microbatch=microbatch), objective=objective)
        work = dataclasses.replace(work, encoders=encoders.clone(**(SMALL | towers)))
        return trial.lowered_step(work, optimizer, platforms=("cuda",)).as_text()

    bare = {"visual_blocks": 0, "audio_blocks": 0}  # as in the plain step
    for shown in (text(0, audio_blocks=0), text(4, batch=32, **bare)):
        assert "bf16" not in shown
        assert "triton" not in shown.lower() and "mosaic" not in shown.lower()
        assert set(re.findall(r"custom_call @(\w+)", shown)) <= {"Sharding"}
    assert "bf16" in text(0, precision="bfloat16", **bare)


@pytest.mark.slow
def test_the_program_runs_the_step_and_says_how_fast(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "plan.json"
    tower = {"width": 16, "heads": 2, "visual_blocks": 0, "audio_blocks": 0, "feedforward": 16}
    tower |= {"visual_hidden": 16, "audio_hidden": 16}
    shrunk = [f"--config.encoders.{name}={value}" for name, value in tower.items()]
    shrunk += ["--config.data.batch_size=4"]
    assert program.main(words("--run", "--peak-tflops", "0.1", "--json", str(path), *shrunk)) == 0
    found, shown = json.loads(path.read_text()), capsys.readouterr().out
    share = found["run"]["flops_per_s"] / 1e11
    assert f"{share:.1%} of the peak of v100" in shown and "XLA (" in shown
    with pytest.raises(InputError, match=f"at most the {len(jax.devices())} device"):
        program.main(words("--compile", "--devices", "16", "--config.data.batch_size=16"))
