"""Conversations as the MLLM reads them: the one place where turns become ids, labels and link positions.

Training and serving render through the same function, so that what the model is asked looks like what it learned from.
Superlink's own models read this shape; public ones that of their family (``prompt_format.py``):

    <|im_start|>user
    <img><IMG_CONTEXT>...</img>
    QUESTION<|im_end|>
    <|im_start|>assistant
    <ref>dog</ref>[DET]<link><link><link><link><|observe|>
    <|im_start|>observation
    dog: 1 (12,40,200,310 0.98)<|im_end|>
    <|im_start|>assistant
    There is one dog.<|im_end|>
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from services.mllm.tokenizer import MllmTokenizer

IGNORED = -100
# Boxes listed for one group of an observation; the count always says how many there are.
MAX_LISTED_OBJECTS = 6

# How the fast path asks a tool; "Detect" where nothing else is said.
_FAST_PATH_TASKS = {"[POSE_OBJECT]": "Pose", "[POSE]": "Keypoints", "[GEN]": "Draw", "[EDIT]": "Edit"}

RoleName = Literal["system", "user", "assistant"]


@dataclass(frozen=True)
class Text:
    """Words. Never parsed for special tokens, but for the marks of phrases and boxes that public models read."""

    text: str


@dataclass(frozen=True)
class ImagePart:
    """The image number ``index`` of the conversation, counted from 0 in reading order."""

    index: int


@dataclass(frozen=True)
class VideoPart:
    """Frames of a video: images of the conversation, each of one tile, from number ``first`` on."""

    first: int
    frames: int


@dataclass(frozen=True)
class RegionPart:
    """What a user marked: region ``number`` of the conversation, counted from 1 in reading order."""

    number: int


@dataclass(frozen=True)
class RoutedPhrase:
    """A phrase that the assistant sends to the tool behind ``route``."""

    route: str
    phrase: str


@dataclass(frozen=True)
class ObservedObject:
    """One object that a tool found: corners in thousandths of the image's sides, and its probability."""

    x1: int
    y1: int
    x2: int
    y2: int
    score: float


@dataclass(frozen=True)
class ObservedGroup:
    """What a tool answered for one phrase: the objects that count as present, best first."""

    route: str
    phrase: str
    objects: tuple[ObservedObject, ...] = ()
    failed: bool = False


@dataclass(frozen=True)
class Observation:
    """The results of a round's tool calls. Closes the round; what follows in the turn is the next round."""

    groups: tuple[ObservedGroup, ...]


Part = Text | ImagePart | VideoPart | RegionPart | RoutedPhrase | Observation


@dataclass(frozen=True)
class Turn:
    """What one side says. Only assistants route phrases and observe; only users show images and mark regions."""

    role: RoleName
    parts: tuple[Part, ...]
    # Whether training learns to say this; what an assistant is remembered to have said is only context.
    learned: bool = True


@dataclass(frozen=True)
class RenderedGroup:
    """Where the super-link queries of one routed phrase stand in the sequence."""

    route: str
    phrase: str
    positions: tuple[int, ...]


@dataclass
class Rendered:
    """A conversation as ids; ``labels`` is -100 wherever nothing is to be predicted."""

    input_ids: list[int] = field(default_factory=list)
    labels: list[int] = field(default_factory=list)
    groups: list[RenderedGroup] = field(default_factory=list)


class ConversationError(ValueError):
    """The turns cannot be rendered; the text says why, ``code`` in one word."""

    def __init__(self, message: str, code: str = "invalid_message") -> None:
        super().__init__(message)
        self.code = code


