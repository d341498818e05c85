"""Does our resize equal PIL's, and how fast are CLIP's preprocessing and encoding?

    python scripts/benchmarks/clip.py [--quick] [--threads all] [--out FILE.json]

Pixels: the share of bytes that differ from Hugging Face's processor (PIL) on noise and on smooth
pictures, the largest difference, and the time a frame takes; for our host path, our matrix
products, and `jax.image.resize`, which does not round to 8 bits between its passes. Frames taller
than 2 : 1 are apart: Pillow 13 resizes those in the other order than Pillow 12 and we.

Encoding: images/s of B/32 on a batch of 64 in float32 and bfloat16, and the share of the speed of
one large matrix product of that dtype on the same machine; beside transformers' torch model where
torch is installed. Weights are seeded random numbers.

Features: what the difference of pixels does to the pooled feature of B/32, of the distance of a
feature to their mean.

Rows are printed as they are measured; those of pixels, which need no model, come first.

On a CPU one thread and CPU time, unless `--threads all`; on an accelerator wall time.
"""

import argparse
import json
import sys
import time
import warnings
from collections.abc import Callable

import contest  # noqa: F401 (before jax: it limits the threads)
import jax
import jax.numpy as jnp
import numpy as np
import PIL
from PIL import Image
from timing import median_seconds

from scav_jax.extract.backbones import clip_images, clip_pixels
from scav_jax.extract.backbones.clip_model import Batching, ClipModel
from scav_jax.extract.backbones.clip_pixels import Preprocessing
from scav_jax.extract.backbones.clip_towers import ClipConfig, VisionConfig
from scav_jax.extract.backbones.clip_weights import random_weights

warnings.filterwarnings("ignore")  # of the peers

# height, width: VGGSound's usual sizes, 16:9, portrait, high definition, upscaled, tall
SIZES = ((256, 340), (360, 640), (640, 360), (720, 1280), (1080, 1920), (144, 176), (960, 432))
QUICK_SIZES = ((256, 340), (144, 176), (600, 270))
GEMM = 2048


# ---- pixels ------------------------------------------------------------------------------------


def hugging_face(frames: np.ndarray) -> np.ndarray:
    """Bytes of CLIPImageProcessorPil."""
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    processor = CLIPImageProcessorPil(do_rescale=False, do_normalize=False)
    images = [Image.fromarray(frame) for frame in frames]
    return processor(images=images, return_tensors="np")["pixel_values"].transpose(0, 2, 3, 1)


def float_resize(frames: np.ndarray) -> np.ndarray:
    """`jax.image.resize` (Keys' kernel, antialiased), cropped and rounded once, at the end."""
    height, width = Preprocessing().resized(*frames.shape[1:3])
    shape = (len(frames), height, width, 3)
    x = jax.image.resize(frames.astype(np.float32), shape, "cubic", precision="highest")
    top, left = (height - 224) // 2, (width - 224) // 2
    x = x[:, top : top + 224, left : left + 224]
    return np.asarray(jnp.clip(jnp.round(x), 0, 255).astype(jnp.uint8))


