"""What a pose estimator is asked for on scenes: the kinds of figures, and all that their keypoints are called.

A name's place in ``POSE_NAMES`` is the row of the estimator's vocabulary that stands for it. "left eye" is one name,
whoever's eye it is.
"""

from __future__ import annotations

from dataclasses import dataclass

from services.trainer.scenes.skeletons import SKELETONS, Skeleton


@dataclass(frozen=True)
class PoseName:
    """A kind of figure, or a keypoint."""

    english: str
    chinese: str
    # Of a keypoint: see ``KeypointName.sigma``.
    sigma: float | None = None


# Rows below this number are kinds of figures.
FIGURE_NAMES = len(SKELETONS)
POSE_NAMES: tuple[PoseName, ...] = tuple(
    dict.fromkeys(
        [
            *(PoseName(skeleton.english, skeleton.chinese) for skeleton in SKELETONS),
            *(
                PoseName(keypoint.english, keypoint.chinese, keypoint.sigma)
                for skeleton in SKELETONS
                for keypoint in skeleton.keypoints
            ),
        ]
    )
)
_ROWS = {name.english: row for row, name in enumerate(POSE_NAMES)}


def figure_row(key: str) -> int:
    """The row of a kind of figure: "person". Raises KeyError for an unknown one."""
    return {skeleton.key: _ROWS[skeleton.english] for skeleton in SKELETONS}[key]


def keypoint_rows(skeleton: Skeleton) -> tuple[int, ...]:
    """The rows of a skeleton's keypoints, in its order."""
    return tuple(_ROWS[keypoint.english] for keypoint in skeleton.keypoints)
