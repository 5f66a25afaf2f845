"""What a phrase refers to: a region that the user marked ("region 1"), or a thing that a tool reported ("dog 2")."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

from orchestrator.catalogue import ToolRoute
from superlink.image_header import upright_size
from superlink.profile import ImageLimits
from superlink.v1 import mllm_pb2, types_pb2

_NUMBERED = re.compile(r"(?P<words>.*\S)\s*(?<!\d)(?P<number>\d{1,4})")
_REGION_WORDS = frozenset({"region", "区域"})


class References:
    """Resolves the phrases of one conversation, as far as it has been written.

    Only what was marked on, or reported about, the image that tools look at can be meant.
    """

    def __init__(self, messages: Iterable[mllm_pb2.Message], limits: ImageLimits) -> None:
        """``messages``: the conversation as the MLLM reads it."""
        self._limits = limits
        self._image: types_pb2.Image | None = None
        # By number; those on earlier images count, but mean nothing any more.
        self._regions: list[types_pb2.Region | None] = []
        # The latest report on each phrase.
        self._reported: dict[str, mllm_pb2.ObservedGroup] = {}
        for message in messages:
            for part in message.parts:
                self._read(part)

    def region_of(self, phrase: str) -> types_pb2.Region | None:
        """The region that ``phrase`` refers to, in pixels of the upright image; None when it refers to none.

        Raises SuperlinkError for an image that cannot be read.
        """
        match = _NUMBERED.fullmatch(phrase.strip())
        if match is None:
            return None
        words, place = _key(match["words"]), int(match["number"]) - 1
        if words in _REGION_WORDS:
            return self._regions[place] if 0 <= place < len(self._regions) else None
        reported = self._reported.get(words)
        if reported is None or self._image is None or not 0 <= place < len(reported.objects):
            return None
        return types_pb2.Region(box=_pixels(reported.objects[place], *upright_size(self._image.encoded, self._limits)))

    def _read(self, part: mllm_pb2.Part) -> None:
        match part.WhichOneof("part"):
            case "image":
                self._image = part.image
                self._regions = [None] * len(self._regions)
                self._reported.clear()
            case "region":
                self._regions.append(part.region)
            case "observation":
                self._reported.update((_key(group.phrase), group) for group in part.observation.groups)


def refer(group: types_pb2.LinkGroup, routes: Mapping[str, ToolRoute], references: References) -> None:
    """Give ``group`` the region that its phrase refers to, where its tool takes one."""
    route = routes.get(group.route)
    region = references.region_of(group.phrase) if route is not None and route.takes_regions else None
    if region is not None:
        group.region.CopyFrom(region)


def _key(words: str) -> str:
    return " ".join(words.split()).casefold()


def _pixels(reported: mllm_pb2.ObservedObject, width: int, height: int) -> types_pb2.Box:
    """The box of a report in thousandths, a pixel wide and high at least."""
    x1, x2 = _side(reported.x1, reported.x2, width)
    y1, y2 = _side(reported.y1, reported.y2, height)
    return types_pb2.Box(x1=x1, y1=y1, x2=x2, y2=y2)


def _side(first: int, last: int, pixels: int) -> tuple[float, float]:
    start = min(first * pixels / 1000, pixels - 1)
    return start, max(last * pixels / 1000, start + 1)
