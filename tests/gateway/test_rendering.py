"""What the typed endpoints add to their results on request: pictures, PNG masks, COCO's format."""

import base64
import io
import json
from typing import Any

import httpx
import pytest
from api_key_maker import expect_problem
from live_gateway import LiveGateway
from PIL import Image
from pycocotools.coco import COCO
from request_bodies import data_url, encode_picture
from scripted_workers import detection, detections

from superlink.drawing import font_for
from superlink.run_length import encode_mask
from superlink.v1 import types_pb2

pytestmark = pytest.mark.surface

# (10, 20) to (60, 50) of an image of 200 x 100 pixels.
PLACE = (10, 20, 60, 50)


def square() -> Image.Image:
    mask = Image.new("L", (200, 100))
    mask.paste(255, PLACE)
    return mask


def segmented() -> types_pb2.Detection:
    found = detection(0, 0.75, PLACE)
    counts = encode_mask(square()).encode("ascii")
    found.mask.CopyFrom(types_pb2.Mask(height=100, width=200, counts=counts))
    return found


@pytest.fixture
def gateway(gateway: LiveGateway) -> LiveGateway:
    gateway.workers.segmentation.script = lambda request: [detections([segmented()], 1)]
    gateway.workers.detection.script = lambda request: [detections([detection(0, 0.9, PLACE)], 1)]
    return gateway


def opened(url: str) -> Image.Image:
    header, _, content = url.partition(",")
    assert header == "data:image/png;base64"
    return Image.open(io.BytesIO(base64.b64decode(content)))


async def post(gateway: LiveGateway, path: str, png: bytes, accept: str = "*/*", **fields: Any) -> httpx.Response:
    phrase = {"phrase": "person" if path == "/v1/pose" else "dog"}
    return await gateway.http.post(path, files={"image": png}, data={**phrase, **fields}, headers={"accept": accept})


async def test_masks_come_as_run_lengths_or_as_png(gateway: LiveGateway, png: bytes) -> None:
    plain = (await post(gateway, "/v1/segment", png, masks="rle")).json()
    assert plain == (await post(gateway, "/v1/segment", png)).json() | {"timings": plain["timings"]}
    assert "mask" not in plain["detections"][0]

    drawn = (await post(gateway, "/v1/segment", png, masks="png")).json()
    [found] = drawn["detections"]
    assert "segmentation" not in found
    assert opened(found["mask"]).convert("L").tobytes() == square().tobytes()
    assert found["bbox"] == plain["detections"][0]["bbox"]
    # Where there are no masks there is nothing to draw.
    assert "mask" not in (await post(gateway, "/v1/detect", png, masks="png")).json()["detections"][0]


@pytest.mark.parametrize("path", ["/v1/detect", "/v1/segment", "/v1/pose"])
async def test_an_overlay_comes_beside_the_results(gateway: LiveGateway, png: bytes, path: str) -> None:
    answer = (await post(gateway, path, png, overlay="true")).json()

    drawn = opened(answer["overlay"]).convert("RGB")
    assert drawn.width % 200 == 0
    assert drawn.height * 2 == drawn.width
    # It is the image, with something on it.
    assert drawn.getpixel((drawn.width - 2, drawn.height - 2)) == (200, 120, 40)
    assert len(drawn.getcolors(100_000) or ()) > 2
    assert answer["detections"]
    assert ("gateway", "render") in {(entry["service"], entry["phase"]) for entry in answer["timings"]}


@pytest.mark.parametrize(("accept", "kind"), [("image/png", "PNG"), ("image/jpeg", "JPEG"), ("image/webp", "WEBP")])
async def test_a_client_may_want_nothing_but_the_picture(
    gateway: LiveGateway, png: bytes, accept: str, kind: str
) -> None:
    response = await post(gateway, "/v1/segment", png, accept)

    assert (response.status_code, response.headers["content-type"]) == (200, accept)
    assert Image.open(io.BytesIO(response.content)).format == kind
    assert "gateway_render;dur=" in response.headers["server-timing"]
    body = {"image": data_url(png), "phrase": "dog"}
    assert (await gateway.http.post("/v1/detect", json=body, headers={"accept": accept})).headers[
        "content-type"
    ] == accept


