"""An instrument: how it looks and how it sounds, drawn at random from its name and the seed.

Lengths and positions are in units of the picture's height, y downwards, so that a look does not
depend on the resolution.
"""

import colorsys
import hashlib
from dataclasses import dataclass

import numpy as np

from scav_jax.datasets.chimes.presets import Parameters

LAYOUTS = ("row", "arc", "two rows", "ladder", "diagonal")
TEXTURES = ("plain", "wood", "weave", "speckle", "planks")

# Frequencies of a bar's partials relative to its lowest, and how loud they are.
TIMBRES = {
    "free bar": ((1.0, 2.756, 5.404, 8.933), (1.0, 0.55, 0.3, 0.15)),
    "marimba": ((1.0, 3.93, 9.24, 13.0), (1.0, 0.35, 0.12, 0.05)),
    "xylophone": ((1.0, 3.0, 6.1, 9.8), (1.0, 0.6, 0.35, 0.15)),
    "tube": ((1.0, 2.0, 2.41, 3.98, 5.9), (0.7, 1.0, 0.5, 0.45, 0.25)),
    "glass": ((1.0, 2.32, 4.25, 6.63), (1.0, 0.25, 0.4, 0.2)),
    "plate": ((1.0, 1.52, 2.03, 2.91, 4.13), (1.0, 0.7, 0.6, 0.4, 0.3)),
}
SCALES = (  # semitones above the lowest bar
    (0, 2, 4, 7, 9, 12, 14, 16),
    (0, 2, 4, 5, 7, 9, 11, 12),
    (0, 3, 5, 7, 10, 12, 15, 17),
    (0, 2, 3, 7, 8, 12, 14, 15),
    (0, 4, 5, 9, 11, 14, 17, 19),
)


def random_generator(seed: int, *names: str) -> np.random.Generator:
    """Random numbers that belong to a name: no worker, order or neighbour changes them."""
    digest = hashlib.sha256("/".join(names).encode()).digest()
    return np.random.default_rng(np.random.SeedSequence([seed, *digest]))


@dataclass(frozen=True)
class Bars:
    """Where the bars lie, low notes first.

    Attributes:
      centers: `[bars, 2]` x and y.
      half_widths: `[bars]` across the bar.
      half_lengths: `[bars]` along the bar.
      angles: `[bars]` in radians; 0 is upright, pi/2 lies flat.
      rows: `[bars]` bars of one row lie on the same rails.
    """

    centers: np.ndarray
    half_widths: np.ndarray
    half_lengths: np.ndarray
    angles: np.ndarray
    rows: np.ndarray

    @property
    def along(self) -> np.ndarray:
        """`[bars, 2]` from each bar's centre to its end."""
        return np.stack([np.sin(self.angles), -np.cos(self.angles)], 1) * self.half_lengths[:, None]


@dataclass(frozen=True)
class Look:
    """Colours are RGB in 0..1."""

    layout: str
    bars: Bars
    bar_colors: np.ndarray  # [bars, 3]
    corner: float  # radius of a bar's corners over its half width
    background: np.ndarray  # [2, 3] the ends of the gradient
    gradient_angle: float
    texture: str
    texture_scale: float
    texture_angle: float
    texture_strength: float
    light_angle: float  # where the light comes from
    light_level: float
    shadow: float
    rail_color: np.ndarray
    glow_color: np.ndarray
    mallets: int
    mallet_color: np.ndarray
    stick_color: np.ndarray
    mallet_radius: float
    stick_slopes: np.ndarray  # [mallets] dx/dy of the stick, which points down and out


@dataclass(frozen=True)
class Timbre:
    """Frequencies in Hz, times in seconds."""

    fundamentals: np.ndarray  # [bars]
    ratios: np.ndarray  # [bars, partials] of each bar's own partials
    amplitudes: np.ndarray  # [partials]
    decays: np.ndarray  # [bars, partials]
    attack: float
    click: float  # loudness of the mallet's own knock
    reverb_decay: float
    reverb_level: float
    noise_color: float  # exponent of the room noise's spectrum


