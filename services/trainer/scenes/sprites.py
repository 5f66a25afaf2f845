"""Emoji art as RGBA sprites: fetched once from npm packages, rasterised once, read from one file afterwards.

Noto, Twemoji and OpenMoji are for training. Fluent and Blobmoji (the first Noto) are kept apart: they only measure how
far a model generalises to art that it has never seen.
"""

from __future__ import annotations

import io
import json
import subprocess
import tarfile
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import resvg_py
from numpy.typing import NDArray
from PIL import Image
from safetensors.numpy import load_file, save_file

from services.trainer.scenes.categories import CATEGORIES

SPRITE_SIZE = 128
_XLINK = "http://www.w3.org/1999/xlink"


@dataclass(frozen=True)
class Style:
    """Where the art of one drawing style comes from."""

    name: str
    npm_package: str
    version: str
    licence: str
    credit: str
    held_out: bool = False
    # Another npm package and version whose names of characters apply, where the package carries none.
    character_names: tuple[str, str] | None = None


STYLES = (
    Style("noto", "@iconify-json/noto", "1.2.9", "Apache-2.0", "Noto Emoji, Google"),
    Style("twemoji", "@twemoji/svg", "15.0.0", "CC-BY-4.0", "Twemoji, Twitter and contributors"),
    Style("openmoji", "openmoji", "17.0.0", "CC-BY-SA-4.0", "OpenMoji, HfG Schwäbisch Gmünd and contributors"),
    Style("fluent", "@iconify-json/fluent-emoji-flat", "1.2.6", "MIT", "Fluent Emoji, Microsoft", held_out=True),
    Style(
        "blobmoji",
        "@iconify-json/noto-v1",
        "1.2.5",
        "Apache-2.0",
        "Noto Emoji v1, Google",
        held_out=True,
        character_names=("@iconify-json/noto", "1.2.9"),
    ),
)
TRAINING_STYLES = tuple(style.name for style in STYLES if not style.held_out)
HELD_OUT_STYLES = tuple(style.name for style in STYLES if style.held_out)


class SpriteError(Exception):
    """Sprites are missing or could not be made. The text says what to do."""


def default_sprite_file() -> Path:
    """Where ``make sprites`` writes, and every recipe reads."""
    return Path(__file__).resolve().parents[3] / "sprites" / "sprites.safetensors"


def load_sprites(path: Path | None = None) -> dict[str, NDArray[np.uint8]]:
    """Sprites by style: ``[categories, 128, 128, 4]`` uint8 RGBA, in the order of ``CATEGORIES``.

    A style that lacks a category has a fully transparent sprite in its place; ``available`` tells.
    Raises SpriteError when the file is missing or was made for other categories.
    """
    path = path or default_sprite_file()
    if not path.is_file():
        raise SpriteError(f"No sprites at {path}. Make them once with: make sprites")
    arrays = load_file(str(path))
    for name, array in arrays.items():
        if array.shape[0] != len(CATEGORIES):
            raise SpriteError(
                f"{path}: style {name!r} holds {array.shape[0]} categories, {len(CATEGORIES)} are needed. "
                "Make them again with: make sprites"
            )
    return arrays


def available(sprites: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """Which categories a style has art for: ``[categories]`` bool."""
    return np.asarray(sprites[..., 3].any(axis=(1, 2)), dtype=np.bool_)


def make_sprites(path: Path, report: Callable[[str], None]) -> None:
    """Fetch every style's package with ``npm pack``, rasterise all categories and write one safetensors file.

    ``report`` receives one line of progress a style. Raises SpriteError when npm is missing or a fetch fails.
    """
    arrays = {}
    with tempfile.TemporaryDirectory() as folder:
        for style in STYLES:
            package = _fetch(style.npm_package, style.version, Path(folder))
            names = _fetch(*style.character_names, Path(folder)) if style.character_names else package
            svgs = _read_svgs(package, names)
            rasters = [_rasterise(svgs.get(_code_points(category.emoji))) for category in CATEGORIES]
            arrays[style.name] = np.stack(rasters)
            count = int(available(arrays[style.name]).sum())
            report(f"{style.name}: {count} of {len(CATEGORIES)} categories ({style.credit}, {style.licence})")
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(arrays, str(path))


def _fetch(npm_package: str, version: str, folder: Path) -> Path:
    command = ["npm", "pack", f"{npm_package}@{version}", "--pack-destination", str(folder), "--json"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=300)  # noqa: S603
    except FileNotFoundError as error:
        raise SpriteError("npm is needed to fetch the emoji art: install Node.js, then run: make sprites") from error
    except subprocess.CalledProcessError as error:
        raise SpriteError(f"npm could not fetch {npm_package}@{version}: {error.stderr.strip()}") from error
    return folder / str(json.loads(done.stdout)[0]["filename"])


def _read_svgs(package: Path, names: Path) -> dict[str, str]:
    """SVG text by code points (upper-case hex joined by "-", without FE0F).

    Packages come in two shapes: one JSON of named icons beside a JSON of character names (taken from ``names``), or
    one SVG file a character.
    """
    with tarfile.open(package) as archive:
        files = {member.name for member in archive.getmembers() if member.isfile()}
        if "package/icons.json" in files:
            icons = json.loads(_read(archive, "package/icons.json"))
            with tarfile.open(names) as names_archive:
                characters = json.loads(_read(names_archive, "package/chars.json"))
            view_box = f"0 0 {icons.get('width', 16)} {icons.get('height', 16)}"
            opening = f'<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="{_XLINK}" viewBox="{view_box}">'
            return {
                _normalise(code): opening + icons["icons"][name]["body"] + "</svg>"
                for code, name in characters.items()
                if name in icons["icons"]
            }
        folder = "package/color/svg/" if any(name.startswith("package/color/svg/") for name in files) else "package/"
        # In the archive's own order: going back in a compressed archive means reading it again from its start.
        return {
            _normalise(Path(member.name).stem): _read(archive, member.name).decode()
            for member in archive.getmembers()
            if member.name.startswith(folder) and member.name.endswith(".svg") and "/" not in member.name[len(folder) :]
        }


def _read(archive: tarfile.TarFile, name: str) -> bytes:
    extracted = archive.extractfile(name)
    if extracted is None:
        raise SpriteError(f"{archive.name} holds no file {name}.")
    return extracted.read()


def _normalise(code: str) -> str:
    return "-".join(part for part in code.upper().split("-") if part != "FE0F")


def _code_points(emoji: str) -> str:
    return _normalise("-".join(f"{ord(character):04X}" for character in emoji))


def _rasterise(svg: str | None) -> NDArray[np.uint8]:
    """The art cropped to its visible pixels and centred on a transparent square with a margin of one pixel."""
    blank = np.zeros((SPRITE_SIZE, SPRITE_SIZE, 4), dtype=np.uint8)
    if svg is None:
        return blank
    png = bytes(resvg_py.svg_to_bytes(svg_string=svg, width=256, height=256))
    art = Image.open(io.BytesIO(png)).convert("RGBA")
    box = art.getchannel("A").point(lambda alpha: 255 if alpha > 24 else 0).getbbox()
    if box is None:
        return blank
    art = art.crop(box)
    scale = (SPRITE_SIZE - 2) / max(art.size)
    width, height = (max(1, round(side * scale)) for side in art.size)
    resized = np.asarray(art.resize((width, height), Image.Resampling.LANCZOS))
    top, left = (SPRITE_SIZE - height) // 2, (SPRITE_SIZE - width) // 2
    blank[top : top + height, left : left + width] = resized
    return blank