def pictures(random: np.random.Generator, count: int, height: int, width: int) -> np.ndarray:
    """Noise, then smooth pictures, half of `count` each."""
    noise = random.integers(0, 256, (count // 2, height, width, 3)).astype(np.uint8)
    coarse = random.integers(0, 256, (count - count // 2, 9, 9, 3)).astype(np.uint8)
    smooth = [Image.fromarray(x).resize((width, height), Image.Resampling.LANCZOS) for x in coarse]
    return np.concatenate([noise, np.stack(smooth)])


def on_device(frames: np.ndarray, dtype: str) -> Callable[[], np.ndarray]:
    size = frames.shape[1:3]
    rows, columns, kept = clip_images.crop_digits(Preprocessing(), *size, dtype)
    rows, columns = jax.device_put((rows, columns))
    return lambda: np.asarray(clip_images.resize_crop(frames[:, *kept], rows, columns))


def compare_pixels(arguments, clock) -> tuple[list[dict], list[np.ndarray]]:
    """One row for every size and way to resize, and the crops of each, transformers' first."""
    print(f"\npixels against transformers' processor, Pillow {PIL.__version__}")
    title = f"{'frames':>11} {'way':20} {'differ':>9} {'by at most':>10} {'ms/frame':>9}"
    print(title, flush=True)
    random, rows, crops = np.random.default_rng(0), [], []
    count, repeats = (4, 3) if arguments.quick else (8, 7)
    for height, width in QUICK_SIZES if arguments.quick else SIZES:
        frames = pictures(random, count, height, width)
        expected = hugging_face(frames)
        ways = {
            "transformers": lambda frames=frames: hugging_face(frames),
            "host (PIL)": lambda frames=frames: clip_pixels.resize_crop_pil(
                frames, Preprocessing()
            ),
            "products, float32": on_device(frames, "float32"),
            "products, bfloat16": on_device(frames, "bfloat16"),
            "jax.image.resize": lambda frames=frames: float_resize(frames),
        }
        for name, way in ways.items():
            found = way()
            difference = np.abs(found.astype(int) - expected)
            crops.append(found)
            row = {
                "height": height,
                "width": width,
                "way": name,
                "share_that_differs": float((difference > 0).mean()),
                "largest_difference": int(difference.max()),
                "ms_per_frame": 1e3 * median_seconds(way, repeats, clock) / count,
            }
            rows.append(row)
            print(
                f"{height:5} x{width:5} {name:20} {row['share_that_differs']:9.2%} "
                f"{row['largest_difference']:10} {row['ms_per_frame']:9.2f}",
                flush=True,
            )
    return rows, crops


def compare_features(rows: list[dict], crops: list[np.ndarray], model: ClipModel) -> None:
    """Adds to each row of pixels by how much it moves a feature."""
    print(
        f"\nfeatures against those of transformers' pixels\n{'frames':>11} {'way':20} {'moved':>9}"
    )
    for row, found in zip(rows, crops, strict=True):
        if row["way"] == "transformers":
            features = model.encode_crops(found)
            scale = np.linalg.norm(features - features.mean(axis=0), axis=1).mean()
        moved = np.linalg.norm(model.encode_crops(found) - features, axis=1).max() / scale
        row["feature_moved_by"] = float(moved)
        print(f"{row['height']:5} x{row['width']:5} {row['way']:20} {moved:9.2e}", flush=True)


# ---- encoding ----------------------------------------------------------------------------------


def operations(config: VisionConfig) -> float:
    """Floating point operations of matrix products for one picture."""
    steps, width = config.grid**2 + 1, config.hidden_size
    patches = 2 * config.grid**2 * config.patch_size**2 * 3 * width
    dense = 2 * steps * (4 * width**2 + 2 * width * config.intermediate_size)
    return patches + config.num_hidden_layers * (dense + 4 * steps**2 * width)


def gemm_peak(dtype: str, clock) -> float:
    """Operations per second of one large matrix product."""
    size = GEMM if jax.default_backend() == "cpu" else 8 * GEMM
    x = jnp.ones((size, size), dtype)
    precision = "highest" if dtype == "float32" else "default"
    product = jax.jit(lambda x: jnp.dot(x, x, precision=precision))
    return 2 * size**3 / median_seconds(lambda: product(x).block_until_ready(), 5, clock)


def torch_tower(tensors: dict, dtype: str, pixels: np.ndarray) -> Callable[[], object] | None:
    """transformers' model with the same weights, or None without torch."""
    try:
        import torch
        from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection
    except ImportError:
        return None
    if "all" not in sys.argv and "--threads=all" not in sys.argv:
        torch.set_num_threads(1)
    model = CLIPVisionModelWithProjection(CLIPVisionConfig()).eval()
    model.load_state_dict({name: torch.from_numpy(x) for name, x in tensors.items()})
    device = "cuda" if torch.cuda.is_available() and jax.default_backend() != "cpu" else "cpu"
    model = model.to(device, getattr(torch, dtype)).vision_model
    pixels = torch.from_numpy(pixels).permute(0, 3, 1, 2).to(device, getattr(torch, dtype))

    def call():
        with torch.inference_mode():
            return model(pixels).pooler_output.float().cpu()  # waits

    return call


def compare_encoding(arguments, clock, tensors: dict) -> list[dict]:
    """Images per second of ours and of torch's tower, from crops to features on the host."""
    batch, repeats = (8, 2) if arguments.quick else (64, 5)
    crops = np.random.default_rng(1).integers(0, 256, (batch, 224, 224, 3)).astype(np.uint8)
    pixels = np.asarray(clip_images.normalise(jnp.asarray(crops), Preprocessing()))
    work = operations(VisionConfig()) * batch
    print(f"\nB/32, batch {batch}, {work / batch / 1e9:.2f} GFLOP a picture")
    print(f"{'':24} {'images/s':>9} {'GFLOP/s':>9} {'of GEMM':>8}")
    rows = []
    for dtype in ("float32", "bfloat16"):
        peak = gemm_peak(dtype, clock)
        print(f"{'GEMM ' + dtype:24} {'':>9} {peak / 1e9:9.0f}", flush=True)
        model = ClipModel(
            ClipConfig(vision=VisionConfig()),
            tensors,
            dtype=dtype,
            batching=Batching(batch, jax.local_devices()[:1]),
        )
        encode = lambda model=model: model.encode_crops(crops)  # noqa: E731
        for name, call in ((f"ours {dtype}", encode), (f"torch {dtype}", None)):
            call = call or torch_tower(tensors, dtype, pixels)
            if call is None:
                print(f"{name:24} not installed", flush=True)
                continue
            took = median_seconds(call, repeats, clock)
            row = {
                "name": name,
                "batch": batch,
                "images_per_s": batch / took,
                "flops": work / took,
                "share_of_gemm": work / took / peak,
            }
            rows.append(row)
            print(
                f"{name:24} {batch / took:9.1f} {work / took / 1e9:9.0f} "
                f"{row['share_of_gemm']:8.0%}",
                flush=True,
            )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="small, to see that it runs")
    parser.add_argument("--threads", choices=("one", "all"), default="one")
    parser.add_argument("--out", help="JSON file for the numbers")
    arguments = parser.parse_args()
    on_one = jax.default_backend() == "cpu" and arguments.threads == "one"
    clock = time.process_time if on_one else time.perf_counter
    device = jax.local_devices()[0]
    print(
        f"{device.platform} {device.device_kind}, jax {jax.__version__}, {arguments.threads} thread"
    )
    pixels, crops = compare_pixels(arguments, clock)
    config = ClipConfig(vision=VisionConfig())
    tensors = random_weights(config)
    encoding = compare_encoding(arguments, clock, tensors)
    model = ClipModel(config, tensors, batching=Batching(8, jax.local_devices()[:1]))
    compare_features(pixels, crops, model)
    results = {
        "device": f"{device.platform} {device.device_kind}",
        "jax": jax.__version__,
        "pillow": PIL.__version__,
        "pixels": pixels,
        "encoding": encoding,
    }
    if arguments.out:
        with open(arguments.out, "w") as file:
            json.dump(results, file, indent=2)


if __name__ == "__main__":
    main()