@pytest.mark.parametrize(
    ("accept", "expected"),
    [
        ("*/*", "application/json"),
        ("application/json, image/png;q=0.9", "application/json"),
        ("image/png;q=0.9, application/json", "application/json"),
        ("text/html, image/*;q=0.8, */*;q=0.1", "image/png"),
        ("application/json;q=0.2, image/jpeg;q=0.5", "image/jpeg"),
        ("image/svg+xml", "application/json"),
        ("", "application/json"),
    ],
)
async def test_what_a_client_likes_best_decides(gateway: LiveGateway, png: bytes, accept: str, expected: str) -> None:
    assert (await post(gateway, "/v1/detect", png, accept)).headers["content-type"] == expected


async def test_a_failure_is_a_problem_document_also_for_a_client_that_wants_a_picture(gateway: LiveGateway) -> None:
    expect_problem(await post(gateway, "/v1/detect", b"no image", "image/png"), 415, "unsupported_image")
    expect_problem(await post(gateway, "/v1/detect", encode_picture()[:80], "image/png"), 400, "image_corrupt")


async def test_coco_s_own_tools_read_the_results(gateway: LiveGateway, png: bytes) -> None:
    answer = (await post(gateway, "/v1/segment", png, coco="true")).json()

    ground_truth = COCO()
    ground_truth.dataset = answer["coco"]
    ground_truth.createIndex()
    [annotation] = ground_truth.loadAnns(ground_truth.getAnnIds())
    assert ground_truth.loadCats(annotation["category_id"])[0]["name"] == "dog"
    assert annotation["bbox"] == [10, 20, 50, 30]
    assert annotation["area"] == ground_truth.annToMask(annotation).sum() == 1500
    assert ground_truth.loadImgs([1])[0] == {"id": 1, "file_name": "", "width": 200, "height": 100}

    posed = (await post(gateway, "/v1/pose", png, coco="true")).json()["coco"]
    assert posed["categories"][0]["keypoints"] == ["nose", "left wrist", "right wrist"]
    assert posed["categories"][0]["skeleton"] == [[1, 2], [1, 3]]
    assert posed["annotations"][0]["keypoints"] == [0, 5, 2, 10, 5, 2, 20, 5, 2]
    assert posed["annotations"][0]["num_keypoints"] == 3


async def test_phrases_that_no_font_here_can_write_are_numbered(gateway: LiveGateway, png: bytes) -> None:
    # Of a script that fonts of systems rarely have.
    phrase = "𓃠𓃭"
    assert font_for(phrase, 13) is None

    answer = (await post(gateway, "/v1/detect", png, phrase=phrase, overlay="true")).json()
    assert answer["overlay_legend"] == {"1": phrase}
    picture = await post(gateway, "/v1/detect", png, "image/png", phrase=phrase)
    assert json.loads(picture.headers["x-overlay-legend"]) == {"1": phrase}
    plain = (await post(gateway, "/v1/detect", png, overlay="true")).json()
    assert "overlay_legend" not in plain


async def test_large_images_are_drawn_smaller(gateway: LiveGateway) -> None:
    answer = (await post(gateway, "/v1/detect", encode_picture(size=(4000, 2000)), overlay="true")).json()
    assert opened(answer["overlay"]).size == (1568, 784)


@pytest.mark.parametrize("fields", [{"masks": "svg"}, {"overlay": "perhaps"}, {"coco": "2"}])
async def test_bad_options_are_named(gateway: LiveGateway, png: bytes, fields: dict[str, str]) -> None:
    problem = expect_problem(await post(gateway, "/v1/detect", png, **fields), 400, "invalid_request")
    assert next(iter(fields)) in problem["detail"]
