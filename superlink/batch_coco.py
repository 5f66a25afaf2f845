"""What was found for the lines of a batch as one COCO file; no more than a line of it is ever in memory."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from superlink.batch_results import LineResult
from superlink.findings import Findings
from superlink.plain_answers import PlainAnswer
from superlink.rest import Call, answer_fields
from superlink.results import Answer, DetectionAnswer

# Of a keypoint that is not there: x, y, and COCO's flag for "not labelled".
_NO_KEYPOINT = (0, 0, 0)
# Answers know the conversation that they belong to; nobody goes on from these.
_CALL = Call("/v1/chat/completions", {}, json={"messages": []})


@dataclass
class CocoSummary:
    """What is in a COCO file."""

    images: int = 0
    annotations: int = 0
    categories: int = 0
    # Lines that are not in it: errors, and answers without places.
    left_out: int = 0


@dataclass
class _Category:
    """One name over all lines."""

    id: int
    keypoints: list[str] = field(default_factory=list)
    bones: dict[tuple[str, str], None] = field(default_factory=dict)

    def document(self, name: str) -> dict[str, Any]:
        document: dict[str, Any] = {"id": self.id, "name": name}
        if self.keypoints:
            places = {keypoint: place for place, keypoint in enumerate(self.keypoints, 1)}
            document |= {
                "keypoints": self.keypoints,
                "skeleton": [[places[end] for end in bone] for bone in self.bones],
            }
        return document


def write_coco(lines: Iterable[LineResult], file: Path) -> CocoSummary:
    """Write ``file``, in one step, with an image for each line and its custom_id as the image's file name.

    Names have one id over all lines. Raises OSError where it cannot be written.
    """
    summary = CocoSummary()
    categories: dict[str, _Category] = {}
    file.parent.mkdir(parents=True, exist_ok=True)
    partial = file.with_name(f"{file.name}.part")
    with ExitStack() as stack:
        images = stack.enter_context(tempfile.TemporaryFile("w+", encoding="utf-8"))
        annotations = stack.enter_context(tempfile.TemporaryFile("w+", encoding="utf-8"))
        stack.callback(partial.unlink, missing_ok=True)
        for line in lines:
            found = _findings(line)
            if found is None:
                summary.left_out += 1
                continue
            _add(found, line.custom_id or "", categories, summary, images, annotations)
        with partial.open("w", encoding="utf-8") as written:
            written.write('{"images":[')
            _join(written, _again(images))
            written.write('],"categories":')
            json.dump([each.document(name) for name, each in categories.items()], written, ensure_ascii=False)
            written.write(',"annotations":[')
            by_id = {each.id: each for each in categories.values()}
            _join(written, (_filled(entry, by_id) for entry in _again(annotations)))
            written.write("]}\n")
        partial.replace(file)
    summary.categories = len(categories)
    return summary


def _findings(line: LineResult) -> Findings | None:
    body = line.body
    if body is None:
        return None
    if "choices" in body:
        return Answer.model_validate(answer_fields(_CALL, body))
    if "text" in body:
        return PlainAnswer.model_validate(body)
    return DetectionAnswer.model_validate(body) if "detections" in body else None


def _add(
    found: Findings,
    name: str,
    categories: dict[str, _Category],
    summary: CocoSummary,
    images: IO[str],
    annotations: IO[str],
) -> None:
    for each in found.names:
        categories.setdefault(each, _Category(len(categories) + 1))
    summary.images += 1
    document = found.to_coco(
        image_id=summary.images,
        file_name=name,
        category_ids={each: category.id for each, category in categories.items()},
        first_annotation_id=summary.annotations + 1,
    )
    named: dict[int, tuple[list[str], _Category]] = {}
    for entry in document["categories"]:
        keypoints = entry.get("keypoints", [])
        category = categories[entry["name"]]
        named[category.id] = (keypoints, category)
        category.keypoints += [each for each in keypoints if each not in category.keypoints]
        category.bones |= {(keypoints[a - 1], keypoints[b - 1]): None for a, b in entry.get("skeleton", [])}
    for image in document["images"]:
        images.write(json.dumps(image, ensure_ascii=False) + "\n")
    for annotation in document["annotations"]:
        if "keypoints" in annotation:
            # From the order of this answer to that of all.
            keypoints, category = named[annotation["category_id"]]
            triples = dict(zip(keypoints, _triples(annotation["keypoints"]), strict=True))
            annotation["keypoints"] = [
                value for each in category.keypoints for value in triples.get(each, _NO_KEYPOINT)
            ]
        annotations.write(json.dumps(annotation, ensure_ascii=False) + "\n")
        summary.annotations += 1


def _filled(line: str, categories: Mapping[int, _Category]) -> str:
    """An annotation with keypoints that only later lines had."""
    if '"keypoints"' not in line:
        return line
    annotation = json.loads(line)
    missing = len(categories[annotation["category_id"]].keypoints) - len(annotation["keypoints"]) // 3
    annotation["keypoints"] += _NO_KEYPOINT * missing
    return json.dumps(annotation, ensure_ascii=False)


def _triples(values: list[float]) -> list[tuple[float, ...]]:
    return [tuple(values[start : start + 3]) for start in range(0, len(values), 3)]


def _again(file: IO[str]) -> Iterator[str]:
    file.seek(0)
    return (line.rstrip("\n") for line in file)


def _join(written: IO[str], entries: Iterable[str]) -> None:
    for place, entry in enumerate(entries):
        written.write(f",\n{entry}" if place else entry)
