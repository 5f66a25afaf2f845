"""General layouts: a folder a class, COCO, Visual Genome's regions, image and caption."""

from __future__ import annotations

import csv
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from pycocotools import mask as run_lengths

from services.mllm.grounding_text import Corners
from services.trainer.adaptation.converters import (
    Picture,
    classification,
    grounding,
    lettered_classification,
    marked_region,
    region,
    visual_question,
)
from services.trainer.adaptation.layouts.layout import (
    IMAGE_SUFFIXES,
    LayoutError,
    Source,
    field,
    picture,
    read_json,
    read_json_lines,
    save_picture,
)
from services.trainer.adaptation.region_marks import mark_region
from services.trainer.adaptation.rows import ConversationRow

CAPTION_QUESTION = "Describe the image briefly."
LETTERED_QUESTION = "Which class does the image belong to?"


def read_class_folders(source: Source) -> Iterator[ConversationRow]:
    """``SPLIT/CLASS/IMAGE``, or ``CLASS/IMAGE``; "tennis_court" is spoken of as "tennis court"."""
    for key, shown, label, labels in _classes(source):
        yield classification(key, shown, label, labels)


def read_lettered_class_folders(source: Source) -> Iterator[ConversationRow]:
    """The same, with the classes as lettered options."""
    for key, shown, label, labels in _classes(source):
        yield lettered_classification(key, shown, LETTERED_QUESTION, label, labels)


def read_coco(source: Source) -> Iterator[ConversationRow]:
    """Every image with all its boxes, category by category; crowds are left out."""
    file, images, categories, annotations = _coco(source)
    for key, image in images.items():
        things: dict[str, list[Corners]] = {}
        for annotation in annotations.get(key, []):
            left, top, width, height = field(annotation, "bbox", f"{file}, annotation {annotation.get('id')}")
            box = (left, top, left + width, top + height)
            things.setdefault(_category(annotation, categories, file), []).append(box)
        if things:
            yield grounding(str(key), image, things)


def read_coco_marked(source: Source) -> Iterator[ConversationRow]:
    """Every annotated thing on an image of its own, marked by its box, mask or contour, to be named."""
    file, images, categories, annotations = _coco(source)
    for key, image in images.items():
        for annotation in annotations.get(key, []):
            number = annotation.get("id")
            outline = field(annotation, "segmentation", f"{file}, annotation {number}")
            packed = run_lengths.frPyObjects(outline, image.height, image.width)
            if isinstance(packed, list):
                packed = run_lengths.merge(packed)
            mask = np.asarray(run_lengths.decode(packed), dtype=bool)
            if not mask.any():
                # Polygons thinner than a pixel; there is nothing to show.
                continue
            name = f"{Path(image.path).stem}_{number}_{source.mark}.jpg"
            with Image.open(source.folder / image.path) as whole:
                save_picture(mark_region(whole, mask, source.mark), source.pictures / name)
            shown = Picture(name, image.width, image.height)
            yield marked_region(str(number), shown, source.mark, _category(annotation, categories, file))


def read_visual_genome(source: Source) -> Iterator[ConversationRow]:
    """Every described region; the box stands in the question."""
    file = source.folder / "region_descriptions.json"
    for entry in read_json(file):
        key = field(entry, "id", str(file))
        path = _first_file(source.folder, [f"{folder}/{key}.jpg" for folder in ("VG_100K", "VG_100K_2")])
        shown = picture(source.folder, path)
        for described in field(entry, "regions", f"{file}, image {key}"):
            place = f"{file}, image {key}"
            left, top, width, height = (float(field(described, name, place)) for name in ("x", "y", "width", "height"))
            # Some regions reach out of their image.
            box = (max(0.0, left), max(0.0, top), min(shown.width, left + width), min(shown.height, top + height))
            yield region(str(field(described, "region_id", place)), shown, box, field(described, "phrase", place))


def read_pmc_oa(source: Source) -> Iterator[ConversationRow]:
    """PMC-OA: ``SPLIT.jsonl`` with ``image`` and ``caption``, images in ``images/``."""
    for place, entry in read_json_lines(source.folder / f"{source.split}.jsonl"):
        yield _captioned(source, f"images/{field(entry, 'image', place)}", field(entry, "caption", place))


def read_quilt(source: Source) -> Iterator[ConversationRow]:
    """Quilt-1M: ``quilt_1M_lookup.csv`` with ``image_path``, ``caption`` and ``split``, images in ``images/``."""
    file = source.folder / "quilt_1M_lookup.csv"
    try:
        with file.open(encoding="utf-8", newline="") as lines:
            for number, entry in enumerate(csv.DictReader(lines), 2):
                place = f"{file}, line {number}"
                if field(entry, "split", place) == source.split:
                    yield _captioned(source, f"images/{field(entry, 'image_path', place)}", entry["caption"])
    except OSError as error:
        raise LayoutError(f"{file}: cannot be read ({error.strerror}). This layout needs it.") from error


def _captioned(source: Source, path: str, caption: str) -> ConversationRow:
    return visual_question(Path(path).stem, picture(source.folder, path), [(CAPTION_QUESTION, caption.strip())])


def _classes(source: Source) -> Iterator[tuple[str, Picture, str, list[str]]]:
    """Key, picture, class and all classes."""
    inner = source.folder / source.split
    folder = inner if inner.is_dir() else source.folder
    if not folder.is_dir():
        raise LayoutError(f"{folder}: there is no such folder.")
    names = sorted(entry.name for entry in folder.iterdir() if entry.is_dir())
    if not names:
        raise LayoutError(f"{folder}: holds no folders, one for each class.")
    labels = [name.replace("_", " ") for name in names]
    for name, label in zip(names, labels, strict=True):
        for file in sorted((folder / name).iterdir()):
            if file.suffix.lower() in IMAGE_SUFFIXES:
                shown = picture(source.folder, file.relative_to(source.folder).as_posix())
                yield f"{name}/{file.stem}", shown, label, labels


def _coco(source: Source) -> tuple[Path, dict[int, Picture], dict[int, str], dict[int, list[dict[str, Any]]]]:
    """The file, its images by id, its categories by id, and the annotations of each image."""
    file = source.folder / "annotations" / f"instances_{source.split}.json"
    content = read_json(file)
    images = {}
    for image in field(content, "images", str(file)):
        path = _first_file(source.folder, [f"{source.split}/{image['file_name']}", f"images/{image['file_name']}"])
        images[image["id"]] = Picture(path, image["width"], image["height"])
    categories = {category["id"]: str(category["name"]) for category in field(content, "categories", str(file))}
    annotations: dict[int, list[dict[str, Any]]] = {}
    for annotation in field(content, "annotations", str(file)):
        if not annotation.get("iscrowd"):
            annotations.setdefault(annotation["image_id"], []).append(annotation)
    return file, images, categories, annotations


def _category(annotation: Mapping[str, Any], categories: Mapping[int, str], file: Path) -> str:
    key: Any = annotation.get("category_id")
    if key not in categories:
        raise LayoutError(f"{file}, annotation {annotation.get('id')}: there is no category {key}.")
    return categories[key]


def _first_file(folder: Path, paths: list[str]) -> str:
    for path in paths:
        if (folder / path).is_file():
            return path
    raise LayoutError(f"{folder}: has neither {' nor '.join(paths)}.")
