"""Rows of accelerator.py: the training step of the paper's model, beside the plan and the card."""

import functools
import time
from pathlib import Path

import jax
import jax.numpy as jnp
from timing import median_seconds

from scav_jax.encoders.precision import MATMUL_PRECISIONS
from scav_jax.plan import estimate, trial
from scav_jax.plan.devices import DEVICES, efficiency_of
from scav_jax.training import config_files
from scav_jax.training.setup import optimizer_of

CONFIG = Path(__file__).resolve().parents[2] / "configs" / "vggsound.py"
GIB = 2**30
WIDTHS, QUICK_WIDTHS = (768, 6144), (16, 24)  # of the features: CLIP's and BEATs'
QUICK_STEPS = 8, 6
REPEATS, MOST_S = 10, 8.0  # of the timed steps
QUICK_TOWERS = {
    **{"width": 32, "heads": 4, "feedforward": 64, "visual_hidden": 32, "audio_hidden": 32},
    **{"visual_blocks": 1, "audio_blocks": 0},
}


def step(quick: bool, batch: int, steps: tuple[int, int], **train) -> dict:
    """A training step on so many visual and audio steps: compiled, compared with the plan, run."""
    if quick:
        batch, steps = 8, QUICK_STEPS
        train |= {"microbatch": 4} if "microbatch" in train else {}
    work, optimizer = paper_step(quick, batch, steps, train)
    begin = time.perf_counter()
    lowered = trial.lowered_step(work, optimizer)
    traced = time.perf_counter()
    program = lowered.compile()
    compiled = time.perf_counter()
    found = trial.compared(program, work)
    ran = trial.run(program, work, optimizer, repeats=2 if quick else REPEATS, most_s=MOST_S)
    return {
        "ms": 1e3 * ran["step_s"],
        "clips_per_s": batch / ran["step_s"],
        "planned_ms": planned_ms(work),
        **shares(ran["flops_per_s"], work.encoders.precision, quick),
        "trace_s": traced - begin,
        "compile_s": compiled - traced,
        **memory(found, ran),
    }


def paper_step(quick: bool, batch: int, steps: tuple[int, int], train: dict):
    """-> (workload, optimizer) of the paper's model, or of a small one."""
    config = config_files.load_file(str(CONFIG)).replace(data={"batch_size": batch}, train=train)
    if quick:
        config = config.replace(encoders=QUICK_TOWERS)
    widths = QUICK_WIDTHS if quick else WIDTHS
    stored = estimate.StoredFeatures(
        batch, 0.0, *zip(steps, widths, strict=True), "random features"
    )
    return estimate.workload(config, 1, stored), optimizer_of(config)


def memory(found: dict, ran: dict) -> dict:
    """GiB as the plan has them, as the compiler, and as the allocator saw them."""
    held = found["memory_bytes"] or {}
    stats = jax.devices()[0].memory_stats() or {}
    bytes_of = {
        "planned": found["planned_bytes"],
        "compiler": held.get("total"),
        "temporary": held.get("temporary"),
        "in_use": ran["memory_in_use_bytes"],
    }
    figures = {f"{name}_gib": size and size / GIB for name, size in bytes_of.items()}
    limit = stats.get("bytes_limit")
    return figures | {"limit_gb": limit and limit / 1e9}


# -- what the card could do -----------------------------------------------------------------------


def card() -> str | None:
    """The name that the plan has for the device here; None where it has none."""
    kind = jax.devices()[0].device_kind.lower()
    for name in DEVICES:
        if (name.partition("-")[2] if name.startswith("tpu") else name) in kind:
            return name
    return None


def planned_ms(work) -> float | None:
    """A step of the plan, at the share of the peak that it takes for this device."""
    if (name := card()) is None:
        return None
    share, _ = efficiency_of(name, work.encoders.precision)
    return 1e3 * estimate.step_seconds(work, DEVICES[name], share)


def shares(rate: float, precision: str, quick: bool) -> dict:
    """A rate in FLOP/s, of the data sheet's peak and of a bare product's."""
    peak = getattr(DEVICES[name], precision) if (name := card()) else None
    return {
        "tflops": rate / 1e12,
        "share_of_peak": rate / peak if peak else None,
        "share_of_bare_product": rate / bare_product(precision, quick),
    }


@functools.cache
def bare_product(precision: str, quick: bool) -> float:
    """FLOP/s of a large matrix product of random numbers: of ones or zeros it is faster."""
    size = 256 if quick else 8192
    dtype = jnp.bfloat16 if precision == "bfloat16" else jnp.float32
    x, y = (jax.random.normal(jax.random.key(seed), (size, size), dtype) for seed in range(2))
    product = jax.jit(functools.partial(jnp.matmul, precision=MATMUL_PRECISIONS[precision]))
    return 2 * size**3 / median_seconds(lambda: product(x, y).block_until_ready(), 5)
