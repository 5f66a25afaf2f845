import io

import grpc
import pytest
from PIL import Image
from scripted_workers import ScriptedDeployment, finish, group, image, observe, text, usage, user_message

from orchestrator.references import References
from superlink.errors import from_rpc_error
from superlink.profile import ImageLimits
from superlink.v1 import decoder_pb2, mllm_pb2, orchestrator_pb2, orchestrator_pb2_grpc, types_pb2

Stub = orchestrator_pb2_grpc.OrchestratorStub


def picture(width: int = 400, height: int = 200, orientation: int = 1) -> types_pb2.Image:
    file = io.BytesIO()
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.new("RGB", (width, height)).save(file, "JPEG", exif=exif)
    return image(file.getvalue())


def box(x1: float, y1: float, x2: float, y2: float) -> types_pb2.Region:
    return types_pb2.Region(box=types_pb2.Box(x1=x1, y1=y1, x2=x2, y2=y2))


def user(*parts: mllm_pb2.Part) -> mllm_pb2.Message:
    return mllm_pb2.Message(role=mllm_pb2.ROLE_USER, parts=parts)


def marked(region: types_pb2.Region) -> mllm_pb2.Part:
    return mllm_pb2.Part(region=region)


def shown(content: types_pb2.Image) -> mllm_pb2.Part:
    return mllm_pb2.Part(image=content)


def reported(phrase: str, *corners: tuple[int, int, int, int]) -> mllm_pb2.Message:
    objects = [mllm_pb2.ObservedObject(x1=x1, y1=y1, x2=x2, y2=y2, score=0.9) for x1, y1, x2, y2 in corners]
    group_ = mllm_pb2.ObservedGroup(route="[DET]", phrase=phrase, objects=objects)
    part = mllm_pb2.Part(observation=mllm_pb2.Observation(groups=[group_]))
    return mllm_pb2.Message(role=mllm_pb2.ROLE_ASSISTANT, parts=[part])


def resolved(phrase: str, *messages: mllm_pb2.Message) -> types_pb2.Region | None:
    return References(messages, ImageLimits()).region_of(phrase)


@pytest.mark.parametrize("phrase", ["region 2", "Region 2", "region2", "区域 2", "区域2", " region  2 "])
def test_a_region_is_meant_by_its_number_in_either_language(phrase: str) -> None:
    conversation = user(shown(picture()), marked(box(0, 0, 5, 5)), marked(box(6, 6, 9, 9)))

    assert resolved(phrase, conversation) == box(6, 6, 9, 9)


@pytest.mark.parametrize("phrase", ["region 0", "region 3", "region", "2", "", "dog 1", "region 2 dogs", "region 12"])
def test_other_phrases_mean_no_region(phrase: str) -> None:
    conversation = user(shown(picture()), marked(box(0, 0, 5, 5)), marked(box(6, 6, 9, 9)))

    assert resolved(phrase, conversation) is None


def test_a_reported_thing_is_meant_by_its_number_in_pixels_of_the_upright_image() -> None:
    dogs = reported("Dog", (0, 0, 100, 100), (500, 250, 750, 1000))

    assert resolved("dog 2", user(shown(picture(400, 200))), dogs) == box(200, 50, 300, 200)
    # On its side: the upright image is 200 wide and 400 high.
    assert resolved("dog 2", user(shown(picture(400, 200, orientation=6))), dogs) == box(100, 100, 150, 400)
    assert resolved("dog 3", user(shown(picture())), dogs) is None
    assert resolved("狗 1", user(shown(picture())), reported("狗", (0, 0, 500, 500))) == box(0, 0, 200, 100)


def test_the_latest_report_counts_and_none_about_an_earlier_image() -> None:
    first, later = reported("dog", (0, 0, 100, 100)), reported("dog", (500, 500, 1000, 1000))

    assert resolved("dog 1", user(shown(picture())), first, later) == box(200, 100, 400, 200)
    assert resolved("dog 1", user(shown(picture())), first, user(shown(picture()))) is None


def test_regions_on_an_earlier_image_keep_their_numbers() -> None:
    conversation = (user(shown(picture()), marked(box(0, 0, 5, 5))), user(shown(picture()), marked(box(6, 6, 9, 9))))

    assert resolved("region 1", *conversation) is None
    assert resolved("region 2", *conversation) == box(6, 6, 9, 9)


def test_a_thing_that_was_reported_as_a_line_is_a_pixel_wide() -> None:
    assert resolved("dog 1", user(shown(picture())), reported("dog", (1000, 0, 1000, 0))) == box(399, 0, 400, 1)


async def test_tools_that_take_regions_get_them_with_the_phrase(
    deployment: ScriptedDeployment, orchestrator: Stub
) -> None:
    deployment.mllm.rounds = [
        [group("region 1", 0, "[SEG]"), group("cat", 9, "[SEG]"), group("region 1", 13), usage(9, 4, 3), finish()]
    ]
    words = user_message("Segment what I marked.", picture())
    words.parts.insert(1, marked(box(1, 2, 3, 4)))
    request = orchestrator_pb2.AnswerRequest(messages=[words])

    _ = [event async for event in orchestrator.Answer(request, timeout=5)]

    [masks], [boxes] = deployment.segmentation.requests, deployment.detection.requests
    assert masks.groups[0].region == box(1, 2, 3, 4)
    assert not masks.groups[1].HasField("region")
    assert not boxes.groups[0].HasField("region")
    assert deployment.mllm.generate_requests[0].messages[0].parts[1].region == box(1, 2, 3, 4)


async def test_what_one_round_found_the_next_can_mean(deployment: ScriptedDeployment, orchestrator: Stub) -> None:
    deployment.mllm.rounds = [
        [group("dog", 0), usage(9, 4, 3), observe()],
        [text("Here: "), group("dog 1", 6, "[SEG]"), usage(9, 4, 3), finish()],
    ]
    request = orchestrator_pb2.AnswerRequest(messages=[user_message("Find a dog and mask it.", picture(200, 100))])

    _ = [event async for event in orchestrator.Answer(request, timeout=5)]

    # The scripted detector always finds (20, 10, 60, 50) in an image of 200 x 100.
    assert deployment.segmentation.requests[0].groups[0].region == box(20, 10, 60, 50)


async def test_marked_things_are_segmented_beside_phrases_or_alone(
    deployment: ScriptedDeployment, orchestrator: Stub
) -> None:
    for phrases in (["dog"], []):
        request = orchestrator_pb2.DetectRequest(
            image=image(), phrases=phrases, regions=[box(1, 2, 3, 4), box(5, 6, 7, 8)], tool="segmentation"
        )
        await orchestrator.Detect(request, timeout=5)

    beside, alone = deployment.segmentation.requests
    assert [each.phrase for each in beside.groups] == ["dog", "region 1", "region 2"]
    assert [each.HasField("region") for each in beside.groups] == [False, True, True]
    assert [each.region for each in alone.groups] == [box(1, 2, 3, 4), box(5, 6, 7, 8)]
    assert isinstance(alone, decoder_pb2.DecodeRequest)


async def test_a_tool_that_takes_no_regions_is_named(orchestrator: Stub) -> None:
    request = orchestrator_pb2.DetectRequest(image=image(), regions=[box(1, 2, 3, 4)])

    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await orchestrator.Detect(request, timeout=5)

    error = from_rpc_error(caught.value, "orchestrator")
    assert (error.code, "detection" in error.message) == ("unsupported_region", True)
