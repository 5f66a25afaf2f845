"""The SDK: ask a running Superlink about images.

::

    from superlink import Client

    with Client("http://127.0.0.1:8080") as client:
        print(client.chat("scene.png", "How many dogs are there?").text)
        client.detect("scene.png", ["dog", "cat"]).draw().save("annotated.png")
        client.generate("a cat beside a tree", seed=3).save("cat.png")

``superlink.async_client`` has the same for asyncio, ``superlink.client_errors`` what can go wrong.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from types import TracebackType
from typing import Literal, Unpack, overload

from superlink.batches import Batches
from superlink.connection import Connection
from superlink.connection_settings import DEFAULT_RETRIES, DEFAULT_TIMEOUT_S, connection_settings
from superlink.drawing_calls import DrawingAssembler, DrawingOptions, drawing_of, edit_call, generate_call
from superlink.images import ImageInput
from superlink.plain_answers import AskOptions, PlainAnswer, answer_call, plain_answer_of
from superlink.rest import (
    AnswerAssembler,
    Call,
    ChatOptions,
    DetectOptions,
    PoseOptions,
    SegmentOptions,
    answer_of,
    chat_call,
    detections_of,
    find_call,
)
from superlink.results import Answer, DetectionAnswer, DrawingAnswer, Readiness
from superlink.streams import AnswerStream

OnProgress = Callable[[int, int], None]


class Client:
    """A synchronous client. Safe to share between threads; close it, or use it as a context manager."""

    def __init__(
        self,
        url: str | None = None,
        *,
        api_key: str | None = None,
        timeout_s: float = DEFAULT_TIMEOUT_S,
        max_retries: int = DEFAULT_RETRIES,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        """``url`` None: the environment's SUPERLINK_URL, else http://127.0.0.1:8080. ``api_key`` None:
        SUPERLINK_API_KEY, else none is sent.

        Calls that find no gateway, a full queue or a service that is away (429, 503) are repeated up to
        ``max_retries`` times within ``timeout_s``, after the time that the gateway names.
        Raises ConfigurationError for an address or a key that cannot be one.
        """
        settings = connection_settings(url, api_key, timeout_s, max_retries, headers)
        self._url = settings.url
        self._connection = Connection(settings)
        self._batches = Batches(self._connection)

    @property
    def batches(self) -> Batches:
        """Many requests in one file, answered without waiting for them."""
        return self._batches

    @property
    def url(self) -> str:
        """The gateway's address."""
        return self._url

    def __enter__(self) -> Client:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections."""
        self._connection.close()

    @overload
    def chat(
        self,
        image: ImageInput | Sequence[ImageInput] | None,
        prompt: str | None,
        *,
        stream: Literal[False] = False,
        **options: Unpack[ChatOptions],
    ) -> Answer: ...

    @overload
    def chat(
        self,
        image: ImageInput | Sequence[ImageInput] | None,
        prompt: str | None,
        *,
        stream: Literal[True],
        **options: Unpack[ChatOptions],
    ) -> AnswerStream: ...

    def chat(
        self,
        image: ImageInput | Sequence[ImageInput] | None,
        prompt: str | None,
        *,
        stream: bool = False,
        **options: Unpack[ChatOptions],
    ) -> Answer | AnswerStream:
        """Ask about an image (or several, or none).

        ``options`` are those of ``ChatOptions``. With ``stream=True`` events come as they happen; the last is
        ``Finished`` with the whole answer. A tool that fails is an entry of ``Answer.errors``, not an exception.
        ``prompt`` None goes on from a ``history`` that ends in results of tools.
        """
        call = chat_call(image, prompt, options, stream=stream)
        if stream:
            return AnswerStream(self._connection.stream(call, AnswerAssembler))
        return self._connection.send(call, answer_of)

    def answer(
        self, image: ImageInput | Sequence[ImageInput] | None, prompt: str, **options: Unpack[AskOptions]
    ) -> PlainAnswer:
        """One question about an image (or several, or none): the text, and what was found for it in one list.

        ``chat`` has conversations and streams. A tool that fails is an entry of ``PlainAnswer.failures``.
        """
        return self._connection.send(answer_call(image, prompt, options), plain_answer_of)

    def detect(
        self,
        image: ImageInput,
        categories: Sequence[str] | None = None,
        *,
        phrase: str | None = None,
        **options: Unpack[DetectOptions],
    ) -> DetectionAnswer:
        """Look for known categories, or for one phrase ("the leftmost dog"), without free text."""
        return self._connection.send(find_call("/v1/detect", image, categories, phrase, options), detections_of)

    def segment(
        self,
        image: ImageInput,
        categories: Sequence[str] | None = None,
        *,
        phrase: str | None = None,
        **options: Unpack[SegmentOptions],
    ) -> DetectionAnswer:
        """As ``detect``, with a mask for everything that is found."""
        return self._connection.send(find_call("/v1/segment", image, categories, phrase, options), detections_of)

    def pose(
        self,
        image: ImageInput,
        categories: Sequence[str] | None = None,
        *,
        phrase: str | None = None,
        **options: Unpack[PoseOptions],
    ) -> DetectionAnswer:
        """As ``detect``, with the keypoints of everything that is found."""
        return self._connection.send(find_call("/v1/pose", image, categories, phrase, options), detections_of)

    def generate(
        self, prompt: str, *, on_progress: OnProgress | None = None, **options: Unpack[DrawingOptions]
    ) -> DrawingAnswer:
        """Draw what ``prompt`` says. ``on_progress`` is called with the steps that are done and their number."""
        return self._draw(generate_call(prompt, options, stream=on_progress is not None), on_progress)

    def edit(
        self,
        image: ImageInput,
        prompt: str,
        *,
        mask: ImageInput | None = None,
        on_progress: OnProgress | None = None,
        **options: Unpack[DrawingOptions],
    ) -> DrawingAnswer:
        """Change in ``image`` what ``prompt`` says; what is transparent in ``mask`` is what it is about."""
        return self._draw(edit_call(image, prompt, mask, options, stream=on_progress is not None), on_progress)

    def ready(self) -> Readiness:
        """Whether the gateway and every service behind it is ready, now: nothing is repeated."""
        return self._connection.readiness()

    def _draw(self, call: Call, on_progress: OnProgress | None) -> DrawingAnswer:
        if on_progress is None:
            return self._connection.send(call, drawing_of)
        drawn: list[DrawingAnswer] = []
        with closing(self._connection.stream(call, DrawingAssembler)) as events:
            for event in events:
                if isinstance(event, DrawingAnswer):
                    drawn.append(event)
                else:
                    on_progress(event.done, event.total)
        return drawn[-1]
