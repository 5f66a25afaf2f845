"""The MLLM worker: ``python -m services.mllm.service --profile tiny``."""

from __future__ import annotations

import asyncio
import contextlib
import sys
import time
from collections.abc import AsyncIterator, Sequence
from hashlib import sha256

from PIL import Image

from services.mllm.batch import FinishEvent, GroupEvent, TextEvent
from services.mllm.config import MllmConfig
from services.mllm.conversation import (
    ConversationError,
    ImagePart,
    Rendered,
    RoutedPhrase,
    Text,
    Turn,
    fast_path,
    fold_capitals,
    render,
)
from services.mllm.engine import Engine
from services.mllm.jobs import ImageInput, RegionInput, Times
from services.mllm.json_grammar import JsonGrammars
from services.mllm.messages import (
    Shown,
    describe_message,
    finish_message,
    group_message,
    sampling_of,
    text_message,
    timings_of,
    turns_of,
)
from services.mllm.model import Mllm
from services.mllm.region_encoder import view_region
from services.mllm.sampling import Sampling
from services.mllm.tiling import choose_grid, cut_tiles, tile_budgets
from services.mllm.tokenizer import MllmTokenizer
from services.runtime.images import ImageExecutor, decode_image, image_digest
from services.runtime.metrics import WorkerMetrics
from services.runtime.model_thread import ModelThread
from services.runtime.regions import region_mask
from services.runtime.tensors import tensor_to_message
from services.runtime.worker import Worker, run_worker
from superlink.errors import invalid_argument
from superlink.image_header import check_image_size
from superlink.profile import Profile, weights_folder
from superlink.served_calls import note
from superlink.serving import Context, GrpcServer, deadline_of
from superlink.telemetry import record_phase
from superlink.v1 import mllm_pb2, mllm_pb2_grpc, types_pb2

SERVICE = "mllm"


