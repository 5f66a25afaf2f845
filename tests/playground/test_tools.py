"""Each tool through the page: what a person does, what the workers get, what the page then shows."""

import numpy as np
from gateway_thread import GatewayThread
from PIL import Image
from playground_page import PlaygroundPage
from request_bodies import encode_picture
from scripted_workers import detection, detections, finish, group, made_images, observe, progress, text, usage

from superlink.run_length import decode_mask, encode_mask
from superlink.v1 import decoder_pb2, types_pb2


def one_dog(gateway: GatewayThread) -> None:
    gateway.workers.mllm.rounds = [[text("Here is the dog"), group("dog", 12), text("."), usage(30, 16, 9), finish()]]


def mask_of(box: tuple[int, int, int, int]) -> types_pb2.Mask:
    drawn = Image.new("L", (200, 100), 0)
    drawn.paste(255, box)
    return types_pb2.Mask(height=100, width=200, counts=encode_mask(drawn).encode())


def test_a_chat_shows_text_and_boxes_and_goes_on(gateway: GatewayThread, page: PlaygroundPage, png: bytes) -> None:
    one_dog(gateway)
    page.drop_picture(png)

    page.ask("Where is the dog?")
    page.wait_for_end()

    assert page.text(".answer") == "Here is the dog."
    assert page.labels(".phrase") == ["dog: 1 box"]
    assert page.labels("#shapes .find") == ["dog, box 1 of 1, score 0.90"]
    box = page.one("#shapes .find .edge")
    assert [box.get_attribute(name) for name in ("x", "y", "width", "height")] == ["20", "10", "40", "40"]
    [request] = gateway.workers.mllm.generate_requests
    assert request.messages[0].parts[0].image.encoded == png

    page.ask("And now?")
    page.wait(lambda: len(gateway.workers.mllm.generate_requests) == 2)

    # The model sees its own phrase and result again, and the picture but once.
    [first, answer, second] = gateway.workers.mllm.generate_requests[1].messages
    assert [part.WhichOneof("part") for part in first.parts] == ["image", "text"]
    assert "routed_phrase" in [part.WhichOneof("part") for part in answer.parts]
    assert [part.text for part in second.parts] == ["And now?"]


def test_an_answer_from_observations_is_one_answer(gateway: GatewayThread, page: PlaygroundPage, png: bytes) -> None:
    gateway.workers.mllm.rounds = [
        [text("Dogs"), group("dog", 0), observe()],
        [text("There is 1 dog."), usage(30, 16, 9), finish()],
    ]
    page.drop_picture(png)

    page.ask("How many dogs?")
    page.wait_for_end()

    assert "There is 1 dog." in page.text(".answer")
    rows = page.texts(".timeline tbody tr")
    assert any("reads the results" in row for row in rows)
    assert any("writes on, round 2" in row for row in rows)


def test_detect_lists_what_is_there_and_what_is_not(gateway: GatewayThread, page: PlaygroundPage, png: bytes) -> None:
    gateway.workers.detection.script = lambda request: [detections([detection(0), detection(0, 0.8)], 2, absent=[1])]
    page.choose_tab("detect")
    page.drop_picture(png)

    page.write("#detect-names", "dog, cat")
    page.write("#detect-threshold", "0.25")
    page.press("Detect")
    page.wait_for_end()

    assert page.texts(".finding") == ["dog\n2 found\n0.90\n0.80", "cat\nnot found, 0.10"]
    assert len(page.all("#shapes .find")) == 2
    [decoded] = gateway.workers.detection.requests
    assert [each.phrase for each in decoded.groups] == ["dog", "cat"]
    assert decoded.detection.score_threshold == 0.25


def test_segment_draws_masks_of_names_and_of_marks(gateway: GatewayThread, page: PlaygroundPage, png: bytes) -> None:
    def segment(request: decoder_pb2.DecodeRequest) -> list[decoder_pb2.DecodeEvent]:
        found = [detection(index) for index in range(len(request.groups))]
        for each in found:
            each.mask.CopyFrom(mask_of((20, 10, 60, 50)))
        return [detections(found, len(found))]

    gateway.workers.segmentation.script = segment
    page.choose_tab("segment")
    page.drop_picture(png)
    page.press("Point")
    page.drag((0.6, 0.4))
    page.write("#segment-names", "dog")
    page.press("Segment")
    page.wait_for_end()

    assert [text.split("\n")[0] for text in page.texts(".finding")] == ["dog", "region 1"]
    # The outline goes through the middles of the pixels' edges, and along the sides of the rectangle.
    outline = page.one("#shapes .mask").get_attribute("d")
    assert outline is not None
    places = [tuple(map(float, place.split())) for place in outline.strip("MZ").split("L")]
    assert {min(x for x, _ in places), max(x for x, _ in places)} == {20, 60}
    assert {min(y for _, y in places), max(y for _, y in places)} == {10, 50}
    [_, marked] = gateway.workers.segmentation.requests[0].groups
    [point] = marked.region.points.points
    assert abs(point.x - 120) < 2
    assert abs(point.y - 40) < 2