@dataclass(frozen=True)
class Instrument:
    """A look and a timbre that all performances of the instrument share."""

    id: str
    look: Look
    timbre: Timbre

    @property
    def bars(self) -> int:
        """How many bars it has."""
        return len(self.timbre.fundamentals)


def make_instrument(id: str, parameters: Parameters, seed: int) -> Instrument:
    """Draws an instrument; the same id, bar counts and seed give the same instrument."""
    random = random_generator(seed, id)
    bars = int(random.integers(parameters.min_bars, parameters.max_bars + 1))
    aspect = parameters.width / parameters.height
    # Neighbours in number differ in layout, so that few instruments already look different.
    layout = LAYOUTS[(int(id.rsplit("_", 1)[-1]) + seed) % len(LAYOUTS)]
    return Instrument(id, _draw_look(random, layout, bars, aspect), _draw_timbre(random, bars))


def _draw_look(random: np.random.Generator, layout: str, bars: int, aspect: float) -> Look:
    hue = random.uniform()
    value = random.uniform(0.2, 0.5)
    saturation = random.uniform(0.12, 0.55)
    mallets = int(random.integers(1, 3))
    light_side = random.choice([-1.0, 1.0])
    slope = random.uniform(0.15, 0.5)
    return Look(
        layout=layout,
        bars=_lay_out(random, layout, bars, aspect),
        bar_colors=_bar_colors(random, bars),
        corner=random.uniform(0.35, 0.9),
        background=np.stack(
            [
                _rgb(hue, saturation, value * 1.25),
                _rgb(hue + random.uniform(-0.12, 0.12), saturation * 0.9, value * 0.7),
            ]
        ),
        gradient_angle=random.uniform(0, 2 * np.pi),
        texture=str(random.choice(TEXTURES)),
        texture_scale=random.uniform(0.7, 1.5),
        texture_angle=random.uniform(-0.5, 0.5),
        texture_strength=random.uniform(0.08, 0.22),
        light_angle=-np.pi / 2 + light_side * random.uniform(0.3, 1.1),
        light_level=random.uniform(0.9, 1.2),
        shadow=random.uniform(0.35, 0.6),
        rail_color=_rgb(
            random.uniform(0.03, 0.12), random.uniform(0.1, 0.6), 0.5 if value < 0.35 else 0.2
        ),
        glow_color=np.array([1.0, random.uniform(0.9, 1.0), random.uniform(0.7, 1.0)]),
        mallets=mallets,
        mallet_color=_rgb(random.uniform(), random.uniform(0.3, 0.9), random.uniform(0.65, 0.95)),
        stick_color=_rgb(random.uniform(0.06, 0.12), random.uniform(0.2, 0.5), 0.75),
        mallet_radius=random.uniform(0.042, 0.058),
        stick_slopes=np.array([light_side * slope] if mallets == 1 else [-slope, slope]),
    )


def _rgb(hue: float, saturation: float, value: float) -> np.ndarray:
    return np.array(colorsys.hsv_to_rgb(hue % 1.0, min(saturation, 1.0), min(value, 1.0)))


def _bar_colors(random: np.random.Generator, bars: int) -> np.ndarray:
    """`[bars, 3]`, never so bright that a flash could not be seen."""
    style = random.choice(["rainbow", "wood", "metal", "two tones", "one hue"])
    hue, ramp = random.uniform(), np.linspace(0, 1, bars)
    if style == "rainbow":
        turn = random.uniform(0.6, 0.85) * random.choice([-1, 1])
        colors = [_rgb(hue + turn * u, 0.75, 0.68) for u in ramp]
    elif style == "wood":
        tone, value = random.uniform(0.03, 0.09), random.uniform(0.38, 0.6)
        colors = [_rgb(tone, 0.62, value + random.uniform(-0.05, 0.05)) for _ in ramp]
    elif style == "metal":
        tone, tint = random.choice([0.12, 0.58]), random.uniform(0.05, 0.45)
        colors = [_rgb(tone, tint, random.uniform(0.52, 0.6)) for _ in ramp]
    elif style == "two tones":
        pair = [_rgb(hue, 0.7, 0.62), _rgb(hue + random.uniform(0.3, 0.6), 0.55, 0.55)]
        colors = [pair[k % 2] for k in range(bars)]
    else:
        colors = [_rgb(hue, 0.75 - 0.3 * u, 0.38 + 0.3 * u) for u in ramp]
    return np.stack(colors)


