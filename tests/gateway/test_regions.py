"""What clients mark on images, over chat and the fast path."""

import json
from typing import Any

import pytest
from live_gateway import LiveGateway
from request_bodies import chat_body, data_url, encode_picture
from scripted_workers import detection, detections, finish, group, text, usage

from superlink.regions import MOST_REGIONS
from superlink.v1 import types_pb2

# Of 200 x 100 pixels the first ten of the first column.
MASK = {"size": [100, 200], "counts": "0:f`c0"}


def marked(*regions: dict[str, Any], images: int = 1) -> dict[str, Any]:
    body = chat_body("What is this?", *[encode_picture()] * images)
    content = body["messages"][0]["content"]
    content[-1:-1] = [{"type": "region", "region": region} for region in regions]
    return body


async def test_marks_reach_the_model_between_image_and_words(gateway: LiveGateway) -> None:
    gateway.workers.mllm.rounds = [[text("It is a dog."), usage(9, 4, 3), finish()]]
    regions = [
        {"box": [1, 2, 30, 40]},
        {"points": [[5, 6], [7.5, 8]]},
        {"stroke": {"points": [[1, 1], [20, 20]], "width": 4}},
        {"mask": MASK},
    ]

    response = await gateway.http.post("/v1/chat/completions", json=marked(*regions))

    assert response.status_code == 200
    parts = gateway.workers.mllm.generate_requests[0].messages[0].parts
    assert [part.WhichOneof("part") for part in parts] == ["image", *["region"] * 4, "text"]
    box, points, stroke, mask = (part.region for part in parts[1:5])
    assert box.box == types_pb2.Box(x1=1, y1=2, x2=30, y2=40)
    assert [(point.x, point.y) for point in points.points.points] == [(5, 6), (7.5, 8)]
    assert stroke.stroke.width == 4
    assert (mask.mask.height, mask.mask.width, mask.mask.counts) == (100, 200, MASK["counts"].encode())


async def test_a_mark_of_a_later_message_is_on_the_image_shown_before(gateway: LiveGateway) -> None:
    body = chat_body("What do you see?", encode_picture())
    body["messages"] += [
        {"role": "assistant", "content": "A dog."},
        {
            "role": "user",
            "content": [
                {"type": "region", "region": {"points": [[199, 99]]}},
                {"type": "text", "text": "And what is this?"},
            ],
        },
    ]

    response = await gateway.http.post("/v1/chat/completions", json=body)

    assert response.status_code == 200
    assert gateway.workers.mllm.generate_requests[0].messages[2].parts[0].HasField("region")


@pytest.mark.parametrize(
    ("body", "code"),
    [
        pytest.param(marked({"box": [0, 0, 201, 50]}), "region_outside_image", id="outside"),
        pytest.param(marked({"box": [10, 10, 10, 50]}), "empty_region", id="empty box"),
        pytest.param(marked({"points": [[-1, 3]]}), "region_outside_image", id="negative"),
        pytest.param(marked({"mask": MASK | {"size": [200, 100]}}), "invalid_region", id="other size"),
        pytest.param(marked({"mask": MASK | {"counts": "ü"}}), "invalid_region", id="broken mask"),
        pytest.param(marked({"points": [[1, 1]]}, images=0), "region_without_image", id="no image"),
        pytest.param(marked(*[{"points": [[1, 1]]}] * (MOST_REGIONS + 1)), "too_many_regions", id="many"),
        pytest.param(marked({}), "invalid_request", id="nothing"),
        pytest.param(marked({"box": [1, 2, 3, 4], "points": [[1, 1]]}), "invalid_request", id="two kinds"),
        pytest.param(marked({"mask": MASK | {"size": [100]}}), "invalid_request", id="size of one"),
        pytest.param(marked({"circle": [1, 2, 3]}), "invalid_request", id="unknown kind"),
        pytest.param(marked({"points": []}), "invalid_request", id="no points"),
    ],
)
async def test_marks_that_mean_nothing_stop_at_the_gateway(
    gateway: LiveGateway, body: dict[str, Any], code: str
) -> None:
    response = await gateway.http.post("/v1/chat/completions", json=body)

    assert (response.status_code, response.json()["code"]) == (400, code)
    assert not gateway.workers.mllm.generate_requests


