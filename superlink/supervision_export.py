"""What was found as the types of the library ``supervision``, which draws, tracks, filters and counts.

The library is optional, and takes a second to load: it is imported when it is asked for.
"""

from __future__ import annotations

from collections.abc import Sequence
from types import ModuleType
from typing import TYPE_CHECKING, Any

from superlink.detections import Detection, ImageSize

if TYPE_CHECKING:
    import numpy as np
    import supervision
    from numpy.typing import NDArray


def to_detections(
    detections: Sequence[Detection], names: Sequence[str], size: ImageSize | None
) -> supervision.Detections:
    """See ``Findings.to_supervision``. Raises ModuleNotFoundError that says what to install."""
    library = _library()
    import numpy as np

    boxes = [(found.box.x1, found.box.y1, found.box.x2, found.box.y2) for found in detections]
    converted: supervision.Detections = library.Detections(
        xyxy=np.array(boxes, dtype=np.float32).reshape(-1, 4),
        mask=_masks(detections, size),
        confidence=np.array([found.score for found in detections], dtype=np.float32),
        class_id=np.array([names.index(found.phrase) for found in detections], dtype=int),
        data=_names_of(detections),
    )
    return converted


def to_keypoints(detections: Sequence[Detection], names: Sequence[str]) -> supervision.KeyPoints:
    """See ``Findings.to_supervision_keypoints``. Raises ModuleNotFoundError that says what to install."""
    library = _library()
    import numpy as np

    posed = [found for found in detections if found.keypoints]
    places = {name: place for place, name in enumerate(dict.fromkeys(p.name for f in posed for p in f.keypoints))}
    xy = np.zeros((len(posed), len(places), 2), dtype=np.float32)
    confidence = np.zeros((len(posed), len(places)), dtype=np.float32)
    visible = np.zeros((len(posed), len(places)), dtype=bool)
    for row, found in enumerate(posed):
        for point in found.keypoints:
            column = places[point.name]
            xy[row, column] = point.x, point.y
            confidence[row, column] = point.score
            visible[row, column] = point.is_sure
    converted: supervision.KeyPoints = library.KeyPoints(
        xy=xy,
        class_id=np.array([names.index(found.phrase) for found in posed], dtype=int),
        keypoint_confidence=confidence,
        detection_confidence=np.array([found.score for found in posed], dtype=np.float32),
        visible=visible,
        data={**_names_of(posed), "keypoint_name": np.array([list(places)] * len(posed), dtype=str)},
    )
    return converted


def _masks(detections: Sequence[Detection], size: ImageSize | None) -> NDArray[np.bool_] | None:
    """(objects, height, width), empty for objects of tools that do not segment; None when no object has a mask."""
    import numpy as np

    if size is None or not any(found.mask is not None for found in detections):
        return None
    masks = np.zeros((len(detections), size.height, size.width), dtype=bool)
    for mask, found in zip(masks, detections, strict=True):
        if found.mask is not None:
            mask[:] = np.asarray(found.mask.image()) > 0
    return masks


def _names_of(detections: Sequence[Detection]) -> dict[str, Any]:
    import numpy as np

    return {"class_name": np.array([found.phrase for found in detections], dtype=str)}


def _library() -> ModuleType:
    try:
        import supervision
    except ModuleNotFoundError as error:
        if error.name != "supervision":
            raise
        raise ModuleNotFoundError(
            "This needs the extra 'supervision'. Install it with: pip install -c constraints.txt -e '.[supervision]'",
            name="supervision",
        ) from error
    return supervision
