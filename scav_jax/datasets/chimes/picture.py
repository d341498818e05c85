"""The picture: an instrument painted once, then every frame as a sum of layers and mallets.

Whatever changes in time changes linearly: a flash adds light, and a displacement of less than a
pixel adds the picture's slope. So a frame is

    frame = still + sum_k amount_k(t) * layer_k,

one matrix product for all frames of a clip, done directly in the encoder's colour space (Y, U, V,
with U and V at half the resolution). Only the mallets are blended in frame by frame.
"""

import itertools
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from scav_jax.datasets.chimes.instrument import Instrument, Look, random_generator
from scav_jax.datasets.chimes.performance import Motion
from scav_jax.datasets.chimes.presets import Parameters, Performance

OVERSAMPLING = 2
PHASES = 4  # sub-pixel positions of a mallet per pixel and axis
NOISE_OFFSETS = 1 << 15  # different stretches of noise that frames are given

# ITU-R BT.601, limited range: [Y, U, V] = offset + matrix @ [R, G, B] with RGB in 0..1.
_LUMA = np.array([0.299, 0.587, 0.114])
YUV_MATRIX = np.stack(
    [
        219 * _LUMA,
        224 * (np.array([0.0, 0.0, 1.0]) - _LUMA) / (2 * (1 - _LUMA[2])),
        224 * (np.array([1.0, 0.0, 0.0]) - _LUMA) / (2 * (1 - _LUMA[0])),
    ]
)
YUV_OFFSET = np.array([16.0, 128.0, 128.0])


@dataclass(frozen=True)
class Scene:
    """An instrument, painted.

    Attributes:
      still: `[pixels]` the picture at rest: planes Y, U, V one after the other (yuv420p).
      layers: `[2 + 2 * bars, pixels]` what one unit adds: camera x, camera y, each bar's flash,
        each bar's shift.
      mallets: the sprites of its mallets.
      shadow: `[h, w]` the share of Y that a mallet's shadow lets through; centred.
      shadow_direction: (x, y) where shadows fall, of length 1.
      width: of the picture in pixels.
      height: the same.
    """

    still: np.ndarray
    layers: np.ndarray
    mallets: tuple["Mallet", ...]
    shadow: np.ndarray
    shadow_direction: tuple[float, float]
    width: int
    height: int


@dataclass(frozen=True)
class Mallet:
    """A mallet's sprite at every sub-pixel position.

    Attributes:
      keep: `[2 * PHASES, 2 * PHASES, h, w]` the share of Y behind it that is seen; the first two
        axes are the position (y, x) in steps of 1 / PHASES pixels.
      add: the same shape, what it adds to Y.
      keep_chroma: `[2 * PHASES, 2 * PHASES, h / 2, w / 2]` the same for U and V.
      add_chroma: `[2 * PHASES, 2 * PHASES, 2, h / 2, w / 2]`.
      head: (y, x) of the head's centre in the sprite at position (0, 0), in whole, even pixels.
    """

    keep: np.ndarray
    add: np.ndarray
    keep_chroma: np.ndarray
    add_chroma: np.ndarray
    head: tuple[int, int]


def paint_scene(instrument: Instrument, parameters: Parameters, seed: int) -> Scene:
    """Paints an instrument: everything that its performances' frames are made of."""
    width, height, look = parameters.width, parameters.height, instrument.look
    fine = height * OVERSAMPLING
    ys = (np.arange(fine) + 0.5) / fine
    xs = (np.arange(width * OVERSAMPLING) + 0.5) / fine
    y, x = np.meshgrid(ys, xs, indexing="ij")
    picture = _paint_background(look, x, y, random_generator(seed, instrument.id, "texture"))
    picture = _paint_rails_and_shadows(look, picture, x, y)
    covers, flashes = [], []
    for bar in range(instrument.bars):
        picture, distance, alpha, center = _paint_bar(look, bar, picture, x, y)
        covers.append(np.exp(-np.maximum(distance, 0.0) / 0.012))
        flashes.append((distance, alpha, center))
    picture = np.clip(picture * _light(look, x, y)[..., None], 0.0, 0.94)
    down, right = np.gradient(picture, axis=(0, 1))  # per fine pixel
    layers = [-right * OVERSAMPLING, -down * OVERSAMPLING]
    for distance, alpha, center in flashes:
        layers.append(parameters.flash * _flash(look, picture, distance, alpha, center))
    layers += [-down * OVERSAMPLING * cover[..., None] for cover in covers]
    planes = yuv420(np.stack([_shrink(layer) for layer in [picture, *layers]]))
    planes[0] += yuv420_offset(width, height)
    light = np.array([-np.cos(look.light_angle), -np.sin(look.light_angle)])
    return Scene(
        still=planes[0].astype(np.float32),
        layers=planes[1:].astype(np.float32),
        mallets=tuple(
            _paint_mallet(look, slope, parameters.mallet_opacity, height)
            for slope in look.stick_slopes
        ),
        shadow=_mallet_shadow(look, parameters.mallet_opacity, height),
        shadow_direction=(float(light[0]), float(light[1])),
        width=width,
        height=height,
    )


