"""Tool calls: how groups become calls, and what became of each call."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from orchestrator.catalogue import ToolRoute
from superlink.v1 import orchestrator_pb2, types_pb2


@dataclass(frozen=True)
class PendingCall:
    """A tool call that is complete and can be sent."""

    id: str
    # None when no decoder serves the route.
    route: ToolRoute | None
    # With their embeddings; spans count over the whole answer.
    groups: tuple[types_pb2.LinkGroup, ...]

    @property
    def decoder(self) -> str:
        """The decoder's name, empty when no decoder serves the route."""
        return self.route.decoder if self.route is not None else ""

    def names_keypoint(self, group: types_pb2.LinkGroup) -> bool:
        """Whether a group names a keypoint, and so means no thing of its own."""
        return self.route is not None and bool(group.route) and group.route == self.route.keypoint_route

    def to_message(self) -> orchestrator_pb2.ToolCall:
        """The call as the client sees it: without embeddings."""
        groups = [
            types_pb2.LinkGroup(
                route=group.route,
                phrase=group.phrase,
                span=group.span if group.HasField("span") else None,
                log_probability=group.log_probability,
            )
            for group in self.groups
        ]
        return orchestrator_pb2.ToolCall(id=self.id, decoder=self.decoder, groups=groups)


@dataclass(frozen=True)
class ToolOutcome:
    """How a call ended; without any result when it failed."""

    call: PendingCall
    detections: types_pb2.Detections | None = None
    images: types_pb2.GeneratedImages | None = None


@dataclass
class ToolCallFormer:
    """Joins consecutive groups of one decoder into calls. What needs an image and what needs none stay apart.

    A call is complete when the next group belongs elsewhere, when it holds as many groups as its decoder takes, or
    when the round ends. Things and then the names of their keypoints are one call; the next thing begins another.
    """

    routes: Mapping[str, ToolRoute]
    _formed: int = 0
    _groups: list[types_pb2.LinkGroup] = field(default_factory=list)

    def add(self, group: types_pb2.LinkGroup) -> list[PendingCall]:
        """Take the next group; returns the calls that it completes."""
        complete: list[PendingCall] = []
        if self._groups and not self._belongs_together(self._groups[-1], group):
            complete += self.flush()
        self._groups.append(group)
        route = self.routes.get(group.route)
        if route is not None and route.max_groups and len(self._groups) >= route.max_groups:
            complete += self.flush()
        return complete

    def flush(self) -> list[PendingCall]:
        """The round has ended: the call under way, if any."""
        if not self._groups:
            return []
        call = PendingCall(f"call_{self._formed}", self.routes.get(self._groups[0].route), tuple(self._groups))
        self._formed += 1
        self._groups = []
        return [call]

    def _belongs_together(self, last: types_pb2.LinkGroup, following: types_pb2.LinkGroup) -> bool:
        if last.route == following.route:
            return True
        one, other = self.routes.get(last.route), self.routes.get(following.route)
        if one is None or other is None:
            return False
        if one.decoder != other.decoder or one.needs_image != other.needs_image:
            return False
        return last.route != one.keypoint_route
