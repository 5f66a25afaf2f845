"""What was found as COCO's annotation format, which labelling tools and pycocotools read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from superlink.detections import Detection, ImageSize

# COCO's visibility flags of a keypoint.
_UNKNOWN, _HIDDEN, _SEEN = 0, 1, 2


def to_coco(
    detections: Sequence[Detection],
    names: Sequence[str],
    size: ImageSize | None,
    *,
    image_id: int,
    file_name: str,
    category_ids: Mapping[str, int] | None,
    first_annotation_id: int,
) -> dict[str, Any]:
    """``images`` (one entry), ``categories`` and ``annotations``; see ``Findings.to_coco``.

    Raises ValueError for a name that ``category_ids`` lacks.
    """
    ids = dict(category_ids) if category_ids is not None else {name: place for place, name in enumerate(names, 1)}
    unknown = [name for name in names if name not in ids]
    if unknown:
        raise ValueError(f"category_ids has no id for {', '.join(map(repr, unknown))}.")
    keypoint_names = {name: _keypoint_names(detections, name) for name in names}
    image: dict[str, Any] = {"id": image_id, "file_name": file_name}
    if size is not None:
        image |= {"width": size.width, "height": size.height}
    return {
        "images": [image],
        "categories": [_category(detections, name, ids[name], keypoint_names[name]) for name in names],
        "annotations": [
            {
                "id": first_annotation_id + place,
                "image_id": image_id,
                "category_id": ids[found.phrase],
                **_annotation(found, keypoint_names[found.phrase]),
            }
            for place, found in enumerate(detections)
        ],
    }


def _category(detections: Sequence[Detection], name: str, number: int, keypoint_names: list[str]) -> dict[str, Any]:
    category: dict[str, Any] = {"id": number, "name": name}
    if keypoint_names:
        bones = dict.fromkeys(bone for found in detections if found.phrase == name for bone in found.bones)
        # Places in the list of keypoints, counted from 1.
        places = {keypoint: place for place, keypoint in enumerate(keypoint_names, 1)}
        skeleton = [[places[end] for end in bone] for bone in bones if set(bone) <= places.keys()]
        category |= {"keypoints": keypoint_names, "skeleton": skeleton}
    return category


def _annotation(found: Detection, keypoint_names: list[str]) -> dict[str, Any]:
    width, height = found.box.x2 - found.box.x1, found.box.y2 - found.box.y1
    annotation: dict[str, Any] = {
        "bbox": [found.box.x1, found.box.y1, width, height],
        "area": width * height,
        "iscrowd": 0,
        "score": found.score,
    }
    if found.mask is not None:
        annotation |= {
            "segmentation": {"size": list(found.mask.size), "counts": found.mask.counts},
            "area": found.mask.area(),
        }
    if found.keypoints:
        known = {point.name: point for point in found.keypoints}
        triples: list[float] = []
        for name in keypoint_names:
            point = known.get(name)
            triples += (0, 0, _UNKNOWN) if point is None else (point.x, point.y, _SEEN if point.is_sure else _HIDDEN)
        annotation |= {"keypoints": triples, "num_keypoints": len(known)}
    return annotation


def _keypoint_names(detections: Sequence[Detection], phrase: str) -> list[str]:
    """Of everything that was found for ``phrase``; objects of one answer may differ in what was asked about them."""
    return list(
        dict.fromkeys(point.name for found in detections if found.phrase == phrase for point in found.keypoints)
    )