def _shrink(picture: np.ndarray) -> np.ndarray:
    """`[h, w, 3]` -> `[h / OVERSAMPLING, w / OVERSAMPLING, 3]` by averaging."""
    h, w, _ = picture.shape
    blocks = picture.reshape(h // OVERSAMPLING, OVERSAMPLING, w // OVERSAMPLING, OVERSAMPLING, -1)
    return blocks.mean(axis=(1, 3))


def yuv420(pictures: np.ndarray) -> np.ndarray:
    """`[n, h, w, 3]` RGB -> `[n, h * w * 3 / 2]` planes Y, U, V without the offsets."""
    n, h, w, _ = pictures.shape
    yuv = pictures @ YUV_MATRIX.T
    chroma = yuv[..., 1:].reshape(n, h // 2, 2, w // 2, 2, 2).mean(axis=(2, 4))
    return np.concatenate(
        [yuv[..., 0].reshape(n, -1), np.moveaxis(chroma, 3, 1).reshape(n, -1)], axis=1
    )


def yuv420_offset(width: int, height: int) -> np.ndarray:
    """`[h * w * 3 / 2]` what black has in the planes Y, U, V."""
    area = width * height
    return np.repeat(YUV_OFFSET, [area, area // 4, area // 4])


def _paint_background(
    look: Look, x: np.ndarray, y: np.ndarray, random: np.random.Generator
) -> np.ndarray:
    across = (x - x.mean()) * np.cos(look.gradient_angle) + (y - 0.5) * np.sin(look.gradient_angle)
    ramp = np.clip(across / 1.2 + 0.5, 0.0, 1.0)[..., None]
    ground = look.background[0] * (1.0 - ramp) + look.background[1] * ramp
    turn, scale = look.texture_angle, look.texture_scale
    u = (x * np.cos(turn) + y * np.sin(turn)) / scale
    v = (y * np.cos(turn) - x * np.sin(turn)) / scale
    phase = random.uniform(0, 6.0, 3)
    if look.texture == "wood":
        rings = v * 26 + 1.3 * np.sin(u * 3.1 + phase[0]) + 0.5 * np.sin(u * 9 + phase[1])
        grain = 0.7 * np.sin(rings) + 0.3 * np.sin(rings * 2.7 + phase[2])
    elif look.texture == "weave":
        grain = np.sin(u * 44 + phase[0]) * np.sin(v * 44 + phase[1])
    elif look.texture == "planks":
        plank = np.floor(v * 5 + phase[0])
        seam = np.abs(v * 5 + phase[0] - plank - 0.5) > 0.44
        grain = np.sin(plank * 5.1) * 0.8 + 0.25 * np.sin(u * 8 + plank * 2.3) - 1.3 * seam
    elif look.texture == "speckle":
        grain = _blurred_noise(random, x.shape, 2.2) * 0.8
    else:
        grain = np.zeros_like(x)
    return ground * (1.0 + look.texture_strength * grain[..., None])


def _blurred_noise(random: np.random.Generator, shape: tuple[int, int], sigma: float) -> np.ndarray:
    """Normal noise of standard deviation 1, blurred; it wraps around at the edges."""
    noise = random.standard_normal(shape)
    if sigma > 0:
        fy, fx = np.fft.fftfreq(shape[0])[:, None], np.fft.rfftfreq(shape[1])[None]
        gain = np.exp(-2 * (np.pi * sigma) ** 2 * (fy * fy + fx * fx))
        noise = np.fft.irfft2(np.fft.rfft2(noise) * gain, s=shape)
    return noise / noise.std()


def _bar_distance(look: Look, bar: int, x: np.ndarray, y: np.ndarray):
    """Signed distance to a bar's outline, and the place on the bar: across and along in -1..1."""
    bars = look.bars
    dx, dy = x - bars.centers[bar, 0], y - bars.centers[bar, 1]
    cos, sin = np.cos(bars.angles[bar]), np.sin(bars.angles[bar])
    across, along = dx * cos + dy * sin, dy * cos - dx * sin
    half = bars.half_widths[bar], bars.half_lengths[bar]
    radius = look.corner * half[0]
    qx, qy = np.abs(across) - half[0] + radius, np.abs(along) - half[1] + radius
    outside = np.hypot(np.maximum(qx, 0.0), np.maximum(qy, 0.0))
    distance = outside + np.minimum(np.maximum(qx, qy), 0.0) - radius
    return distance, across / half[0], along / half[1]


def _segment_distance(x, y, begin: np.ndarray, end: np.ndarray) -> np.ndarray:
    way = end - begin
    share = ((x - begin[0]) * way[0] + (y - begin[1]) * way[1]) / max(way @ way, 1e-9)
    share = np.clip(share, 0.0, 1.0)
    return np.hypot(x - begin[0] - share * way[0], y - begin[1] - share * way[1])


def _edge(distance: np.ndarray, pixel: float) -> np.ndarray:
    """Coverage 0..1 of a shape whose outline is at distance 0, one pixel soft."""
    return np.clip(0.5 - distance / pixel, 0.0, 1.0)


def _paint_rails_and_shadows(
    look: Look, picture: np.ndarray, x: np.ndarray, y: np.ndarray
) -> np.ndarray:
    pixel, bars = y[1, 0] - y[0, 0], look.bars
    away = -0.035 * np.array([np.cos(look.light_angle), np.sin(look.light_angle)])
    rails = np.full(x.shape, 9.0)
    for row in np.unique(bars.rows):
        members = np.flatnonzero(bars.rows == row)
        for side in (-0.6, 0.6):
            line = bars.centers[members] + side * bars.along[members]
            ends = [line[0] * 1.35 - line[1] * 0.35, *line, line[-1] * 1.35 - line[-2] * 0.35]
            for begin, end in itertools.pairwise(ends):
                rails = np.minimum(rails, _segment_distance(x, y, begin, end) - 0.016)
    dark = 0.6 * look.shadow * np.clip(0.5 - (rails - 0.012) / 0.06, 0.0, 1.0)
    picture = picture * (1.0 - dark[..., None])
    alpha = _edge(rails, pixel)[..., None]
    picture = picture * (1.0 - alpha) + look.rail_color * alpha
    shade = np.zeros(x.shape)
    for bar in range(len(bars.centers)):
        distance, _, _ = _bar_distance(look, bar, x - away[0], y - away[1])
        shade = np.maximum(shade, np.clip(0.5 - distance / 0.055, 0.0, 1.0))
    return picture * (1.0 - look.shadow * shade[..., None])


def _paint_bar(look: Look, bar: int, picture: np.ndarray, x: np.ndarray, y: np.ndarray):
    """The picture with one bar on it, and the bar's distance, coverage and place along it."""
    pixel, bars = y[1, 0] - y[0, 0], look.bars
    distance, across, along = _bar_distance(look, bar, x, y)
    side = np.cos(look.light_angle - bars.angles[bar])  # where across the bar the light falls
    round_ = 1.0 - 0.38 * (across - 0.35 * side) ** 2
    gleam = 0.22 * np.exp(-(((across - 0.4 * side) / 0.28) ** 2)) * (np.abs(along) < 0.9)
    shade = round_ * (1.0 - 0.16 * along**4) * (1.0 - 0.3 * _edge(-distance - 0.012, 0.02))
    color = look.bar_colors[bar] * shade[..., None] + gleam[..., None] * (1 - look.bar_colors[bar])
    for end in (-0.6, 0.6):
        screw = np.hypot(across * bars.half_widths[bar], (along - end) * bars.half_lengths[bar])
        hole = _edge(screw - 0.26 * bars.half_widths[bar], pixel)[..., None]
        color = color * (1.0 - 0.62 * hole)
    alpha = _edge(distance, pixel)
    picture = picture * (1.0 - alpha[..., None]) + color * alpha[..., None]
    return picture, distance, alpha, 1.0 - 0.3 * along**2


def _light(look: Look, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Brighter towards the light, darker in the corners."""
    dx, dy = x - x.mean(), y - 0.5
    toward = dx * np.cos(look.light_angle) + dy * np.sin(look.light_angle)
    return look.light_level * (1.0 + 0.22 * toward) * (1.0 - 0.22 * (dx * dx + dy * dy))


def _flash(look: Look, picture, distance, alpha, center) -> np.ndarray:
    """What a full flash adds: the bar towards the glow's colour, and a halo around it."""
    bar = (look.glow_color - picture) * (alpha * center)[..., None]
    halo = 0.34 * np.exp(-np.maximum(distance, 0.0) / 0.035) * (1.0 - alpha)
    return bar + look.glow_color * halo[..., None]


def _mallet_shadow(look: Look, opacity: float, height: int) -> np.ndarray:
    """`[h, w]` share of Y that a head's soft shadow lets through; its middle is the centre."""
    radius = look.mallet_radius * height
    half = int(np.ceil(2 * radius))
    offset = np.arange(-half, half + 1)
    reach = np.hypot(offset[:, None], offset[None]) / (1.3 * radius)
    return (1.0 - 0.75 * look.shadow * opacity * np.exp(-(reach**2))).astype(np.float32)


def _paint_mallet(look: Look, slope: float, opacity: float, height: int) -> Mallet:
    """A head and its stick at every sub-pixel position, ready to blend."""
    radius, length = look.mallet_radius * height, int(0.8 * height)
    above = 2 * int(np.ceil((radius + 3) / 2))
    beside = 2 * int(np.ceil((abs(slope) * length + 3) / 2))
    left, right = (above, beside) if slope > 0 else (beside, above)
    h, w = above + length, left + max(right, above)
    h, w = h + h % 2, w + w % 2
    steps = np.arange(2 * PHASES) / PHASES
    y = (np.arange(h) + 0.5 - above)[None, None, :, None] - steps[:, None, None, None]
    x = (np.arange(w) + 0.5 - left)[None, None, None, :] - steps[None, :, None, None]
    x, y = np.broadcast_arrays(x, y)
    zero, tip = np.zeros(2), np.array([slope * length, length - 3.0])
    stick = _edge(_segment_distance(x, y, zero, tip) - 0.012 * height, 1.0)
    stick = stick * np.clip((length - 4 - y) / 12, 0.0, 1.0)  # out of focus near the camera
    head = _edge(np.hypot(x, y) - radius, 1.0)
    toward = np.array([np.cos(look.light_angle), np.sin(look.light_angle)]) * 0.4 * radius
    spot = np.exp(-((x - toward[0]) ** 2 + (y - toward[1]) ** 2) / (0.4 * radius) ** 2)
    rim = (np.hypot(x, y) / radius) ** 2 * head
    ball = look.mallet_color * (1.0 - 0.45 * rim[..., None])
    ball = ball + (1.0 - ball) * 0.6 * spot[..., None]
    color = look.stick_color * (1.0 - head[..., None]) + ball * head[..., None]
    alpha = opacity * (head + stick * (1.0 - head))
    yuv = (color @ YUV_MATRIX.T + YUV_OFFSET) * alpha[..., None]
    halved = (*x.shape[:2], h // 2, 2, w // 2, 2)
    chroma = yuv[..., 1:].reshape(*halved, 2).mean(axis=(3, 5))
    return Mallet(
        keep=(1.0 - alpha).astype(np.float32),
        add=yuv[..., 0].astype(np.float32),
        keep_chroma=(1.0 - alpha.reshape(halved).mean(axis=(3, 5))).astype(np.float32),
        add_chroma=np.ascontiguousarray(np.moveaxis(chroma, -1, 2)).astype(np.float32),
        head=(above, left),
    )


class Camera:
    """Renders a performance's frames, a stretch at a time, as yuv420p bytes."""

    def __init__(
        self,
        scene: Scene,
        motion: Motion,
        performance: Performance,
        parameters: Parameters,
        seed: int,
        lit: Callable[[np.ndarray], np.ndarray] | None = None,
    ):
        """`lit` is what the room makes of frames; None leaves them as they are."""
        random = random_generator(seed, performance.name, "sensor")
        self.scene, self.motion, pixels = scene, motion, scene.still.size
        self.lit = lit
        self.amounts = np.concatenate([motion.camera, motion.flash, motion.shift], 1)
        self.amounts = self.amounts.astype(np.float32)
        self.offsets = random.integers(NOISE_OFFSETS, size=len(self.amounts)).tolist()
        rows = (NOISE_OFFSETS + pixels) // scene.width + 1
        noise = _blurred_noise(random, (rows, scene.width), parameters.noise_grain_px)
        self.noise = (219.0 * parameters.sensor_noise * noise.ravel()).astype(np.float32)

    def frames(self, begin: int, end: int) -> np.ndarray:
        """`[end - begin, height * 3 / 2, width]` uint8 frames of planes Y, U, V (yuv420p)."""
        scene = self.scene
        values = self.amounts[begin:end] @ scene.layers
        values += scene.still
        area = scene.width * scene.height
        for frame, offset in enumerate(self.offsets[begin:end]):
            self._blend_mallets(values[frame], begin + frame)
            values[frame, :area] += self.noise[offset : offset + area]
        if self.lit is not None:
            values = self.lit(values)
        values += 0.5  # the conversion below cuts off
        np.clip(values, 16.0, 240.0, out=values)
        return values.astype(np.uint8).reshape(end - begin, -1, scene.width)

    def _blend_mallets(self, planes: np.ndarray, frame: int) -> None:
        scene = self.scene
        area = scene.width * scene.height
        luma = planes[:area].reshape(scene.height, scene.width)
        chroma = planes[area:].reshape(2, scene.height // 2, scene.width // 2)
        positions = self.motion.mallets[frame].tolist()
        for x, y, lift in positions:
            _blend_shadow(luma, scene, x, y, lift)
        for (x, y, lift), mallet in zip(positions, scene.mallets, strict=True):
            _blend_mallet(luma, chroma, mallet, x, y - lift)


def _blend_shadow(luma: np.ndarray, scene: Scene, x: float, y: float, lift: float) -> None:
    half = scene.shadow.shape[0] // 2
    top = round(y + (0.35 * lift + 1) * scene.shadow_direction[1]) - half
    left = round(x + (0.35 * lift + 1) * scene.shadow_direction[0]) - half
    here, there = _overlap(luma.shape, scene.shadow.shape, top, left)
    luma[here] *= scene.shadow[there]


def _blend_mallet(luma, chroma, mallet: Mallet, x: float, y: float) -> None:
    """Blends a sprite with its head's centre at (x, y) in pixels; edges cut it off."""
    row, column = round(y * PHASES), round(x * PHASES)
    top, phase_y = divmod(row, 2 * PHASES)
    left, phase_x = divmod(column, 2 * PHASES)
    top, left = 2 * top - mallet.head[0], 2 * left - mallet.head[1]
    keep, add = mallet.keep[phase_y, phase_x], mallet.add[phase_y, phase_x]
    here, there = _overlap(luma.shape, keep.shape, top, left)
    part = luma[here]
    part *= keep[there]
    part += add[there]
    keep, add = mallet.keep_chroma[phase_y, phase_x], mallet.add_chroma[phase_y, phase_x]
    here, there = _overlap(chroma.shape[1:], keep.shape, top // 2, left // 2)
    part = chroma[:, *here]
    part *= keep[there]
    part += add[:, *there]


def _overlap(
    canvas: tuple[int, int], sprite: tuple[int, int], top: int, left: int
) -> tuple[tuple[slice, slice], tuple[slice, slice]]:
    """The part of a canvas that a sprite at (top, left) covers, and that part of the sprite."""
    here, there = [], []
    for size, extent, begin in zip(canvas, sprite, (top, left), strict=True):
        first, stop = max(begin, 0), max(min(begin + extent, size), 0)
        first = min(first, stop)
        here.append(slice(first, stop))
        there.append(slice(first - begin, stop - begin))
    return tuple(here), tuple(there)
