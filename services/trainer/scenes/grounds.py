"""Textured grounds: what scenes are composed on, some of them with a name."""

from __future__ import annotations

import colorsys
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from services.trainer.scenes.scene import Category, Scene, SceneObject


@dataclass(frozen=True)
class NamedGround:
    """A ground that people have a word for."""

    # "grass"
    key: str
    english: str
    chinese: str


NAMED_GROUNDS = (
    NamedGround("grass", "grass", "草地"),
    NamedGround("sand", "sand", "沙地"),
    NamedGround("water", "water", "水面"),
    NamedGround("snow", "snow", "雪地"),
    NamedGround("road", "road", "马路"),
    NamedGround("soil", "soil", "泥土"),
    NamedGround("brick", "brick", "砖墙"),
    NamedGround("sky", "sky", "天空"),
)
GROUND_NAMES = tuple(ground.key for ground in NAMED_GROUNDS)
# Grounds where something is asked about them as about things.
GROUND_CATEGORIES: dict[str, Category] = {
    ground.key: Category(ground.key, "grounds", "", ground.english, ground.english, ground.chinese, "片")
    for ground in NAMED_GROUNDS
}
# A named ground is something in a scene where it covers so much of it.
_LEAST_GROUND = 0.01
GROUNDS = ("plain", "gradient", "clouds", "grain", "stripes", "checks", "patches")


