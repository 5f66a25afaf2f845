"""Workers that play a script, behind real gRPC servers, for the tests of the orchestrator and the gateway."""

import asyncio
import hashlib
import struct
from collections.abc import AsyncIterator, Callable, Collection, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from orchestrator.server import running_orchestrator
from superlink.channels import REQUEST_ID_KEY
from superlink.errors import SuperlinkError
from superlink.profile import GatewaySettings, MllmSettings, OrchestratorSettings, Profile, WorkerSettings
from superlink.serving import Context, GrpcServer
from superlink.v1 import decoder_pb2, decoder_pb2_grpc, mllm_pb2, mllm_pb2_grpc, types_pb2

# A step is an event to send, seconds to sleep, a signal to wait for, or an error to end with.
Step = mllm_pb2.GenerateEvent | decoder_pb2.DecodeEvent | float | asyncio.Event | SuperlinkError

ADAPTER_VERSION = "adapter-7"
IMAGE_WIDTH, IMAGE_HEIGHT = 200, 100
ROUTES = (
    ("[DET]", "detection"),
    ("[SEG]", "segmentation"),
    ("[POSE_OBJECT]", "pose"),
    ("[POSE]", "pose"),
    ("[GEN]", "diffusion"),
    ("[EDIT]", "diffusion"),
)
PERSON = decoder_pb2.Skeleton(
    names=["person", "people"],
    keypoints=["nose", "left wrist", "right wrist"],
    bones=[decoder_pb2.Bone(first=0, second=1), decoder_pb2.Bone(first=0, second=2)],
)
DEER = decoder_pb2.Skeleton(names=["鹿"], keypoints=["nose", "尾根"], bones=[decoder_pb2.Bone(first=0, second=1)])


def text(words: str) -> mllm_pb2.GenerateEvent:
    return mllm_pb2.GenerateEvent(text_delta=mllm_pb2.TextDelta(text=words))


def group(phrase: str, start: int | None = None, route: str = "[DET]") -> mllm_pb2.GenerateEvent:
    span = None if start is None else types_pb2.Span(start=start, end=start + len(phrase))
    link = types_pb2.LinkGroup(
        route=route, phrase=phrase, span=span, embedding=embedding_of(phrase), log_probability=-0.25
    )
    return mllm_pb2.GenerateEvent(link_group=link)


def embedding_of(phrase: str) -> types_pb2.Tensor:
    return types_pb2.Tensor(data=struct.pack("<2f", len(phrase), 0.5), dtype="float32", shape=[2])


def usage(prompt: int, image: int, completion: int) -> mllm_pb2.GenerateEvent:
    return mllm_pb2.GenerateEvent(
        usage=mllm_pb2.Usage(prompt_tokens=prompt, image_tokens=image, completion_tokens=completion)
    )


def finish(reason: mllm_pb2.FinishReason.ValueType = mllm_pb2.FINISH_REASON_STOP) -> mllm_pb2.GenerateEvent:
    timings = [types_pb2.Timing(service="mllm", phase="total", milliseconds=0.25)]
    return mllm_pb2.GenerateEvent(finish=mllm_pb2.Finish(reason=reason, timings=timings))


def observe() -> mllm_pb2.GenerateEvent:
    return finish(mllm_pb2.FINISH_REASON_OBSERVE)


def detection(group_index: int, score: float = 0.9, box: Sequence[float] = (20, 10, 60, 50)) -> types_pb2.Detection:
    x1, y1, x2, y2 = box
    return types_pb2.Detection(box=types_pb2.Box(x1=x1, y1=y1, x2=x2, y2=y2), score=score, group=group_index)


def detections(
    found: Sequence[types_pb2.Detection], groups: int = 1, absent: Sequence[int] = ()
) -> decoder_pb2.DecodeEvent:
    presence = [
        types_pb2.Presence(group=index, found=index not in absent, score=0.1 if index in absent else 0.9)
        for index in range(groups)
    ]
    result = types_pb2.Detections(
        detections=found, presence=presence, image_width=IMAGE_WIDTH, image_height=IMAGE_HEIGHT
    )
    timings = [types_pb2.Timing(service="detection", phase="total", milliseconds=0.25)]
    return decoder_pb2.DecodeEvent(detections=result, timings=timings)


def progress(done: int, total: int) -> decoder_pb2.DecodeEvent:
    return decoder_pb2.DecodeEvent(progress=decoder_pb2.Progress(done=done, total=total))


def made_images(*files: bytes, groups: Sequence[int] | None = None) -> decoder_pb2.DecodeEvent:
    """Image i has seed i; all are of the first group unless ``groups`` says otherwise."""
    made = [
        types_pb2.GeneratedImage(encoded=file, width=IMAGE_WIDTH, height=IMAGE_HEIGHT, seed=seed)
        for seed, file in enumerate(files)
    ]
    images = types_pb2.GeneratedImages(images=made, groups=groups or [0] * len(made))
    timings = [types_pb2.Timing(service="diffusion", phase="total", milliseconds=0.25)]
    return decoder_pb2.DecodeEvent(images=images, timings=timings)


