"""Protocol messages of the MLLM service to conversations and back."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from services.mllm.batch import FinishReason, GroupEvent, TextEvent
from services.mllm.config import MllmConfig
from services.mllm.conversation import (
    ImagePart,
    Observation,
    ObservedGroup,
    ObservedObject,
    Part,
    RegionPart,
    RoleName,
    RoutedPhrase,
    Text,
    Turn,
    fold_capitals,
)
from services.mllm.sampling import Sampling
from services.mllm.token_choices import TokenChoice
from services.runtime.tensors import tensor_to_message
from superlink.errors import invalid_argument
from superlink.profile import ImageLimits
from superlink.regions import MOST_REGIONS
from superlink.v1 import mllm_pb2, types_pb2

_ROLES: dict[int, RoleName] = {
    mllm_pb2.ROLE_SYSTEM: "system",
    mllm_pb2.ROLE_USER: "user",
    mllm_pb2.ROLE_ASSISTANT: "assistant",
}

_FINISH_REASONS = {
    FinishReason.STOP: mllm_pb2.FINISH_REASON_STOP,
    FinishReason.LENGTH: mllm_pb2.FINISH_REASON_LENGTH,
    FinishReason.OBSERVE: mllm_pb2.FINISH_REASON_OBSERVE,
}


@dataclass(frozen=True)
class MarkedRegion:
    """A visual prompt of a conversation."""

    # Place of the image that it is about among the conversation's images.
    image: int
    region: types_pb2.Region


@dataclass
class Shown:
    """What users show in a conversation, in reading order."""

    images: list[types_pb2.Image] = field(default_factory=list)
    # The number of the message that shows each image.
    turns: list[int] = field(default_factory=list)
    regions: list[MarkedRegion] = field(default_factory=list)


def turns_of(messages: Sequence[mllm_pb2.Message], folds_capitals: bool = False) -> tuple[list[Turn], Shown]:
    """The turns of ``messages``, and what is shown in them.

    ``folds_capitals``: of the model's configuration; holds for what users say.

    Raises SuperlinkError: ``empty_prompt`` when nobody says anything, ``invalid_message`` for a message without a role
    or a part without content, ``region_without_image``, ``too_many_regions``.
    """
    turns: list[Turn] = []
    shown = Shown()
    for number, message in enumerate(messages):
        role = _ROLES.get(message.role)
        if role is None:
            raise invalid_argument(
                "invalid_message", f"Message {number} has no role. Roles are system, user and assistant."
            )
        folds = folds_capitals and role == "user"
        turns.append(Turn(role, tuple(_part(part, number, shown, folds) for part in message.parts)))
    if not any(turn.role == "user" for turn in turns):
        raise invalid_argument("empty_prompt", "The conversation has no user message. Say what you want to know.")
    asked = [turn for turn in turns if turn.role == "user"][-1]
    if not any(isinstance(part, Text) and part.text.strip() for part in asked.parts):
        raise invalid_argument("empty_prompt", "The last user message has no words. Say what you want to know.")
    return turns, shown


def sampling_of(message: mllm_pb2.Sampling, default_max_new_tokens: int, routes: frozenset[str] | None) -> Sampling:
    """Sampling settings with their defaults; ``routes`` may be called. Raises SuperlinkError (``invalid_sampling``)."""
    if not (math.isfinite(message.temperature) and message.temperature >= 0):
        raise invalid_argument("invalid_sampling", f"temperature is {message.temperature}; it must be 0 or more.")
    if not 0 <= message.top_p <= 1:
        raise invalid_argument("invalid_sampling", f"top_p is {message.top_p}; it must lie in 0..1.")
    return Sampling(
        temperature=message.temperature,
        top_p=message.top_p or 1.0,
        seed=message.seed if message.HasField("seed") else None,
        max_new_tokens=message.max_new_tokens or default_max_new_tokens,
        stop=tuple(message.stop),
        routes=routes,
        top_log_probabilities=message.top_log_probabilities if message.HasField("top_log_probabilities") else None,
    )


def text_message(event: TextEvent) -> mllm_pb2.TextDelta:
    """More of a generated answer."""
    return mllm_pb2.TextDelta(text=event.text, tokens=[_choice_message(choice) for choice in event.tokens])


def group_message(event: GroupEvent) -> types_pb2.LinkGroup:
    """A finished group of a generated answer."""
    return types_pb2.LinkGroup(
        route=event.route,
        phrase=event.phrase.text,
        span=types_pb2.Span(start=event.phrase.start, end=event.phrase.end),
        embedding=tensor_to_message(event.embedding),
        log_probability=event.log_probability,
    )


def finish_message(reason: FinishReason, timings: Sequence[types_pb2.Timing]) -> mllm_pb2.Finish:
    """The last event of an answer."""
    return mllm_pb2.Finish(reason=_FINISH_REASONS[reason], timings=timings)


def timings_of(prepare_s: float, queue_s: float, compute_s: float, total_s: float) -> list[types_pb2.Timing]:
    """Where the time of one request went."""
    phases = {"prepare": prepare_s, "queue": queue_s, "compute": compute_s, "total": total_s}
    return [
        types_pb2.Timing(service="mllm", phase=phase, milliseconds=1000 * seconds) for phase, seconds in phases.items()
    ]


def describe_message(config: MllmConfig, max_images: int, limits: ImageLimits) -> mllm_pb2.DescribeMllmResponse:
    """What the model is, which routes it knows, and its limits."""
    return mllm_pb2.DescribeMllmResponse(
        name=config.name,
        version=config.version,
        routes=[
            mllm_pb2.Route(
                token=route.token,
                decoder=route.decoder,
                queries_per_group=route.queries,
                link_width=route.width,
                adapter_version=config.adapter_version,
            )
            for route in config.routes
        ],
        max_tokens=config.max_tokens,
        max_images=max_images,
        max_image_bytes=limits.max_image_bytes,
        max_image_pixels=limits.max_image_pixels,
    )


def _part(part: mllm_pb2.Part, message: int, shown: Shown, folds_capitals: bool) -> Part:
    kind = part.WhichOneof("part")
    if kind == "text":
        return Text(fold_capitals(part.text) if folds_capitals else part.text)
    if kind == "image":
        shown.images.append(part.image)
        shown.turns.append(message)
        return ImagePart(len(shown.images) - 1)
    if kind == "region":
        if not shown.images:
            raise invalid_argument("region_without_image", "A region marks nothing: no image comes before it.")
        if len(shown.regions) == MOST_REGIONS:
            raise invalid_argument("too_many_regions", f"A conversation may mark {MOST_REGIONS} regions at most.")
        shown.regions.append(MarkedRegion(len(shown.images) - 1, part.region))
        return RegionPart(len(shown.regions))
    if kind == "routed_phrase":
        return RoutedPhrase(part.routed_phrase.route, part.routed_phrase.phrase)
    if kind == "observation":
        return Observation(tuple(_observed_group(group) for group in part.observation.groups))
    raise invalid_argument("invalid_message", f"Message {message} has a part without content.")


def _choice_message(choice: TokenChoice) -> mllm_pb2.TokenChoice:
    return mllm_pb2.TokenChoice(
        token=choice.token,
        encoded=choice.encoded,
        log_probability=choice.log_probability,
        alternatives=[_choice_message(other) for other in choice.alternatives],
    )


def _observed_group(group: mllm_pb2.ObservedGroup) -> ObservedGroup:
    objects = tuple(ObservedObject(item.x1, item.y1, item.x2, item.y2, item.score) for item in group.objects)
    return ObservedGroup(group.route, group.phrase, objects, group.failed)