def render(
    turns: Sequence[Turn], tokenizer: MllmTokenizer, image_token_counts: Sequence[int], for_generation: bool
) -> Rendered:
    """Lay ``turns`` out as ids.

    ``image_token_counts[i]`` is the number of image tokens of image ``i``, frames of videos included. With
    ``for_generation`` the sequence ends
    where the model is to go on: after a fresh assistant header, or inside the last turn when that is the assistant's.

    Labels stand on the assistant's words, phrase markers, routing tokens, ``<|observe|>`` and ``<|im_end|>``, never on
    link placeholders, observations, turns that are not to be learned or anybody else's words. Raises ConversationError.
    """
    frames = sum(part.frames for turn in turns for part in turn.parts if isinstance(part, VideoPart))
    writer = _Writer(tokenizer, image_token_counts, numbers_images=len(image_token_counts) - frames > 1)
    if tokenizer.bos_id is not None:
        writer.begin(tokenizer.bos_id)
    if tokenizer.prompt.system_message and not (turns and turns[0].role == "system"):
        writer.turn(Turn("system", (Text(tokenizer.prompt.system_message),)), is_open=False)
    for number, turn in enumerate(turns):
        is_open = for_generation and number == len(turns) - 1 and turn.role == "assistant"
        writer.turn(turn, is_open)
    if for_generation and not (turns and turns[-1].role == "assistant"):
        writer.header("assistant")
    return writer.rendered


def fast_path(phrases: Sequence[RoutedPhrase], shows_image: bool = True) -> tuple[Turn, Turn]:
    """The canonical conversation of the teacher-forced fast path: at most one image, phrases, no free decoding.

    "Detect: dog, cat", "Pose: person. Keypoints: nose, left eye", "Draw: a cat beside a tree".
    """
    asked: list[str] = []
    answer: list[Part] = []
    for number, phrase in enumerate(phrases):
        task = _FAST_PATH_TASKS.get(phrase.route, "Detect")
        if number and task == _FAST_PATH_TASKS.get(phrases[number - 1].route, "Detect"):
            asked.append(f", {phrase.phrase}")
        else:
            asked.append(f"{'. ' if number else ''}{task}: {phrase.phrase}")
        if number:
            answer.append(Text(", "))
        answer.append(phrase)
    answer.append(Text("."))
    question = Text("".join(asked))
    return Turn("user", (ImagePart(0), question) if shows_image else (question,)), Turn("assistant", tuple(answer))


def fold_capitals(text: str) -> str:
    """In lower case what is written in capitals only ("FIND THE DOGS"); anything else as it is."""
    return text.lower() if text.isupper() else text


def observation_text(observation: Observation) -> str:
    """The compact text that the model reads: one line a group, ``dog: 2 (12,40,200,310 0.98) (…)``."""
    return "\n".join(_group_text(group) for group in observation.groups)


def _group_text(group: ObservedGroup) -> str:
    phrase = " ".join(group.phrase.split())
    if group.failed:
        return f"{phrase}: failed"
    listed = "".join(
        f" ({item.x1},{item.y1},{item.x2},{item.y2} {item.score:.2f})" for item in group.objects[:MAX_LISTED_OBJECTS]
    )
    return f"{phrase}: {len(group.objects)}{listed}"