class ScriptedMllm(mllm_pb2_grpc.MllmServicer):
    """Round i of an answer plays ``rounds[i]``; the number of observations in the request tells which round it is."""

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        self.rounds: list[list[Step]] = [[text("Nothing to say."), usage(10, 4, 3), finish()]]
        # Instead of a round, where the text is to fit a schema.
        self.structured: list[Step] = [text("{}"), usage(20, 4, 5), finish()]
        self.link_error: SuperlinkError | None = None
        self.adapter_version = ADAPTER_VERSION
        self.generate_requests: list[mllm_pb2.GenerateRequest] = []
        self.link_requests: list[mllm_pb2.LinkRequest] = []
        self.request_ids: list[str] = []
        self.started = asyncio.Event()
        self.cancelled = asyncio.Event()

    async def Describe(self, request: mllm_pb2.DescribeMllmRequest, context: Context) -> mllm_pb2.DescribeMllmResponse:
        routes = [
            mllm_pb2.Route(
                token=token,
                decoder=decoder,
                queries_per_group=4,
                link_width=2,
                adapter_version=self.adapter_version,
            )
            for token, decoder in ROUTES
        ]
        return mllm_pb2.DescribeMllmResponse(
            name="superlink-scripted", version="1", routes=routes, max_tokens=1024, max_images=4
        )

    async def Generate(
        self, request: mllm_pb2.GenerateRequest, context: Context
    ) -> AsyncIterator[mllm_pb2.GenerateEvent]:
        self.generate_requests.append(request)
        self.request_ids.append(_metadata_id(context))
        last = request.messages[-1]
        observed = sum(part.HasField("observation") for part in last.parts)
        steps = self.structured if request.json_schema else self.rounds[observed]
        async for event in _play(steps, self.started, self.cancelled):
            assert isinstance(event, mllm_pb2.GenerateEvent)
            yield event

    async def Link(self, request: mllm_pb2.LinkRequest, context: Context) -> mllm_pb2.LinkResponse:
        self.link_requests.append(request)
        self.request_ids.append(_metadata_id(context))
        if self.link_error is not None:
            raise self.link_error
        return mllm_pb2.LinkResponse(
            groups=[
                types_pb2.LinkGroup(route=route, phrase=phrase, embedding=embedding_of(phrase))
                for route, phrase in (
                    *((request.route, phrase) for phrase in request.phrases),
                    *((each.route, each.phrase) for each in request.following),
                )
            ],
            usage=mllm_pb2.Usage(prompt_tokens=20, image_tokens=16),
            timings=[types_pb2.Timing(service="mllm", phase="total", milliseconds=0.25)],
        )


class ScriptedDecoder(decoder_pb2_grpc.DecoderServicer):
    """Finds one object a group unless ``script`` says otherwise."""

    def __init__(self, name: str, *routes: str) -> None:
        self.name = name
        self.routes = routes
        self.reset()

    def reset(self) -> None:
        self.adapter_version = ADAPTER_VERSION
        self.max_groups = 100
        self.takes_regions = self.name == "segmentation"
        self.script: Callable[[decoder_pb2.DecodeRequest], list[Step]] = find_one_object_a_group
        self.prefetch_error: SuperlinkError | None = None
        self.prefetches: list[decoder_pb2.DecodeRequest] = []
        self.requests: list[decoder_pb2.DecodeRequest] = []
        self.request_ids: list[str] = []
        self.started = asyncio.Event()
        self.cancelled = asyncio.Event()

    async def Describe(self, request: decoder_pb2.DescribeRequest, context: Context) -> decoder_pb2.DescribeResponse:
        return decoder_pb2.DescribeResponse(
            name=self.name,
            version="1",
            routes=self.routes,
            link_width=2,
            queries_per_group=4,
            adapter_version=self.adapter_version,
            input_modes=[decoder_pb2.INPUT_MODE_LINK],
            max_groups=self.max_groups,
            score_threshold=0.5,
            takes_regions=self.takes_regions,
            keypoint_route="[POSE]" if self.name == "pose" else "",
            skeletons=[PERSON, DEER] if self.name == "pose" else [],
        )

    async def Decode(
        self, request: decoder_pb2.DecodeRequest, context: Context
    ) -> AsyncIterator[decoder_pb2.DecodeEvent]:
        if not request.groups:
            self.prefetches.append(request)
            if self.prefetch_error is not None:
                raise self.prefetch_error
            yield decoder_pb2.DecodeEvent()
            return
        self.requests.append(request)
        self.request_ids.append(_metadata_id(context))
        async for event in _play(self.script(request), self.started, self.cancelled):
            assert isinstance(event, decoder_pb2.DecodeEvent)
            yield event


def find_one_object_a_group(request: decoder_pb2.DecodeRequest) -> list[Step]:
    count = len(request.groups)
    return [detections([detection(index) for index in range(count)], count)]


