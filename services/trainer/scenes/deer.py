"""Random deer, seen from one side: build, coat, antlers, gait."""

from __future__ import annotations

import numpy as np

from services.trainer.scenes.canvas import Colour, Part, Point, Pose, along, shaded
from services.trainer.scenes.wording import pick

_COATS = ((168, 108, 60), (190, 140, 90), (120, 80, 50), (205, 165, 120), (140, 120, 105), (225, 205, 180))
# Lengths of a deer about 1 tall.
_BODY, _NECK, _MUZZLE = 0.42, 0.26, 0.15
_UPPER, _LOWER = 0.2, 0.22


def pose_deer(rng: np.random.Generator) -> Pose:
    """A deer facing the left or the right: standing, walking, running or grazing."""
    facing = 1.0 if rng.random() < 0.5 else -1.0
    # Who faces the right shows the viewer the right side.
    near, far = ("right", "left") if facing > 0 else ("left", "right")
    coat = pick(rng, _COATS)
    shade = shaded(coat, 0.72)
    pitch = np.radians(rng.normal(0, 7))
    stout = float(rng.uniform(0.85, 1.25))
    forward = (facing * float(np.cos(pitch)), -float(np.sin(pitch)))
    rump = (0.0, 0.0)
    withers = along(rump, forward, _BODY)

    # From the forward direction upwards; a grazing deer lowers its neck.
    raised = np.radians(rng.uniform(35, 80) if rng.random() < 0.75 else rng.uniform(-50, 0))
    neck_up = (facing * float(np.cos(raised)), -float(np.sin(raised)))
    neck = along(withers, neck_up, 0.06)
    head = along(withers, neck_up, _NECK)
    droop = np.radians(rng.uniform(-55, -5)) if raised > 0 else np.radians(rng.uniform(-95, -50))
    muzzle = (facing * float(np.cos(droop)), -float(np.sin(droop)))
    nose = along(head, muzzle, _MUZZLE)

    keypoints: dict[str, Point] = {"nose": nose, "neck": neck, "root_of_tail": along(rump, forward, -0.07)}
    legs: dict[str, list[Part]] = {}
    for side in (near, far):
        colour = coat if side == near else shade
        shift = 0.0 if side == near else 0.03
        shoulder = along(along(withers, forward, -0.03 + shift), (0.0, 1.0), 0.07)
        hip = along(along(rump, forward, 0.02 + shift), (0.0, 1.0), 0.05)
        elbow, front_paw = _leg(shoulder, facing, rng.uniform(-30, 35), rng.uniform(-45, 5))
        knee, back_paw = _leg(hip, facing, rng.uniform(-25, 40), rng.uniform(-50, 0))
        keypoints |= {f"{side}_shoulder": shoulder, f"{side}_elbow": elbow, f"{side}_front_paw": front_paw}
        keypoints |= {f"{side}_hip": hip, f"{side}_knee": knee, f"{side}_back_paw": back_paw}
        legs[side] = [
            *_limb(f"{side}_front_leg", (shoulder, elbow, front_paw), colour, stout),
            *_limb(f"{side}_back_leg", (hip, knee, back_paw), colour, stout),
        ]
    across = (-muzzle[1] * facing, muzzle[0] * facing)
    eye = along(along(head, muzzle, 0.035), across, -0.022)
    keypoints |= {"left_eye": eye, "right_eye": eye}

    parts = [
        *legs[far],
        Part("tail", (keypoints["root_of_tail"], along(keypoints["root_of_tail"], (-facing, -0.5), 0.06)), 0.026, coat),
        Part("body", (rump, withers), 0.115 * stout, coat),
        Part("body", (along(rump, (0.0, 1.0), 0.05), along(withers, (0.0, 1.0), 0.05)), 0.085 * stout, coat),
        *_spots(rump, withers, coat, rng),
        Part("neck", (withers, head), 0.062 * stout, coat),
        *_antlers(head, facing, muzzle, rng),
        Part("head", (along(head, (-facing, -0.6), 0.06), head), 0.024, shade),
        Part("head", (head, along(head, muzzle, 0.09)), 0.055, coat),
        Part("head", (head, nose), 0.036, coat),
        Part("head", (nose,), 0.022, (40, 30, 30)),
        Part("head", (eye,), 0.014, (25, 20, 20)),
        *legs[near],
    ]
    turned_away = frozenset({f"{far}_eye", f"{far}_shoulder", f"{far}_hip"})
    return Pose(tuple(parts), keypoints, _BEARERS, turned_away)


def _leg(start: Point, facing: float, upper: float, bend: float) -> tuple[Point, Point]:
    """The middle joint and the paw; angles in degrees from straight down, forwards."""
    joint = along(start, _down(facing, upper), _UPPER)
    return joint, along(joint, _down(facing, upper + bend), _LOWER)


def _down(facing: float, degrees: float) -> Point:
    return facing * float(np.sin(np.radians(degrees))), float(np.cos(np.radians(degrees)))


def _limb(owner: str, joints: tuple[Point, Point, Point], colour: Colour, stout: float) -> list[Part]:
    top, middle, end = joints
    return [
        Part(owner, (middle, end), 0.026, colour),
        Part(owner, (end,), 0.031, (50, 40, 36)),
        Part(owner, (top, middle), 0.044 * stout, colour),
    ]


def _spots(rump: Point, withers: Point, coat: Colour, rng: np.random.Generator) -> list[Part]:
    if rng.random() < 0.5:
        return []
    light = shaded(coat, 1.35)
    return [
        Part(
            "body",
            ((rump[0] + (withers[0] - rump[0]) * along, rump[1] + (withers[1] - rump[1]) * along + height),),
            0.013,
            light,
        )
        for along, height in rng.uniform((0.0, -0.07), (1.0, 0.06), (9, 2)).tolist()
    ]


def _antlers(head: Point, facing: float, muzzle: Point, rng: np.random.Generator) -> list[Part]:
    """A main beam with tines, or nothing."""
    if rng.random() < 0.4:
        return []
    up = (muzzle[1] * facing, -muzzle[0] * facing)
    colour = pick(rng, ((214, 190, 150), (110, 80, 50), (235, 225, 205)))
    foot = along(head, up, 0.04)
    middle = along(along(foot, up, 0.1), (-facing, 0.0), 0.05)
    tip = along(middle, up, float(rng.uniform(0.06, 0.13)))
    tines = [along(middle, (facing, -0.6), 0.06), along(middle, (-facing, -0.6), 0.06)]
    return [
        Part("antlers", (foot, middle), 0.012, colour),
        Part("antlers", (middle, tip), 0.011, colour),
        *(Part("antlers", (middle, tine), 0.009, colour) for tine in tines),
    ]


def _bearers() -> dict[str, frozenset[str]]:
    bearers = {name: frozenset({"head"}) for name in ("left_eye", "right_eye", "nose")}
    bearers |= {"neck": frozenset({"neck", "body"}), "root_of_tail": frozenset({"tail", "body"})}
    for side in ("left", "right"):
        front, back = f"{side}_front_leg", f"{side}_back_leg"
        bearers |= {f"{side}_shoulder": frozenset({front, "body", "neck"}), f"{side}_hip": frozenset({back, "body"})}
        bearers |= {f"{side}_{name}": frozenset({front}) for name in ("elbow", "front_paw")}
        bearers |= {f"{side}_{name}": frozenset({back}) for name in ("knee", "back_paw")}
    return bearers


_BEARERS = _bearers()