async def test_marked_things_are_segmented_from_a_form_and_from_json(gateway: LiveGateway, png: bytes) -> None:
    regions = [{"points": [[40, 30]]}, {"box": [1, 2, 30, 40]}]

    form = await gateway.http.post(
        "/v1/segment", files={"image": ("scene.png", png, "image/png")}, data={"regions": json.dumps(regions)}
    )
    document = await gateway.http.post(
        "/v1/segment", json={"image": data_url(png), "categories": ["dog"], "regions": regions}
    )

    assert [each["phrase"] for each in form.json()["categories"]] == ["region 1", "region 2"]
    assert [each["phrase"] for each in document.json()["categories"]] == ["dog", "region 1", "region 2"]
    assert {each["category"] for each in document.json()["detections"]} == {"dog", "region 1", "region 2"}
    alone, beside = gateway.workers.segmentation.requests
    assert [each.HasField("region") for each in alone.groups] == [True, True]
    assert beside.groups[2].region.box == types_pb2.Box(x1=1, y1=2, x2=30, y2=40)


@pytest.mark.parametrize(
    ("path", "regions", "code"),
    [
        ("/v1/segment", '[{"box": [0, 0, 500, 50]}]', "region_outside_image"),
        ("/v1/segment", "[{", "invalid_request"),
        ("/v1/segment", "[]", "empty_prompt"),
        ("/v1/detect", '[{"box": [0, 0, 50, 50]}]', "invalid_request"),
    ],
)
async def test_wrong_regions_of_the_fast_path_are_named(
    gateway: LiveGateway, png: bytes, path: str, regions: str, code: str
) -> None:
    response = await gateway.http.post(
        path, files={"image": ("scene.png", png, "image/png")}, data={"regions": regions}
    )

    assert (response.status_code, response.json()["code"]) == (400, code)


@pytest.mark.parametrize("told", [("tool_calls", "image"), ("tool_calls",)])
async def test_what_a_tool_found_can_be_meant_in_the_next_turn(gateway: LiveGateway, told: tuple[str, ...]) -> None:
    """The model never read the boxes of the first answer; "dog 2" of the second turn is the second best of them."""
    gateway.workers.mllm.rounds = [[text("Here: dog"), group("dog", 6), text("."), usage(9, 4, 3), finish()]]
    gateway.workers.detection.script = lambda request: [
        detections([detection(0, 0.6, (100, 50, 150, 100)), detection(0, 0.9, (0, 0, 20, 10))])
    ]
    body = chat_body("Find the dogs.", encode_picture())
    first = (await gateway.http.post("/v1/chat/completions", json=body)).json()
    message = first["choices"][0]["message"]
    message["superlink"] = {name: message["superlink"][name] for name in told}
    body["messages"] += [message, {"role": "user", "content": "Now mask the second one."}]
    gateway.workers.mllm.rounds = [[group("dog 2", 0, "[SEG]"), usage(9, 4, 3), finish()]]

    response = await gateway.http.post("/v1/chat/completions", json=body)

    assert response.status_code == 200
    earlier = gateway.workers.mllm.generate_requests[1].messages[1].parts
    assert [part.WhichOneof("part") for part in earlier] == ["text", "routed_phrase", "text", "observation"]
    [asked] = gateway.workers.segmentation.requests
    assert asked.groups[0].region.box == types_pb2.Box(x1=100, y1=50, x2=150, y2=100)


async def test_boxes_that_no_tool_sends_are_refused(gateway: LiveGateway) -> None:
    phrase = {"phrase": "dog", "route": "[DET]", "found": True, "detections": [{"bbox": [1, 2], "score": 0.5}]}
    call = {"id": "call_0", "tool": "detection", "status": "completed", "phrases": [phrase]}
    said = {"tool_calls": [call], "image": {"width": 200, "height": 100}}
    body = chat_body("Find the dogs.", encode_picture())
    body["messages"] += [
        {"role": "assistant", "content": "Here.", "superlink": said},
        {"role": "user", "content": "Now mask the second one."},
    ]

    response = await gateway.http.post("/v1/chat/completions", json=body)

    assert (response.status_code, response.json()["code"]) == (400, "invalid_conversation")
