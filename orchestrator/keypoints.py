"""Which keypoints a request on the fast path asks for, and which of them belong to what was found."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from orchestrator.catalogue import ToolRoute
from superlink.errors import invalid_argument
from superlink.v1 import decoder_pb2, orchestrator_pb2, types_pb2


@dataclass(frozen=True)
class AskedKeypoints:
    """The keypoints of one request."""

    # Names, each once, in the order in which they are asked for.
    keypoints: tuple[str, ...] = ()
    # One a phrase: the keypoints that its finds have, and the bones between them.
    skeletons: tuple[decoder_pb2.Skeleton, ...] = ()

    def keep_own(self, detections: types_pb2.Detections) -> None:
        """Take keypoints that only other phrases' things have from every find: an antler of a person."""
        for detection in detections.detections:
            if detection.group < len(self.skeletons):
                own = set(self.skeletons[detection.group].keypoints)
                kept = [keypoint for keypoint in detection.keypoints.keypoints if keypoint.name in own]
                detection.keypoints.CopyFrom(types_pb2.Keypoints(keypoints=kept))


def ask_for_keypoints(
    request: orchestrator_pb2.DetectRequest, route: ToolRoute, tool: decoder_pb2.DescribeResponse | None
) -> AskedKeypoints:
    """The keypoints that ``request`` names, or else all that the tool knows of its phrases.

    Raises SuperlinkError when the tool finds no keypoints, or knows none of a phrase and none are named.
    """
    named = tuple(dict.fromkeys(name for given in request.keypoints if (name := " ".join(given.split()))))
    if not route.keypoint_route:
        if named:
            raise invalid_argument("unsupported_option", f"The {route.decoder} tool finds no keypoints; name none.")
        return AskedKeypoints()
    known = list(tool.skeletons) if tool is not None else []
    found = [_skeleton_of(phrase, known) for phrase in request.phrases]
    if named:
        return AskedKeypoints(named, tuple(_restricted(skeleton, named) for skeleton in found))
    skeletons = []
    for phrase, skeleton in zip(request.phrases, found, strict=True):
        if skeleton is None:
            names = ", ".join(name for each in known for name in each.names) or "nothing"
            raise invalid_argument(
                "unknown_skeleton",
                f"The {route.decoder} tool knows no keypoints of {phrase!r}. Name them in 'keypoints', or ask for "
                f"what it knows: {names}.",
            )
        skeletons.append(skeleton)
    everything = dict.fromkeys(name for skeleton in skeletons for name in skeleton.keypoints)
    return AskedKeypoints(tuple(everything), tuple(skeletons))


def _skeleton_of(phrase: str, known: Sequence[decoder_pb2.Skeleton]) -> decoder_pb2.Skeleton | None:
    """The skeleton of what a phrase is about: its name, or a phrase with its name, "the leftmost person"."""
    words = phrase.casefold()
    for skeleton in known:
        for name in skeleton.names:
            # Only Latin letters keep words apart; Chinese has no spaces.
            if re.search(rf"(?<![a-z]){re.escape(name.casefold())}(?![a-z])", words):
                return skeleton
    return None


def _restricted(skeleton: decoder_pb2.Skeleton | None, named: Sequence[str]) -> decoder_pb2.Skeleton:
    """The keypoints ``named``, and those bones of ``skeleton`` that lie between them."""
    if skeleton is None:
        return decoder_pb2.Skeleton(keypoints=named)
    places = {name: place for place, name in enumerate(named)}
    ends = [(skeleton.keypoints[bone.first], skeleton.keypoints[bone.second]) for bone in skeleton.bones]
    bones = [
        decoder_pb2.Bone(first=places[first], second=places[second])
        for first, second in ends
        if first in places and second in places
    ]
    return decoder_pb2.Skeleton(names=skeleton.names, keypoints=named, bones=bones)
