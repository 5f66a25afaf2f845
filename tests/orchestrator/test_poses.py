"""Pose: the one call that is made of two kinds of groups, things and the names of their keypoints."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import grpc
import pytest
from scripted_workers import (
    ScriptedDeployment,
    embedding_of,
    finish,
    group,
    image,
    observe,
    text,
    usage,
    user_message,
)

from superlink.errors import from_rpc_error
from superlink.v1 import decoder_pb2, mllm_pb2, orchestrator_pb2, orchestrator_pb2_grpc

Stub = orchestrator_pb2_grpc.OrchestratorStub


def thing(phrase: str) -> mllm_pb2.GenerateEvent:
    return group(phrase, route="[POSE_OBJECT]")


def keypoint(phrase: str) -> mllm_pb2.GenerateEvent:
    return group(phrase, route="[POSE]")


async def ask(stub: Stub) -> list[orchestrator_pb2.AnswerEvent]:
    request = orchestrator_pb2.AnswerRequest(messages=[user_message("Poses?", image())])
    return [event async for event in stub.Answer(request, timeout=5)]


def asked(requests: Sequence[decoder_pb2.DecodeRequest]) -> list[list[tuple[str, str]]]:
    return [[(each.route, each.phrase) for each in request.groups] for request in requests]


async def test_things_and_their_keypoints_are_one_call(deployment: ScriptedDeployment, orchestrator: Stub) -> None:
    written = [thing("person"), text(": "), keypoint("nose"), text(", "), keypoint("left wrist")]
    deployment.mllm.rounds = [[*written, usage(9, 4, 5), finish()]]

    events = await ask(orchestrator)

    assert asked(deployment.pose.requests) == [
        [("[POSE_OBJECT]", "person"), ("[POSE]", "nose"), ("[POSE]", "left wrist")]
    ]
    assert not deployment.detection.requests
    [result] = [event.tool_result for event in events if event.HasField("tool_result")]
    [found] = result.detections.detections
    assert [each.name for each in found.keypoints.keypoints] == ["nose", "left wrist"]


async def test_a_thing_after_keypoints_begins_another_call(deployment: ScriptedDeployment, orchestrator: Stub) -> None:
    written = [thing("person"), thing("child"), keypoint("nose"), thing("deer"), keypoint("tail")]
    deployment.mllm.rounds = [[*written, usage(9, 4, 5), finish()]]

    await ask(orchestrator)

    assert sorted(asked(deployment.pose.requests)) == [
        [("[POSE_OBJECT]", "deer"), ("[POSE]", "tail")],
        [("[POSE_OBJECT]", "person"), ("[POSE_OBJECT]", "child"), ("[POSE]", "nose")],
    ]


async def test_the_model_counts_things_not_keypoints(deployment: ScriptedDeployment, orchestrator: Stub) -> None:
    deployment.mllm.rounds = [
        [thing("person"), keypoint("nose"), usage(9, 4, 5), observe()],
        [text("One."), usage(9, 4, 5), finish()],
    ]

    await ask(orchestrator)

    [*_, observation] = deployment.mllm.generate_requests[1].messages[-1].parts
    assert [(each.phrase, len(each.objects)) for each in observation.observation.groups] == [("person", 1)]


async def detect(stub: Stub, tool: str = "pose", **fields: Any) -> orchestrator_pb2.DetectResponse:
    return await stub.Detect(orchestrator_pb2.DetectRequest(image=image(), tool=tool, **fields), timeout=5)


async def test_keypoints_that_are_named_are_linked_behind_the_things_in_one_go(
    deployment: ScriptedDeployment, orchestrator: Stub
) -> None:
    response = await detect(
        orchestrator, phrases=["person", "robot"], keypoints=["left wrist", "nose", "left wrist", "antenna"]
    )

    [linked] = deployment.mllm.link_requests
    assert (linked.route, list(linked.phrases)) == ("[POSE_OBJECT]", ["person", "robot"])
    names = ["left wrist", "nose", "antenna"]
    assert [(each.route, each.phrase) for each in linked.following] == [("[POSE]", name) for name in names]
    [decoded] = deployment.pose.requests
    assert [each.phrase for each in decoded.groups] == ["person", "robot", *names]
    assert decoded.groups[3].embedding == embedding_of("nose")
    for found in response.detections.detections:
        assert [each.name for each in found.keypoints.keypoints] == names
    person, robot = response.skeletons
    assert [(bone.first, bone.second) for bone in person.bones] == [(1, 0)]
    assert (list(robot.keypoints), len(robot.bones)) == (names, 0)


async def test_unnamed_keypoints_are_those_of_the_things_and_each_keeps_its_own(
    deployment: ScriptedDeployment, orchestrator: Stub
) -> None:
    response = await detect(orchestrator, phrases=["People on the left", "两只鹿"])

    [linked] = deployment.mllm.link_requests
    assert [each.phrase for each in linked.following] == ["nose", "left wrist", "right wrist", "尾根"]
    found = {each.group: [point.name for point in each.keypoints.keypoints] for each in response.detections.detections}
    assert found == {0: ["nose", "left wrist", "right wrist"], 1: ["nose", "尾根"]}
    assert [list(skeleton.names) for skeleton in response.skeletons] == [["person", "people"], ["鹿"]]


@pytest.mark.parametrize(
    ("fields", "code", "words"),
    [
        ({"phrases": ["person", "salesperson"]}, "unknown_skeleton", "'salesperson'"),
        ({"phrases": ["dog"], "tool": "detection", "keypoints": ["nose"]}, "unsupported_option", "no keypoints"),
    ],
)
async def test_what_has_no_keypoints_is_refused(
    orchestrator: Stub, fields: dict[str, Any], code: str, words: str
) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await detect(orchestrator, **fields)

    error = from_rpc_error(caught.value, "orchestrator")
    assert (error.code, error.http_status) == (code, 400)
    assert words in error.message


async def test_the_limit_of_groups_counts_keypoints(deployment: ScriptedDeployment, orchestrator: Stub) -> None:
    deployment.pose.max_groups = 3

    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await detect(orchestrator, phrases=["person"])

    assert from_rpc_error(caught.value, "orchestrator").code == "too_many_phrases"