def paint_ground(height: int, width: int, rng: np.random.Generator, hue: float | None = None) -> NDArray[np.float32]:
    """A ground of a random kind and colours, or of colours of one ``hue`` in 0..1.

    Returns ``[height, width, 3]`` float32 in 0..255.
    """
    kind = GROUNDS[rng.integers(len(GROUNDS))]
    first, second = _colour(rng, hue), _colour(rng, hue)
    if kind == "plain":
        blend = np.zeros((height, width), dtype=np.float32)
    elif kind == "gradient":
        blend = _ramp(height, width, rng)
    elif kind == "clouds":
        blend = 0.6 * _noise(height, width, 4, rng) + 0.4 * _noise(height, width, 10, rng)
    elif kind == "grain":
        blend = _noise(height, width, min(height, width) // 2, rng) * np.float32(rng.uniform(0.2, 0.6))
    elif kind == "stripes":
        blend = _stripes(height, width, rng)
    elif kind == "checks":
        blend = np.abs(_stripes(height, width, rng) - _stripes(height, width, rng))
    else:
        blend = (_noise(height, width, 6, rng) > 0.5).astype(np.float32)
    blend = blend * np.float32(rng.uniform(0.35, 1.0))
    ground = first + (second - first) * blend[..., None]
    return ground + rng.normal(0, 1, (height, width, 1)).astype(np.float32) * np.float32(rng.uniform(0, 6))


def _colour(rng: np.random.Generator, hue: float | None) -> NDArray[np.float32]:
    if hue is None:
        rgb = colorsys.hsv_to_rgb(rng.uniform(), rng.uniform(0.0, 0.6), rng.uniform(0.25, 1.0))
    else:
        # Strong and bright enough to be called by its name.
        rgb = colorsys.hsv_to_rgb(hue, rng.uniform(0.5, 0.9), rng.uniform(0.6, 1.0))
    return np.asarray(rgb, dtype=np.float32) * 255


def _axes(height: int, width: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    return (
        np.linspace(0, 1, height, dtype=np.float32)[:, None],
        np.linspace(0, 1, width, dtype=np.float32)[None, :],
    )


def _ramp(height: int, width: int, rng: np.random.Generator) -> NDArray[np.float32]:
    vertical, horizontal = _axes(height, width)
    angle = rng.uniform(0, 2 * np.pi)
    ramp = vertical * np.float32(np.sin(angle)) + horizontal * np.float32(np.cos(angle))
    return (ramp - ramp.min()) / (ramp.max() - ramp.min() + 1e-6)


def _stripes(height: int, width: int, rng: np.random.Generator) -> NDArray[np.float32]:
    bands = _ramp(height, width, rng) * np.float32(rng.integers(3, 14))
    return (bands % 1.0 > 0.5).astype(np.float32)


def _noise(height: int, width: int, cells: int, rng: np.random.Generator) -> NDArray[np.float32]:
    """Smooth value noise in 0..1 with about ``cells`` bumps a side."""
    return _streaks(height, width, cells, cells, rng)


def paint_named_ground(name: str, height: int, width: int, rng: np.random.Generator) -> NDArray[np.float32]:
    """The ground of ``NAMED_GROUNDS`` whose key is ``name``: ``[height, width, 3]`` float32 in 0..255.

    Raises KeyError for an unknown name.
    """
    painted = _PAINTERS[name](height, width, rng)
    grain = rng.normal(0, 1, (height, width, 1)).astype(np.float32) * np.float32(rng.uniform(1, 5))
    return np.clip(painted + grain, 0, 255)


def paint_some_named(
    height: int, width: int, rng: np.random.Generator
) -> tuple[NDArray[np.float32], tuple[tuple[str, NDArray[np.bool_]], ...]]:
    """One named ground, or two on either side of a boundary.

    Returns the ground ``[height, width, 3]`` and the key and pixels ``[height, width]`` bool of each.
    """
    names = [GROUND_NAMES[int(index)] for index in rng.permutation(len(GROUND_NAMES))[: rng.integers(1, 3)]]
    # What stands upright or lies far away is above what lies on the ground.
    names.sort(key=lambda name: ("sky", "brick").index(name) if name in ("sky", "brick") else 2)
    first = paint_named_ground(names[0], height, width, rng)
    if len(names) == 1:
        return first, ((names[0], np.ones((height, width), dtype=np.bool_)),)
    is_horizon = names[0] in ("sky", "brick")
    below = _is_beyond_boundary(height, width, rng.normal(0, 0.1) if is_horizon else rng.uniform(0, 2 * np.pi), rng)
    second = paint_named_ground(names[1], height, width, rng)
    return np.where(below[..., None], second, first), ((names[0], ~below), (names[1], below))


def with_grounds(scene: Scene) -> Scene:
    """The scene with its named grounds as further things, after the others; slivers are left out."""
    if not scene.grounds:
        return scene
    least = _LEAST_GROUND * scene.height * scene.width
    shown = [(GROUND_CATEGORIES[name], mask) for name, mask in scene.grounds if mask.sum() >= least]
    return replace(scene, objects=(*scene.objects, *(_ground_thing(category, mask) for category, mask in shown)))


def _ground_thing(category: Category, mask: NDArray[np.bool_]) -> SceneObject:
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    box = (float(columns[0]), float(rows[0]), float(columns[-1] + 1), float(rows[-1] + 1))
    return SceneObject(category, box, mask, int(mask.sum()))


def _is_beyond_boundary(height: int, width: int, turn: float, rng: np.random.Generator) -> NDArray[np.bool_]:
    """What lies beyond a slightly wavy line; with ``turn`` 0 the line is level and that is below it. In radians."""
    vertical, horizontal = _axes(height, width)
    across = (vertical - 0.5) * np.float32(np.cos(turn)) + (horizontal - 0.5) * np.float32(np.sin(turn))
    along = (horizontal - 0.5) * np.float32(np.cos(turn)) - (vertical - 0.5) * np.float32(np.sin(turn))
    waves = sum(
        rng.uniform(0, 0.02) * np.sin(2 * np.pi * (frequency * along + rng.uniform())) for frequency in (1.3, 3.7)
    )
    return np.asarray(across > rng.uniform(-0.2, 0.2) + waves, dtype=np.bool_)


def _grass(height: int, width: int, rng: np.random.Generator) -> NDArray[np.float32]:
    """Blades over lighter and darker patches."""
    dark, light = _shades(rng, (0.24, 0.36), (0.5, 0.85), (0.25, 0.4), (0.55, 0.8))
    blades = _streaks(height, width, height // 6, width // 2, rng)
    return _blend(dark, light, 0.65 * blades + 0.35 * _noise(height, width, 5, rng))


def _sand(height: int, width: int, rng: np.random.Generator) -> NDArray[np.float32]:
    """Soft ripples and coarse grains."""
    dark, light = _shades(rng, (0.1, 0.13), (0.28, 0.45), (0.68, 0.8), (0.88, 1.0))
    vertical, _ = _axes(height, width)
    bends = _noise(height, width, 4, rng) * 2
    ripples = 0.5 + 0.5 * np.sin(2 * np.pi * (vertical * np.float32(rng.uniform(5, 9)) + bends))
    return _blend(dark, light, 0.45 * ripples + 0.55 * _noise(height, width, min(height, width) // 2, rng))


def _water(height: int, width: int, rng: np.random.Generator) -> NDArray[np.float32]:
    """Flat waves with glints."""
    dark, light = _shades(rng, (0.5, 0.6), (0.6, 0.9), (0.3, 0.45), (0.6, 0.8))
    waves = _streaks(height, width, int(rng.integers(20, 34)), int(rng.integers(4, 8)), rng)
    glints = np.clip((waves - 0.78) * 4, 0, 1)[..., None]
    water = _blend(dark, light, waves)
    return water + (240 - water) * glints * np.float32(0.8)


def _snow(height: int, width: int, rng: np.random.Generator) -> NDArray[np.float32]:
    """White with faint blue hollows."""
    dark, light = _shades(rng, (0.55, 0.65), (0.02, 0.12), (0.8, 0.88), (0.97, 1.0))
    return _blend(dark, light, np.clip(1.3 * _noise(height, width, 4, rng), 0, 1))


def _road(height: int, width: int, rng: np.random.Generator) -> NDArray[np.float32]:
    """Grey asphalt with a dashed line."""
    dark, light = _shades(rng, (0.5, 0.7), (0.0, 0.1), (0.18, 0.28), (0.36, 0.5))
    road = _blend(dark, light, _noise(height, width, min(height, width) // 2, rng))
    turn = rng.uniform(0, np.pi)
    vertical, horizontal = _axes(height, width)
    across = (vertical - 0.5) * np.float32(np.cos(turn)) + (horizontal - 0.5) * np.float32(np.sin(turn))
    along = (horizontal - 0.5) * np.float32(np.cos(turn)) - (vertical - 0.5) * np.float32(np.sin(turn))
    distance = np.abs(across - np.float32(rng.uniform(-0.25, 0.25)))
    line = (distance < 0.016) & ((along * 4 + rng.uniform()) % 1.0 < 0.6)
    paint = np.array((235, 235, 230) if rng.uniform() < 0.6 else (235, 195, 50), dtype=np.float32)
    return np.where(line[..., None], paint, road)


def _soil(height: int, width: int, rng: np.random.Generator) -> NDArray[np.float32]:
    """Brown lumps with a few pebbles."""
    dark, light = _shades(rng, (0.045, 0.08), (0.5, 0.75), (0.15, 0.25), (0.38, 0.52))
    lumps = 0.6 * _noise(height, width, 16, rng) + 0.4 * _noise(height, width, 40, rng)
    soil = _blend(dark, light, lumps)
    pebbles = _noise(height, width, 30, rng)[..., None] > 0.93
    return np.where(pebbles, light * np.float32(1.35), soil)


def _brick(height: int, width: int, rng: np.random.Generator) -> NDArray[np.float32]:
    """Courses of bricks, each of its own shade, with pale joints."""
    dark, light = _shades(rng, (0.0, 0.045), (0.55, 0.8), (0.4, 0.5), (0.62, 0.78))
    tall = float(rng.uniform(0.055, 0.085)) * min(height, width)
    wide = tall * float(rng.uniform(2.0, 2.6))
    rows, columns = np.arange(height, dtype=np.float32)[:, None], np.arange(width, dtype=np.float32)[None, :]
    course = (rows / tall).astype(int)
    shifted = columns / wide + np.where(course % 2, 0.5, 0.0)
    number = shifted.astype(int)
    shade = rng.uniform(0, 1, (course.max() + 1, number.max() + 1)).astype(np.float32)[course, number]
    joint = max(1.0, 0.13 * tall)
    is_joint = (rows % tall < joint) | (shifted % 1.0 * wide < joint)
    return np.where(is_joint[..., None], np.float32(rng.uniform(165, 215)), _blend(dark, light, shade))


def _sky(height: int, width: int, rng: np.random.Generator) -> NDArray[np.float32]:
    """Blue, paler towards the bottom, with soft clouds."""
    deep, pale = _shades(rng, (0.55, 0.61), (0.5, 0.75), (0.75, 0.9), (0.95, 1.0))
    vertical, _ = _axes(height, width)
    sky = _blend(deep, 0.6 * pale + 0.4 * 255, np.broadcast_to(vertical, (height, width)))
    clouds = 0.7 * _streaks(height, width, 5, 3, rng) + 0.3 * _noise(height, width, 12, rng)
    cover = np.clip((clouds - np.float32(rng.uniform(0.55, 0.7))) * 5, 0, 1)[..., None]
    return sky + (250 - sky) * cover


def _shades(
    rng: np.random.Generator,
    hues: tuple[float, float],
    saturations: tuple[float, float],
    dark: tuple[float, float],
    light: tuple[float, float],
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Two colours of one hue, the darker first; ranges in 0..1, colours in 0..255."""
    hue, saturation = rng.uniform(*hues), rng.uniform(*saturations)
    first, second = (colorsys.hsv_to_rgb(hue, saturation, rng.uniform(*values)) for values in (dark, light))
    return np.asarray(first, dtype=np.float32) * 255, np.asarray(second, dtype=np.float32) * 255


def _blend(dark: NDArray[np.float32], light: NDArray[np.float32], share: NDArray[np.float32]) -> NDArray[np.float32]:
    return dark + (light - dark) * np.asarray(share, dtype=np.float32)[..., None]


def _streaks(height: int, width: int, rows: int, columns: int, rng: np.random.Generator) -> NDArray[np.float32]:
    """Value noise in 0..1 with about ``rows`` bumps down and ``columns`` across."""
    coarse = Image.fromarray(rng.integers(0, 256, (rows + 1, columns + 1), dtype=np.uint8))
    return np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC), dtype=np.float32) / 255


_PAINTERS: dict[str, Callable[[int, int, np.random.Generator], NDArray[np.float32]]] = {
    "grass": _grass,
    "sand": _sand,
    "water": _water,
    "snow": _snow,
    "road": _road,
    "soil": _soil,
    "brick": _brick,
    "sky": _sky,
}
