"""Random people: build, clothes, view and pose."""

from __future__ import annotations

import colorsys
from dataclasses import dataclass

import numpy as np

from services.trainer.scenes.canvas import Colour, Part, Point, Pose, along, shaded
from services.trainer.scenes.wording import pick

# Lengths of a person 1 tall.
_TORSO, _NECK, _HEAD = 0.29, 0.05, 0.078
_SHOULDERS, _HIPS = 0.105, 0.062
_UPPER_ARM, _FOREARM, _THIGH, _SHIN = 0.16, 0.15, 0.22, 0.22
_SKINS = ((255, 224, 196), (241, 194, 150), (214, 160, 114), (168, 114, 73), (110, 70, 45), (255, 205, 70))
_HAIR = ((40, 30, 25), (92, 58, 32), (190, 140, 70), (150, 60, 30), (120, 120, 125), (230, 210, 150))
_FRONT, _BACK, _SIDE = "front", "back", "side"


@dataclass(frozen=True)
class _Look:
    """What does not change with the pose."""

    skin: Colour
    hair: Colour
    shirt: Colour
    legwear: Colour
    shoes: Colour
    # "none", "short" or "long".
    sleeves: str
    # "trousers", "shorts" or "skirt".
    legs: str
    # "short", "long", "cap" or "bald".
    hairstyle: str
    # Thickness of limbs relative to the usual.
    stout: float


def pose_person(rng: np.random.Generator) -> Pose:
    """A person seen from the front, from behind or from one side, standing, walking, waving, bending or jumping."""
    look = _look(rng)
    view = _FRONT if (chance := rng.random()) < 0.6 else _SIDE if chance < 0.85 else _BACK
    facing = 1.0 if rng.random() < 0.5 else -1.0
    joints = _joints(view, facing, rng)
    near, far = _near_and_far(view, facing)
    body = [
        *_arm(joints, far, look),
        *_leg(joints, far, look),
        *_leg(joints, near, look),
        *_trunk(joints, look),
        *_head(joints, view, facing, look),
        *_arm(joints, near, look),
    ]
    return Pose(tuple(body), joints | _face(joints, view, facing), _BEARERS, _turned_away(view, far))


def _look(rng: np.random.Generator) -> _Look:
    return _Look(
        skin=pick(rng, _SKINS),
        hair=pick(rng, _HAIR),
        shirt=_cloth(rng),
        legwear=_cloth(rng),
        shoes=_cloth(rng),
        sleeves=pick(rng, ("none", "short", "short", "long", "long")),
        legs=pick(rng, ("trousers", "trousers", "shorts", "skirt")),
        hairstyle=pick(rng, ("short", "short", "long", "cap", "bald")),
        stout=float(rng.uniform(0.85, 1.35)),
    )


def _cloth(rng: np.random.Generator) -> Colour:
    red, green, blue = colorsys.hsv_to_rgb(rng.random(), rng.uniform(0.1, 0.95), rng.uniform(0.2, 0.98))
    return round(255 * red), round(255 * green), round(255 * blue)


def _turned_away(view: str, far: str) -> frozenset[str]:
    if view == _SIDE:
        return frozenset(f"{far}_{name}" for name in ("eye", "ear", "shoulder", "hip"))
    return frozenset({"nose", "left_eye", "right_eye"}) if view == _BACK else frozenset()


def _near_and_far(view: str, facing: float) -> tuple[str, str]:
    """Sides of the body in the order of drawing; who faces the right shows the viewer the right side."""
    if view == _SIDE:
        return ("right", "left") if facing > 0 else ("left", "right")
    return "left", "right"