def test_pose_draws_skeletons(gateway: GatewayThread, page: PlaygroundPage, png: bytes) -> None:
    page.choose_tab("pose")
    page.drop_picture(png)

    page.write("#pose-names", "person")
    page.press("Find poses")
    page.wait_for_end()

    assert page.labels("#shapes .find") == ["person, pose 1 of 1, score 0.90"]
    titles = page.script("return [...document.querySelectorAll('.keypoint title')].map((each) => each.textContent)")
    assert titles == ["nose, 0.80", "left wrist, 0.80", "right wrist, 0.80"]
    assert page.one("#shapes .bones").get_attribute("d") == "M0 5L10 5M0 5L20 5"


def test_a_chat_about_poses_has_bones_and_ties_keypoints_to_their_names(
    gateway: GatewayThread, page: PlaygroundPage, png: bytes
) -> None:
    words = [text("The person: nose"), group("person", 4, "[POSE_OBJECT]"), group("nose", 12, "[POSE]")]
    more = [text(", left wrist"), group("left wrist", 18, "[POSE]"), text(".")]
    gateway.workers.mllm.rounds = [[*words, *more, usage(30, 16, 9), finish()]]
    page.drop_picture(png)

    page.ask("Where are the joints of the person?")
    page.wait_for_end()

    assert page.one("#shapes .bones").get_attribute("d") == "M0 5L10 5"
    page.point_at(page.all(".phrase")[2])
    [active] = page.wait(lambda: page.all(".keypoint.is-active"))
    assert active.find_element("css selector", "title").get_attribute("textContent") == "left wrist, 0.80"


def test_generate_shows_progress_and_the_images(gateway: GatewayThread, page: PlaygroundPage) -> None:
    picture = encode_picture()
    gateway.workers.diffusion.script = lambda request: [progress(3, 20), made_images(picture, picture)]
    page.choose_tab("generate")

    page.write("#generate-prompt", "a cat")
    page.one("#generate-count").send_keys("2")
    page.write("#generate-seed", "7")
    page.press("Generate")
    page.wait_for_end()

    assert page.texts(".seed") == ["seed 0", "seed 1"]
    assert page.script("return document.querySelector('#picture').naturalWidth") == 200
    [decoded] = gateway.workers.diffusion.requests
    assert (decoded.diffusion.count, decoded.diffusion.seed) == (2, 7)
    saved = page.one("#save-made")
    assert saved.get_attribute("download") == "superlink-1.png"


def test_edit_sends_what_was_painted_as_a_mask(gateway: GatewayThread, page: PlaygroundPage, png: bytes) -> None:
    gateway.workers.diffusion.script = lambda request: [made_images(encode_picture())]
    page.choose_tab("edit")
    page.drop_picture(png)
    page.press("Box")
    page.drag((0.25, 0.2), (0.5, 0.8))
    page.write("#edit-prompt", "make it red")
    page.press("Edit")
    page.wait_for_end()

    [decoded] = gateway.workers.diffusion.requests
    assert decoded.image.encoded == png
    mask = decoded.groups[0].region.mask
    left, top, right, bottom = decode_mask((mask.height, mask.width), mask.counts.decode()).getbbox() or (0, 0, 0, 0)
    assert np.allclose((left, top, right, bottom), (50, 20, 100, 80), atol=2)
    # The picture before and the one after are both at hand.
    assert page.labels("#filmstrip button") == ["Source", "Result 1, seed 0"]
    # Only what is on show can be removed.
    assert page.all("#remove-picture") == []
    page.press("Go on with this image")
    page.wait(lambda: "superlink-0.png" in (page.one("#picture").get_attribute("alt") or ""))


def test_a_drawing_in_a_chat_is_what_the_next_message_is_about(gateway: GatewayThread, page: PlaygroundPage) -> None:
    gateway.workers.diffusion.script = lambda request: [made_images(encode_picture())]
    gateway.workers.mllm.rounds = [[text("A cat"), group("cat", 2, "[GEN]"), text("."), usage(9, 0, 5), finish()]]

    page.ask("Draw a cat.")
    page.wait_for_end()
    assert page.labels(".phrase") == ["cat: 1 image"]
    page.press("Box")
    page.drag((0.25, 0.25), (0.75, 0.75))
    page.ask("Now mask this.")
    page.wait(lambda: len(gateway.workers.mllm.generate_requests) == 2)

    [*_, last] = gateway.workers.mllm.generate_requests[1].messages
    assert "region" in [part.WhichOneof("part") for part in last.parts]
