"""Kinds of articulated figures and their keypoints, named in English and Chinese.

A person has the 17 keypoints of COCO, a deer the 17 of AP-10K, in the order of these data sets. The sigmas are theirs
too: how far, relative to a figure's size, annotators scatter around a keypoint. Object keypoint similarity needs them.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class KeypointName:
    """One place of a skeleton."""

    # "left_wrist"
    key: str
    english: str
    chinese: str
    sigma: float


@dataclass(frozen=True)
class Skeleton:
    """A kind of figure."""

    key: str
    english: str
    english_plural: str
    chinese: str
    # The Chinese measure word: 个, 只.
    measure_word: str
    keypoints: tuple[KeypointName, ...]
    # Pairs of keypoint keys between which a line is drawn.
    bones: tuple[tuple[str, str], ...]

    def index(self, key: str) -> int:
        """The place of a keypoint. Raises KeyError for an unknown one."""
        for place, keypoint in enumerate(self.keypoints):
            if keypoint.key == key:
                return place
        raise KeyError(key)

    @property
    def mirrored(self) -> tuple[int, ...]:
        """For every keypoint the place of its counterpart on the other side of the body, or its own."""
        return tuple(self.index(_other_side(keypoint.key)) for keypoint in self.keypoints)


def _other_side(key: str) -> str:
    if key.startswith("left_"):
        return "right_" + key.removeprefix("left_")
    if key.startswith("right_"):
        return "left_" + key.removeprefix("right_")
    return key


def _both_sides(key: str, english: str, chinese: str, sigma: float) -> tuple[KeypointName, KeypointName]:
    return (
        KeypointName(f"left_{key}", f"left {english}", f"左{chinese}", sigma),
        KeypointName(f"right_{key}", f"right {english}", f"右{chinese}", sigma),
    )


def _bones_of_both_sides(*pairs: tuple[str, str]) -> tuple[tuple[str, str], ...]:
    return tuple((f"{side}_{first}", f"{side}_{second}") for side in ("left", "right") for first, second in pairs)


PERSON = Skeleton(
    key="person",
    english="person",
    english_plural="people",
    chinese="人",
    measure_word="个",
    keypoints=(
        KeypointName("nose", "nose", "鼻子", 0.026),
        *_both_sides("eye", "eye", "眼", 0.025),
        *_both_sides("ear", "ear", "耳", 0.035),
        *_both_sides("shoulder", "shoulder", "肩", 0.079),
        *_both_sides("elbow", "elbow", "肘", 0.072),
        *_both_sides("wrist", "wrist", "腕", 0.062),
        *_both_sides("hip", "hip", "髋", 0.107),
        *_both_sides("knee", "knee", "膝", 0.087),
        *_both_sides("ankle", "ankle", "踝", 0.089),
    ),
    bones=(
        *_bones_of_both_sides(
            ("eye", "ear"),
            ("ear", "shoulder"),
            ("shoulder", "elbow"),
            ("elbow", "wrist"),
            ("shoulder", "hip"),
            ("hip", "knee"),
            ("knee", "ankle"),
        ),
        ("nose", "left_eye"),
        ("nose", "right_eye"),
        ("left_eye", "right_eye"),
        ("left_shoulder", "right_shoulder"),
        ("left_hip", "right_hip"),
    ),
)

_FRONT_LEG = (("shoulder", "肩", 0.079), ("elbow", "肘", 0.072), ("front_paw", "前爪", 0.062))
_BACK_LEG = (("hip", "髋", 0.107), ("knee", "膝", 0.087), ("back_paw", "后爪", 0.089))


def _leg(side: str, joints: tuple[tuple[str, str, float], ...]) -> tuple[KeypointName, ...]:
    character = {"left": "左", "right": "右"}[side]
    return tuple(
        KeypointName(f"{side}_{key}", f"{side} {key.replace('_', ' ')}", f"{character}{chinese}", sigma)
        for key, chinese, sigma in joints
    )


DEER = Skeleton(
    key="deer",
    english="deer",
    english_plural="deer",
    chinese="鹿",
    measure_word="只",
    keypoints=(
        *_both_sides("eye", "eye", "眼", 0.025),
        KeypointName("nose", "nose", "鼻子", 0.026),
        KeypointName("neck", "neck", "脖子", 0.035),
        KeypointName("root_of_tail", "root of the tail", "尾根", 0.035),
        *_leg("left", _FRONT_LEG),
        *_leg("right", _FRONT_LEG),
        *_leg("left", _BACK_LEG),
        *_leg("right", _BACK_LEG),
    ),
    bones=(
        ("left_eye", "right_eye"),
        ("left_eye", "nose"),
        ("right_eye", "nose"),
        ("nose", "neck"),
        ("neck", "root_of_tail"),
        ("neck", "left_shoulder"),
        ("neck", "right_shoulder"),
        ("root_of_tail", "left_hip"),
        ("root_of_tail", "right_hip"),
        *_bones_of_both_sides(("shoulder", "elbow"), ("elbow", "front_paw"), ("hip", "knee"), ("knee", "back_paw")),
    ),
)

SKELETONS = (PERSON, DEER)