def _lay_out(random: np.random.Generator, layout: str, bars: int, aspect: float) -> Bars:
    """Places the bars in a picture that is `aspect` wide and 1 high."""
    thickness = random.uniform(0.33, 0.43)  # half a bar's width over the distance between bars
    size = random.uniform(0.88, 1.05)
    taper = 1 - random.uniform(0.2, 0.42) * np.linspace(0, 1, bars)  # high bars are shorter
    rows = np.zeros(bars, int)
    middle, u = aspect / 2, np.linspace(-1, 1, bars)
    reach = (middle - 0.12) * min(size, 1.0)
    pitch = 2 * reach / (bars - 1)
    angles = np.zeros(bars)
    if layout == "row":
        centers = np.stack([middle + reach * u, 0.46 + random.uniform(-0.08, 0.08) * u], 1)
        lengths = 0.33 * size * taper
    elif layout == "diagonal":
        rise = random.uniform(0.16, 0.24) * random.choice([-1, 1])
        centers = np.stack([middle + reach * u, 0.48 - rise * u], 1)
        lengths = 0.21 * size * taper
    elif layout == "arc":
        bend = random.uniform(0.55, 0.75)  # half the opening angle
        radius = reach / np.sin(bend)
        fold = random.choice([-1, 1])  # a bridge or a bowl
        angles = bend * u * fold
        dip = radius * (1 - np.cos(bend))
        centers = np.stack(
            [
                middle + radius * np.sin(bend * u),
                0.46 + fold * (radius * (1 - np.cos(angles)) - dip / 2),
            ],
            axis=1,
        )
        lengths, pitch = 0.22 * size * taper, pitch * 0.95
    elif layout == "two rows":
        rows = np.arange(bars) % 2
        pitch = 2 * reach / bars * 1.35
        centers = np.stack([middle + reach * u * 0.96, np.where(rows == 0, 0.68, 0.27)], 1)
        lengths = 0.19 * size * taper
    else:  # ladder: bars lie flat, low notes near the player
        pitch = 0.8 / (bars - 1)
        centers = np.stack([middle + random.uniform(-0.1, 0.1) * u, 0.48 - 0.4 * u], 1)
        angles = np.full(bars, np.pi / 2) + random.uniform(-0.08, 0.08)
        lengths = 0.58 * size * taper
    half_widths = np.full(bars, min(thickness * pitch, 0.12))
    return Bars(centers, half_widths, lengths, angles, rows)


def _draw_timbre(random: np.random.Generator, bars: int) -> Timbre:
    ratios, amplitudes = (np.array(x) for x in TIMBRES[str(random.choice(list(TIMBRES)))])
    scale = np.array(SCALES[random.integers(len(SCALES))][:bars])
    fundamentals = random.uniform(200, 620) * 2 ** (scale / 12)
    own_ratios = ratios * np.exp(random.normal(0, 0.02, ratios.shape))
    own_ratios = own_ratios * np.exp(random.normal(0, 0.004, (bars, len(ratios))))
    ring = random.uniform(0.2, 0.7)
    damping = random.uniform(0.35, 0.9)  # how much faster high partials die
    decays = ring * (fundamentals[:, None] * own_ratios / 400.0) ** -damping
    return Timbre(
        fundamentals=fundamentals,
        ratios=own_ratios,
        amplitudes=amplitudes * np.exp(random.normal(0, 0.3, ratios.shape)),
        decays=np.clip(decays, 0.02, 1.0),
        attack=random.uniform(0.0008, 0.003),
        click=random.uniform(0.05, 0.3),
        reverb_decay=random.uniform(0.06, 0.22),
        reverb_level=random.uniform(0.1, 0.35),
        noise_color=random.uniform(0.5, 1.1),
    )