def _joints(view: str, facing: float, rng: np.random.Generator) -> dict[str, Point]:
    lean = np.radians(rng.normal(0, 9) if view != _SIDE else facing * rng.normal(6, 12))
    up = (float(np.sin(lean)), float(-np.cos(lean)))
    across = (-up[1], up[0])
    pelvis = (0.0, 0.0)
    chest = along(pelvis, up, _TORSO)
    joints = {"chest": chest, "pelvis": pelvis, "head": along(chest, up, _NECK + _HEAD)}
    # Seen from the front, the left side of the body is on the right of the picture.
    outward = {_FRONT: 1.0, _BACK: -1.0, _SIDE: 0.0}[view]
    for side, sign in (("left", outward), ("right", -outward)):
        joints[f"{side}_shoulder"] = along(chest, across, sign * _SHOULDERS)
        joints[f"{side}_hip"] = along(pelvis, across, sign * _HIPS)
        if view == _SIDE:
            upper, elbow = rng.uniform(-45, 140), rng.uniform(5, 110)
            thigh, knee = rng.uniform(-30, 75), -rng.uniform(0, 80)
            sign = facing
        else:
            upper = rng.uniform(5, 60) if rng.random() < 0.6 else rng.uniform(60, 165)
            elbow = rng.uniform(-60, 80)
            thigh, knee = rng.uniform(-3, 28), -rng.uniform(0, 30)
        lean_degrees = float(np.degrees(lean))
        _limb(
            joints,
            f"{side}_shoulder",
            (f"{side}_elbow", f"{side}_wrist"),
            (_UPPER_ARM, _FOREARM),
            sign,
            (upper - sign * lean_degrees, elbow),
        )
        _limb(joints, f"{side}_hip", (f"{side}_knee", f"{side}_ankle"), (_THIGH, _SHIN), sign, (thigh, knee))
    return joints


def _limb(
    joints: dict[str, Point],
    start: str,
    names: tuple[str, str],
    lengths: tuple[float, float],
    sign: float,
    angles: tuple[float, float],
) -> None:
    """Place two joints: ``angles`` are degrees towards ``sign``, from straight down and then from the joint before."""
    angle, place = 0.0, joints[start]
    for name, length, bend in zip(names, lengths, angles, strict=True):
        angle += bend
        direction = (sign * float(np.sin(np.radians(angle))), float(np.cos(np.radians(angle))))
        place = joints[name] = along(place, direction, length)


def _between(first: Point, second: Point, share: float) -> Point:
    return first[0] + (second[0] - first[0]) * share, first[1] + (second[1] - first[1]) * share


def _arm(joints: dict[str, Point], side: str, look: _Look) -> list[Part]:
    shoulder, elbow, wrist = (joints[f"{side}_{name}"] for name in ("shoulder", "elbow", "wrist"))
    upper, lower = f"{side}_upper_arm", f"{side}_forearm"
    thick = 0.034 * look.stout
    parts = [
        Part(lower, (elbow, wrist), thick * 0.8, look.shirt if look.sleeves == "long" else look.skin),
        Part(lower, (_between(elbow, wrist, 1.12),), thick, look.skin),
        Part(upper, (shoulder, elbow), thick, look.shirt if look.sleeves == "long" else look.skin),
    ]
    if look.sleeves == "short":
        parts.append(Part(upper, (shoulder, _between(shoulder, elbow, 0.55)), thick * 1.2, look.shirt))
    return parts


def _leg(joints: dict[str, Point], side: str, look: _Look) -> list[Part]:
    hip, knee, ankle = (joints[f"{side}_{name}"] for name in ("hip", "knee", "ankle"))
    thigh, shin = f"{side}_thigh", f"{side}_shin"
    thick = 0.048 * look.stout
    return [
        Part(shin, (knee, ankle), thick * 0.72, look.legwear if look.legs == "trousers" else look.skin),
        Part(shin, (_between(knee, ankle, 1.08),), thick, look.shoes),
        Part(thigh, (hip, knee), thick, look.skin if look.legs == "skirt" else look.legwear),
    ]


def _trunk(joints: dict[str, Point], look: _Look) -> list[Part]:
    thick = 0.05 * look.stout
    left, right = joints["left_shoulder"], joints["right_shoulder"]
    left_hip, right_hip = joints["left_hip"], joints["right_hip"]
    parts = [
        Part("trunk", (joints["chest"], joints["head"]), 0.032, look.skin),
        Part("trunk", (left, right, right_hip, left_hip), thick, look.shirt),
        Part("trunk", (left_hip, right_hip), thick * 1.05, look.legwear),
    ]
    if look.legs == "skirt":
        hems = [_between(joints[f"{side}_hip"], joints[f"{side}_knee"], 0.7) for side in ("right", "left")]
        parts.append(Part("trunk", (left_hip, right_hip, *hems), 0.045, look.legwear))
    return parts


