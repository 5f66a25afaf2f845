"""What a tool found in an image, as typed values. Coordinates are pixels of the upright image."""

from __future__ import annotations

from PIL import Image
from pydantic import BaseModel, ConfigDict

from superlink.run_length import decode_mask, mask_area

# Confidence from which a keypoint counts as seen.
SURE_KEYPOINT = 0.3


class Result(BaseModel):
    """Base of everything that comes back: never changes after parsing. Fields that a newer gateway adds are ignored."""

    model_config = ConfigDict(extra="ignore", frozen=True)


class ImageSize(Result):
    """Pixels of the upright image."""

    width: int
    height: int


class Box(Result):
    """Corners of a rectangle."""

    x1: float
    y1: float
    x2: float
    y2: float


class RunLengthMask(Result):
    """A mask in COCO's compressed run-length encoding."""

    # Height and width of the image.
    size: tuple[int, int]
    counts: str

    def image(self) -> Image.Image:
        """Mode "L", 255 where the mask is set. Raises ValueError when the encoding is broken."""
        return decode_mask(self.size, self.counts)

    def area(self) -> int:
        """How many pixels are set. Raises ValueError when the encoding is broken."""
        return mask_area(self.counts)


class Keypoint(Result):
    """One named place of an object."""

    name: str
    x: float
    y: float
    # Confidence in 0..1 that the keypoint is seen, and is here.
    score: float

    @property
    def is_sure(self) -> bool:
        """Whether it counts as seen; others are hidden, or guessed."""
        return self.score >= SURE_KEYPOINT


class Detection(Result):
    """One object and the words that asked for it."""

    phrase: str
    box: Box
    # Calibrated probability in 0..1.
    score: float
    # From tools that segment.
    mask: RunLengthMask | None = None
    # From tools that find poses.
    keypoints: tuple[Keypoint, ...] = ()
    # Pairs of keypoints between which a line is drawn, by name; known on the fast path.
    bones: tuple[tuple[str, str], ...] = ()
