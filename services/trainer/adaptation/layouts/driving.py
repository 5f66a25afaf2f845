"""Driving: DriveLM on nuScenes, BDD-X as published, and BDD-X with the car's signals as driving models use it."""

from __future__ import annotations

import csv
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from services.trainer.adaptation.converters import Exchange, multi_view, video
from services.trainer.adaptation.layouts.layout import LayoutError, Source, field, read_json, save_picture
from services.trainer.adaptation.multi_view import CAMERAS, stitch
from services.trainer.adaptation.rows import ConversationRow

ACTION_QUESTION = "What is the action of the car?"
REASON_QUESTION = "Why does the car do this?"
CONTROL_QUESTION = "What will the car's speed in m/s and its turning angle in degrees be at the next moment?"

# Segments that a line of BDD-X has room for.
_BDDX_SEGMENTS = 15
# Signals of BDD-X come 32 a clip; a model is shown 8 frames.
_SIGNAL_STEP = 4


def read_drivelm(source: Source) -> Iterator[ConversationRow]:
    """Every question of every key frame, about the six cameras stitched; a picture is made once for a frame."""
    file = source.folder / f"v1_1_{source.split}_nus.json"
    for scene, content in read_json(file).items():
        for frame, entry in field(content, "key_frames", f"{file}, scene {scene}").items():
            place = f"{file}, scene {scene}, frame {frame}"
            path = f"{scene}_{frame}.jpg"
            if not (source.pictures / path).is_file():
                save_picture(
                    stitch(_views(source.folder, field(entry, "image_paths", place), place)), source.pictures / path
                )
            number = 0
            for subject, questions in field(entry, "QA", place).items():
                for question in questions:
                    exchange = (field(question, "Q", place), str(field(question, "A", place)))
                    yield multi_view(f"{scene}_{frame}_{number}_{subject}", path, [exchange])
                    number += 1


def read_bddx(source: Source) -> Iterator[ConversationRow]:
    """BDD-X: what the car does in a part of a video, and why; videos in ``videos/NAME.mov``.

    A file ``SPLIT.txt`` with names of videos, one a line, says which are meant; without it all are.
    """
    file = source.folder / "BDD-X-Annotations_v1.csv"
    listed = source.folder / f"{source.split}.txt"
    # Published lists say "12_NAME", where 12 is the video's number.
    wanted = {line.split("_", 1)[-1] for line in listed.read_text().split()} if listed.is_file() else None
    try:
        with file.open(encoding="utf-8-sig", newline="") as lines:
            for line, entry in enumerate(csv.DictReader(lines), 2):
                name = Path(field(entry, "Input.Video", f"{file}, line {line}") or "").stem
                if not name or (wanted is not None and name not in wanted):
                    continue
                for number in range(1, _BDDX_SEGMENTS + 1):
                    yield from _bddx_segment(entry, number, name, f"{file}, line {line}")
    except OSError as error:
        raise LayoutError(f"{file}: cannot be read ({error.strerror}). This layout needs it.") from error


def read_bddx_signals(source: Source) -> Iterator[ConversationRow]:
    """BDD-X clips with signals: ``info/**/*.json``, each with ``comment`` and ``car_info``; ``videos/``.

    The last signal that is shown is the one to predict.
    """
    files = sorted((source.folder / "info").rglob("*.json"))
    if not files:
        raise LayoutError(f"{source.folder / 'info'}: holds no JSON files, one for each clip.")
    for file in files:
        entry = read_json(file)
        comment: dict[str, str] = {}
        for part in field(entry, "comment", str(file)):
            comment |= part
        signals = field(entry, "car_info", str(file))
        speeds = _signal(field(signals, "speed", str(file)), file)
        angles = _signal(field(signals, "course", str(file)), file)
        before = f"Speed so far: {_listed(speeds[:-1])} m/s. Turning angle so far: {_listed(angles[:-1])} degrees."
        yield video(
            str(field(entry, "id", str(file))),
            f"videos/{Path(field(entry, 'video', str(file))).name}",
            [
                (f"{before}\n{ACTION_QUESTION}", field(comment, "action", str(file))),
                (REASON_QUESTION, field(comment, "justification", str(file))),
                (CONTROL_QUESTION, f"Speed: {speeds[-1]:.2f}, turning angle: {angles[-1]:.2f}"),
            ],
        )


def _views(folder: Path, paths: Mapping[str, str], place: str) -> dict[str, Image.Image]:
    views = {}
    for camera in CAMERAS:
        # Published paths start beside the file's own folder: "../nuscenes/samples/CAM_FRONT/...".
        file = folder / field(paths, camera, f"{place}, image_paths").removeprefix("../")
        try:
            with Image.open(file) as image:
                views[camera] = image.convert("RGB")
        except OSError as error:
            raise LayoutError(f"{file}: is not a readable image, and {place} names it.") from error
    return views


def _bddx_segment(entry: Mapping[str, str], number: int, name: str, place: str) -> Iterator[ConversationRow]:
    start, end, action, reason = (
        (entry.get(f"Answer.{number}{part}") or "").strip() for part in ("start", "end", "action", "justification")
    )
    # Lines have fewer segments than there is room for, and some lack a half.
    if not (start and end and action and reason):
        return
    try:
        clip = (float(start), float(end))
    except ValueError as error:
        raise LayoutError(
            f"{place}: segment {number} lasts from {start!r} to {end!r}, which are no seconds."
        ) from error
    if clip[0] >= clip[1]:
        return
    exchanges: list[Exchange] = [(ACTION_QUESTION, action), (REASON_QUESTION, reason)]
    yield video(f"{name}_{number}", f"videos/{name}.mov", exchanges, clip)


def _signal(values: Any, file: Path) -> list[float]:
    sampled = [float(value) for value in values][::_SIGNAL_STEP]
    if len(sampled) < 2:
        raise LayoutError(f"{file}: has {len(values)} values of a signal, too few to predict one from those before.")
    return sampled


def _listed(values: Sequence[float]) -> str:
    return ", ".join(f"{value:.2f}" for value in values)