class _Writer:
    """Appends tokens and labels, turn by turn."""

    def __init__(self, tokenizer: MllmTokenizer, image_token_counts: Sequence[int], numbers_images: bool) -> None:
        self.rendered = Rendered()
        self._tokenizer = tokenizer
        self._image_token_counts = image_token_counts
        self._numbers_images = numbers_images
        # Of videos, so far.
        self._frames = 0

    def begin(self, bos_id: int) -> None:
        self._add([bos_id], False)

    def turn(self, turn: Turn, is_open: bool) -> None:
        self.header(turn.role)
        if turn.role == "assistant":
            start = len(self.rendered.labels)
            self._assistant(turn.parts, is_open)
            if not turn.learned:
                self.rendered.labels[start:] = [IGNORED] * (len(self.rendered.labels) - start)
            return
        for part in _image_first(turn.parts):
            if isinstance(part, Text):
                self._words(part, False)
            elif isinstance(part, ImagePart) and turn.role == "user":
                self._image(part)
            elif isinstance(part, VideoPart) and turn.role == "user":
                self._video(part)
            elif isinstance(part, RegionPart) and turn.role == "user":
                self._region(part)
            else:
                raise ConversationError(f"A {turn.role} turn cannot hold a {type(part).__name__}.")
        self._close(False)

    def header(self, role: str) -> None:
        token, text = self._tokenizer.prompt.shape.header(role)
        self._add([self._tokenizer.special_id(token)], False)
        self._text(text, False)

    def _assistant(self, parts: Sequence[Part], is_open: bool) -> None:
        round_is_fresh = False
        for number, part in enumerate(parts):
            if isinstance(part, Text):
                self._words(part, True)
                round_is_fresh = False
            elif isinstance(part, RoutedPhrase):
                self._routed_phrase(part)
                round_is_fresh = False
            elif isinstance(part, Observation):
                self._observation(part)
                round_is_fresh = True
                if is_open or number < len(parts) - 1:
                    self.header("assistant")
            else:
                raise ConversationError(f"An assistant turn cannot hold a {type(part).__name__}.")
        if not is_open and not round_is_fresh:
            self._close(True)

    def _routed_phrase(self, part: RoutedPhrase) -> None:
        tokenizer = self._tokenizer
        if part.route not in tokenizer.routes:
            known = ", ".join(tokenizer.routes)
            raise ConversationError(f"Unknown route {part.route!r}. This model knows {known}.", "unknown_route")
        self._add([tokenizer.phrase_start_id], True)
        self._text(part.phrase, True)
        self._add([tokenizer.phrase_end_id, tokenizer.route_ids[part.route]], True)
        start = len(self.rendered.input_ids)
        queries = tokenizer.queries(part.route)
        self._add([tokenizer.link_id] * queries, False)
        self.rendered.groups.append(RenderedGroup(part.route, part.phrase, tuple(range(start, start + queries))))

    def _observation(self, part: Observation) -> None:
        self._add([self._tokenizer.observe_id], True)
        self._text("\n", False)
        self.header("observation")
        self._text(observation_text(part), False)
        self._close(False)

    def _image(self, part: ImagePart) -> None:
        self._framed(part.index, f"Image-{part.index + 1 - self._frames}: " if self._numbers_images else "")

    def _video(self, part: VideoPart) -> None:
        for frame in range(part.frames):
            self._framed(part.first + frame, f"Frame{frame + 1}: ")
        self._frames += part.frames

    def _framed(self, index: int, label: str) -> None:
        if not 0 <= index < len(self._image_token_counts):
            raise ConversationError(f"No image {index}: {len(self._image_token_counts)} were given.")
        tokenizer = self._tokenizer
        context = [tokenizer.image_context_id] * self._image_token_counts[index]
        self._text(label, False)
        self._add([tokenizer.image_start_id, *context, tokenizer.image_end_id], False)
        self._text("\n", False)

    def _region(self, part: RegionPart) -> None:
        if self._tokenizer.region_id is None:
            raise ConversationError("This model takes no regions; say in words what you mean.", "unsupported_region")
        self._add(self._tokenizer.encode_region(part.number), False)

    def _close(self, supervised: bool) -> None:
        self._add([self._tokenizer.im_end_id], supervised)
        self._text(self._tokenizer.prompt.shape.after_turn, False)

    def _words(self, part: Text, supervised: bool) -> None:
        self._add(self._tokenizer.encode_grounded(part.text, after=self._before()), supervised)

    def _text(self, text: str, supervised: bool) -> None:
        if text:
            self._add(self._tokenizer.encode_text(text, after=self._before()), supervised)

    def _before(self) -> int | None:
        return self.rendered.input_ids[-1] if self.rendered.input_ids else None

    def _add(self, ids: Sequence[int], supervised: bool) -> None:
        self.rendered.input_ids.extend(ids)
        self.rendered.labels.extend(ids if supervised else [IGNORED] * len(ids))


def _image_first(parts: Sequence[Part]) -> list[Part]:
    """A single image goes before the words, where the model learned to find it; several keep their places."""
    images = [part for part in parts if isinstance(part, ImagePart)]
    if len(images) != 1:
        return list(parts)
    return [*images, *(part for part in parts if not isinstance(part, ImagePart))]
