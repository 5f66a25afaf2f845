"""What can be made of an answer about an image: a picture, COCO annotations, supervision's types."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from PIL import Image
from pydantic import Field

from superlink.coco_export import to_coco
from superlink.detections import Detection, ImageSize, Result
from superlink.drawing import annotate
from superlink.images import ImageInput, encode_image, open_upright
from superlink.supervision_export import to_detections, to_keypoints

if TYPE_CHECKING:
    import supervision


class Findings(Result):
    """An answer about an image, and what its tools found there."""

    # Of the image that the tools looked at.
    image: ImageSize | None = None
    # File bytes of the image that the call sent, the last of several; for ``draw``, and never part of a dump.
    source: bytes | None = Field(default=None, exclude=True, repr=False)

    @property
    @abstractmethod
    def detections(self) -> tuple[Detection, ...]:
        """Everything that was found."""

    @property
    @abstractmethod
    def names(self) -> tuple[str, ...]:
        """Every phrase that was looked for, found or not, once each. Places in it are class ids, counted from 0."""

    def draw(self, image: ImageInput | None = None) -> Image.Image:
        """The image with masks, boxes, skeletons and labels; small images are enlarged.

        ``image`` is drawn on instead of the one that the call sent. ``superlink.drawing.annotate`` says more about
        labels that no font on this machine can write.

        Raises ValueError where the call sent no image and none is given, or where its size isn't that of the image
        that the tools looked at.
        """
        content = self.source if image is None else encode_image(image).content
        if content is None:
            raise ValueError("The call sent no image. Say which to draw on: answer.draw('scene.png').")
        upright = open_upright(content)
        if self.image is not None and upright.size != (self.image.width, self.image.height):
            raise ValueError(
                f"The image is {upright.width} x {upright.height} pixels; the answer is about one of "
                f"{self.image.width} x {self.image.height}."
            )
        return annotate(upright, self.detections).image

    def to_coco(
        self,
        *,
        image_id: int = 1,
        file_name: str = "",
        category_ids: Mapping[str, int] | None = None,
        first_annotation_id: int = 1,
    ) -> dict[str, Any]:
        """COCO's annotation format: ``images`` with one entry, ``categories`` and ``annotations`` with scores.

        Masks are run-length encoded, keypoints of little confidence are flagged as hidden. The annotations are valid
        entries of a results file, too. ``category_ids`` are the ids of names; left out: the places in ``names``,
        counted from 1. To put many images into one file, give each an ``image_id`` and go on counting with
        ``first_annotation_id``.

        Raises ValueError for a name that ``category_ids`` lacks.
        """
        return to_coco(
            self.detections,
            self.names,
            self.image,
            image_id=image_id,
            file_name=file_name,
            category_ids=category_ids,
            first_annotation_id=first_annotation_id,
        )

    def to_supervision(self) -> supervision.Detections:
        """``supervision.Detections`` with boxes, masks, scores, class ids (see ``names``) and ``class_name``.

        Where some tools segment and others do not, the masks of the others' objects are empty.
        Raises ModuleNotFoundError without the extra ``supervision``.
        """
        return to_detections(self.detections, self.names, self.image)

    def to_supervision_keypoints(self) -> supervision.KeyPoints:
        """``supervision.KeyPoints`` of the objects that have keypoints, with ``class_name`` and ``keypoint_name``.

        Keypoints of little confidence are not ``visible``. Raises ModuleNotFoundError without the extra
        ``supervision``.
        """
        return to_keypoints(self.detections, self.names)