def _head(joints: dict[str, Point], view: str, facing: float, look: _Look) -> list[Part]:
    centre, face = joints["head"], _face(joints, view, facing)
    up = _upwards(joints)
    crown = along(centre, up, 0.028)
    hair = [] if look.hairstyle == "bald" else [Part("head", (crown,), _HEAD * 1.02, look.hair)]
    if look.hairstyle == "long":
        nape = along(centre, up, -_HEAD * 1.3)
        hair.append(Part("head", (crown, nape), _HEAD * (0.95 if view != _SIDE else 0.7), look.hair))
    skull = Part("head", (along(centre, up, -0.008),), _HEAD * 0.97, look.skin)
    if view == _BACK:
        return [skull, *hair]
    parts = [*hair, skull]
    dark: Colour = (35, 30, 30)
    seen = ("left", "right") if view == _FRONT else (_near_and_far(view, facing)[0],)
    parts += [Part("head", (face[f"{side}_ear"],), 0.018, look.skin) for side in seen]
    parts += [Part("head", (face[f"{side}_eye"],), 0.011, dark) for side in seen]
    parts.append(Part("head", (face["nose"],), 0.012, shaded(look.skin, 0.8)))
    parts.append(Part("head", _mouth(face, up), 0.006, (170, 60, 60)))
    if look.hairstyle == "cap":
        brim = along(crown, up, 0.02)
        tip = along(brim, (-up[1], up[0]), facing * 0.11 if view == _SIDE else 0.0)
        parts += [Part("head", (brim,), _HEAD * 0.86, look.shirt), Part("head", (brim, tip), 0.016, look.shirt)]
    elif look.hairstyle != "bald":
        across = (-up[1], up[0])
        fringe = [along(along(crown, up, 0.03), across, shift) for shift in (-0.045, 0.045)]
        parts.append(Part("head", tuple(fringe), 0.026, look.hair))
    return parts


def _face(joints: dict[str, Point], view: str, facing: float) -> dict[str, Point]:
    """Nose, eyes and ears; who shows the back has them on the far side of the head."""
    centre, up = joints["head"], _upwards(joints)
    across = (-up[1], up[0])

    def place(sideways: float, upwards: float) -> Point:
        return along(along(centre, across, sideways), up, upwards)

    if view == _SIDE:
        face = {"nose": place(facing * _HEAD * 0.95, -0.012)}
        for side in ("left", "right"):
            face[f"{side}_eye"] = place(facing * _HEAD * 0.55, 0.012)
            face[f"{side}_ear"] = place(-facing * _HEAD * 0.1, -0.004)
        return face
    left = 1.0 if view == _FRONT else -1.0
    return {
        "nose": place(0.0, -0.014),
        "left_eye": place(left * 0.029, 0.01),
        "right_eye": place(-left * 0.029, 0.01),
        "left_ear": place(left * _HEAD * 0.97, -0.004),
        "right_ear": place(-left * _HEAD * 0.97, -0.004),
    }


def _mouth(face: dict[str, Point], up: Point) -> tuple[Point, Point]:
    across = (-up[1], up[0])
    below = along(face["nose"], up, -0.026)
    return along(below, across, -0.014), along(below, across, 0.014)


def _upwards(joints: dict[str, Point]) -> Point:
    (x1, y1), (x2, y2) = joints["chest"], joints["head"]
    length = float(np.hypot(x2 - x1, y2 - y1))
    return (x2 - x1) / length, (y2 - y1) / length


def _bearers() -> dict[str, frozenset[str]]:
    bearers = {name: frozenset({"head"}) for name in ("nose", "left_eye", "right_eye", "left_ear", "right_ear")}
    for side in ("left", "right"):
        arm = {f"{side}_upper_arm", f"{side}_forearm"}
        leg = {f"{side}_thigh", f"{side}_shin"}
        bearers |= {f"{side}_shoulder": frozenset(arm | {"trunk"}), f"{side}_hip": frozenset(leg | {"trunk"})}
        bearers |= {f"{side}_{name}": frozenset(arm) for name in ("elbow", "wrist")}
        bearers |= {f"{side}_{name}": frozenset(leg) for name in ("knee", "ankle")}
    return bearers


_BEARERS = _bearers()