def find_one_pose_a_thing(request: decoder_pb2.DecodeRequest) -> list[Step]:
    """Keypoint number i lies at (10 i, 5), with a score of 0.8."""
    names = [group.phrase for group in request.groups if group.route == "[POSE]"]
    things = [detection(index) for index in range(len(request.groups) - len(names))]
    for thing in things:
        thing.keypoints.keypoints.extend(
            types_pb2.Keypoint(name=name, x=10 * place, y=5, score=0.8) for place, name in enumerate(names)
        )
    return [detections(things, len(things))]


@dataclass
class ScriptedDeployment:
    """An orchestrator in this process, in front of scripted workers; every hop is a real socket."""

    profile: Profile
    mllm: ScriptedMllm
    detection: ScriptedDecoder
    segmentation: ScriptedDecoder
    diffusion: ScriptedDecoder
    pose: ScriptedDecoder
    mllm_server: GrpcServer
    detection_server: GrpcServer
    segmentation_server: GrpcServer
    orchestrator: GrpcServer

    def reset(self) -> None:
        for worker in (self.mllm, self.detection, self.segmentation, self.diffusion, self.pose):
            worker.reset()
        self.pose.script = find_one_pose_a_thing


@asynccontextmanager
async def scripted_deployment(
    orchestrator_settings: OrchestratorSettings | None = None,
    gateway_settings: GatewaySettings | None = None,
    without: Collection[str] = (),
) -> AsyncIterator[ScriptedDeployment]:
    """``without``: decoders that the profile leaves out."""
    mllm = ScriptedMllm()
    detector, segmenter = ScriptedDecoder("detection", "[DET]"), ScriptedDecoder("segmentation", "[SEG]")
    diffuser = ScriptedDecoder("diffusion", "[GEN]", "[EDIT]")
    diffuser.script = lambda request: [made_images(b"an image")]
    poser = ScriptedDecoder("pose", "[POSE_OBJECT]", "[POSE]")
    poser.script = find_one_pose_a_thing
    async with AsyncExitStack() as stack:
        mllm_server = await start(mllm, "mllm", stack)
        detection_server = await start(detector, "detection", stack)
        segmentation_server = await start(segmenter, "segmentation", stack)
        diffusion_server = await start(diffuser, "diffusion", stack)
        pose_server = await start(poser, "pose", stack)
        nowhere = Path("unused")
        addresses = {
            "detection": detection_server.address,
            "segmentation": segmentation_server.address,
            "diffusion": diffusion_server.address,
            "pose": pose_server.address,
        }
        profile = Profile(
            name="scripted",
            gateway=gateway_settings or GatewaySettings(),
            orchestrator=orchestrator_settings or OrchestratorSettings(address="127.0.0.1:0", drain_timeout_s=2),
            mllm=MllmSettings(address=mllm_server.address, weights=nowhere),
            decoders={
                name: WorkerSettings(address=address, weights=nowhere)
                for name, address in addresses.items()
                if name not in without
            },
        )
        orchestrator = await stack.enter_async_context(running_orchestrator(profile))
        settings = profile.orchestrator.model_copy(update={"address": orchestrator.address})
        yield ScriptedDeployment(
            profile.model_copy(update={"orchestrator": settings}),
            mllm,
            detector,
            segmenter,
            diffuser,
            poser,
            mllm_server,
            detection_server,
            segmentation_server,
            orchestrator,
        )


async def start(
    worker: ScriptedMllm | ScriptedDecoder, name: str, stack: AsyncExitStack, address: str = "127.0.0.1:0"
) -> GrpcServer:
    server = GrpcServer(name, address, drain_timeout_s=1)
    if isinstance(worker, ScriptedMllm):
        server.add(mllm_pb2_grpc.add_MllmServicer_to_server, worker, "superlink.v1.Mllm")
    else:
        server.add(decoder_pb2_grpc.add_DecoderServicer_to_server, worker, "superlink.v1.Decoder")
    await server.start()
    await server.set_ready(True)
    stack.push_async_callback(server.stop)
    return server


def image(content: bytes = b"the bytes of a JPEG file") -> types_pb2.Image:
    return types_pb2.Image(encoded=content, sha256=hashlib.sha256(content).hexdigest())


def user_message(words: str, picture: types_pb2.Image | None = None) -> mllm_pb2.Message:
    parts = [mllm_pb2.Part(image=picture)] if picture is not None else []
    return mllm_pb2.Message(role=mllm_pb2.ROLE_USER, parts=[*parts, mllm_pb2.Part(text=words)])


async def _play(steps: list[Step], started: asyncio.Event, cancelled: asyncio.Event) -> AsyncIterator[Step]:
    started.set()
    try:
        for step in steps:
            if isinstance(step, SuperlinkError):
                raise step
            if isinstance(step, asyncio.Event):
                await step.wait()
            elif isinstance(step, float):
                await asyncio.sleep(step)
            else:
                yield step
    except (asyncio.CancelledError, GeneratorExit):
        cancelled.set()
        raise


def _metadata_id(context: Context) -> str:
    return next((str(value) for key, value in context.invocation_metadata() or () if key == REQUEST_ID_KEY), "")