class MllmService(Worker, mllm_pb2_grpc.MllmServicer):
    """Loads the model, turns messages into conversations, and the engine's events into messages."""

    def __init__(self, profile: Profile, metrics: WorkerMetrics) -> None:
        self._settings = profile.mllm
        self._limits = profile.images
        self._metrics = metrics
        self._thread = ModelThread(self._settings.threads)
        self._images = ImageExecutor()
        self._tokenizer: MllmTokenizer
        self._config: MllmConfig
        self._grammars: JsonGrammars
        self._engine: Engine

    def register(self, server: GrpcServer) -> None:
        """Add ``superlink.v1.Mllm``."""
        server.add(mllm_pb2_grpc.add_MllmServicer_to_server, self, "superlink.v1.Mllm")

    async def start(self) -> None:
        """Load the weights and answer a first question of each kind. Raises WeightsError."""
        model, self._tokenizer = await self._thread.run(Mllm.load, weights_folder(self._settings))
        self._config = model.config
        self._tokens_per_tile = model.config.tokens_per_tile
        self._max_tiles = min(self._settings.max_tiles, model.config.max_tiles or self._settings.max_tiles)
        self._decoder_of_route = {route.token: route.decoder for route in model.config.routes}
        self._grammars = JsonGrammars(self._tokenizer, model.config.vocab_size)
        self._engine = Engine(
            model,
            self._tokenizer,
            self._thread,
            self._settings.batch,
            self._metrics,
            self._settings.feature_cache_entries,
        )
        self._engine.start()
        await self._warm_up(self._engine)

    def drain(self) -> None:
        """Nothing ever waits for company here, so there is nothing to hurry."""

    async def close(self) -> None:
        """Stop the engine and the threads."""
        if hasattr(self, "_engine"):
            await self._engine.close()
        self._thread.close()
        self._images.close()

    async def Describe(  # noqa: N802
        self, request: mllm_pb2.DescribeMllmRequest, context: Context
    ) -> mllm_pb2.DescribeMllmResponse:
        """What the model is and which routes it knows."""
        del request, context
        return describe_message(self._config, self._settings.max_images, self._limits)

    async def Generate(  # noqa: N802
        self, request: mllm_pb2.GenerateRequest, context: Context
    ) -> AsyncIterator[mllm_pb2.GenerateEvent]:
        """Stream the model's own answer."""
        began = time.monotonic()
        turns, shown = turns_of(request.messages, self._config.fold_capitals)
        routes = self._selected_routes(request.tools) if request.HasField("tools") else None
        sampling = sampling_of(request.sampling, self._settings.max_new_tokens, routes)
        with self._engine.admission():
            # Not in this thread: a large schema takes a while.
            grammar = await asyncio.to_thread(self._grammars.of, request.json_schema) if request.json_schema else None
            budgets = tile_budgets(self._max_tiles, shown.turns)
            inputs = await self._prepare(shown.images, budgets)
            rendered = self._render(turns, inputs, for_generation=True)
            regions = await self._look(shown, budgets)
            prepare_s = time.monotonic() - began
            record_phase("prepare", began, prepare_s)
            note(images=len(inputs), prompt_tokens=len(rendered.input_ids))
            times = Times(0.0, 0.0)
            answer = self._engine.generate(rendered, inputs, sampling, deadline_of(context), regions, grammar)
            async with contextlib.aclosing(answer) as events:
                async for event in events:
                    if isinstance(event, TextEvent):
                        yield mllm_pb2.GenerateEvent(text_delta=text_message(event))
                    elif isinstance(event, GroupEvent):
                        yield mllm_pb2.GenerateEvent(link_group=group_message(event))
                    elif isinstance(event, Times):
                        times = event
                    elif isinstance(event, FinishEvent):
                        note(completion_tokens=event.completion_tokens)
                        yield mllm_pb2.GenerateEvent(usage=self._usage(rendered, event.completion_tokens))
                        total_s = time.monotonic() - began
                        timings = timings_of(prepare_s, times.queue_s, times.compute_s, total_s)
                        yield mllm_pb2.GenerateEvent(finish=finish_message(event.reason, timings))

    async def Link(self, request: mllm_pb2.LinkRequest, context: Context) -> mllm_pb2.LinkResponse:  # noqa: N802
        """The fast path: link embeddings of known phrases from one prefill."""
        began = time.monotonic()
        if request.route not in self._decoder_of_route:
            known = ", ".join(self._decoder_of_route)
            raise invalid_argument("unknown_route", f"Unknown route {request.route!r}. This model knows {known}.")
        decoder = self._decoder_of_route[request.route]
        strays = sorted({each.route for each in request.following if self._decoder_of_route.get(each.route) != decoder})
        if strays:
            raise invalid_argument("unknown_route", f"{', '.join(strays)} and {request.route} lead to no one decoder.")
        asked = [(request.route, phrase) for phrase in request.phrases]
        asked += [(each.route, each.phrase) for each in request.following]
        routed = [RoutedPhrase(route, " ".join(phrase.split())) for route, phrase in asked]
        if not request.phrases or not all(each.phrase for each in routed):
            raise invalid_argument("empty_phrase", "Name at least one thing to look for, and leave none empty.")
        if self._config.fold_capitals:
            routed = [RoutedPhrase(each.route, fold_capitals(each.phrase)) for each in routed]
        with self._engine.admission():
            images = [request.image] if request.HasField("image") else []
            inputs = await self._prepare(images, [self._max_tiles] * len(images))
            rendered = self._render(fast_path(routed, bool(images)), inputs, for_generation=False)
            prepare_s = time.monotonic() - began
            record_phase("prepare", began, prepare_s)
            note(phrases=len(routed), prompt_tokens=len(rendered.input_ids))
            linked = await self._engine.link(rendered, inputs, decoder, deadline_of(context))
        groups = [
            types_pb2.LinkGroup(route=route, phrase=phrase, embedding=tensor_to_message(embedding))
            for (route, phrase), embedding in zip(asked, linked.embeddings, strict=True)
        ]
        timings = timings_of(prepare_s, linked.queue_s, linked.compute_s, time.monotonic() - began)
        return mllm_pb2.LinkResponse(groups=groups, usage=self._usage(rendered, 0), timings=timings)

    def _selected_routes(self, tools: mllm_pb2.ToolSelection) -> frozenset[str]:
        return frozenset(route for route, decoder in self._decoder_of_route.items() if decoder in tools.decoders)

    async def _warm_up(self, engine: Engine) -> None:
        """Answer one question and one fast-path request about a grey picture."""
        side = self._config.tile_size
        tiles = cut_tiles(Image.new("RGB", (side, side), (128, 128, 128)), 1, side)
        inputs = [ImageInput("warm-up", tiles)]
        question = self._render([Turn("user", (ImagePart(0), Text("?")))], inputs, for_generation=True)
        async with contextlib.aclosing(engine.generate(question, inputs, Sampling(max_new_tokens=8))) as events:
            async for _ in events:
                pass
        for route in self._config.routes:
            rendered = self._render(fast_path([RoutedPhrase(route.token, "?")]), inputs, for_generation=False)
            await engine.link(rendered, inputs, route.decoder)
        engine.features.clear()

    async def _prepare(self, images: Sequence[types_pb2.Image], budgets: Sequence[int]) -> list[ImageInput]:
        """Features of images seen before, tiles of the others, as many as its budget each. Raises SuperlinkError."""
        if len(images) > self._settings.max_images:
            raise invalid_argument(
                "too_many_images",
                f"The conversation has {len(images)} images; this model takes {self._settings.max_images}.",
            )
        began = time.monotonic()
        inputs = [
            await self._images.run(self._prepare_image, image, budget)
            for image, budget in zip(images, budgets, strict=True)
        ]
        if images:
            self._metrics.observe_prepare(time.monotonic() - began)
        return inputs

    def _prepare_image(self, image: types_pb2.Image, max_tiles: int) -> ImageInput:
        """In an image thread: features of an image seen before, tiles of a new one. Raises SuperlinkError."""
        # Before the digest, so that an oversized file costs no more than a comparison.
        check_image_size(image.encoded, self._limits)
        key = f"{image_digest(image)}:{max_tiles}"
        features = self._engine.features.find(key)
        self._metrics.count_cache_lookup(features is not None)
        if features is not None:
            return ImageInput(key, None, features)
        pixels = Image.fromarray(decode_image(image.encoded, self._limits))
        return ImageInput(key, cut_tiles(pixels, max_tiles, self._config.tile_size))

    async def _look(self, shown: Shown, budgets: Sequence[int]) -> list[RegionInput]:
        """How to look at every region of a conversation. Raises SuperlinkError for marks that mean no pixels."""
        regions: list[RegionInput | None] = [None] * len(shown.regions)
        for number, image in enumerate(shown.images):
            places = [place for place, marked in enumerate(shown.regions) if marked.image == number]
            if places:
                marks = [shown.regions[place].region for place in places]
                found = await self._images.run(self._look_at_image, image, budgets[number], marks)
                for place, region in zip(places, found, strict=True):
                    regions[place] = region
        return [region for region in regions if region is not None]

    def _look_at_image(
        self, image: types_pb2.Image, max_tiles: int, marks: Sequence[types_pb2.Region]
    ) -> list[RegionInput]:
        """In an image thread: embeddings of marks seen before, views of new ones. Raises SuperlinkError."""
        key = f"{image_digest(image)}:{max_tiles}"
        marked = [f"{key}:{sha256(mark.SerializeToString(deterministic=True)).hexdigest()}" for mark in marks]
        known = [self._engine.features.find(each) for each in marked]
        if all(features is not None for features in known):
            return [RegionInput(each, None, None, features) for each, features in zip(marked, known, strict=True)]
        pixels = Image.fromarray(decode_image(image.encoded, self._limits))
        size = self._config.tile_size
        tiles = cut_tiles(pixels, max_tiles, size)
        grid = choose_grid(pixels.width, pixels.height, max_tiles, size)
        views = [view_region(region_mask(mark, pixels.height, pixels.width), grid, size) for mark in marks]
        return [RegionInput(each, tiles[view.tile], view) for each, view in zip(marked, views, strict=True)]

    def _render(self, turns: Sequence[Turn], inputs: Sequence[ImageInput], for_generation: bool) -> Rendered:
        counts = [self._token_count(image) for image in inputs]
        try:
            return render(turns, self._tokenizer, counts, for_generation)
        except ConversationError as error:
            raise invalid_argument(error.code, str(error)) from error

    def _token_count(self, image: ImageInput) -> int:
        if image.features is not None:
            return image.features.shape[0]
        return 0 if image.pixels is None else image.pixels.shape[0] * self._tokens_per_tile

    def _usage(self, rendered: Rendered, completion_tokens: int) -> mllm_pb2.Usage:
        return mllm_pb2.Usage(
            prompt_tokens=len(rendered.input_ids),
            image_tokens=rendered.input_ids.count(self._tokenizer.image_context_id),
            completion_tokens=completion_tokens,
        )


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the worker until it is told to end; returns the exit code."""
    return run_worker(SERVICE, MllmService, lambda profile: profile.mllm, "mllm", arguments)


if __name__ == "__main__":
    sys.exit(main())
