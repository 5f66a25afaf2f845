"""The tools: when to use which, what each takes and answers, and how it does it."""

from __future__ import annotations

import asyncio
import base64
from dataclasses import dataclass

from superlink.mcp.arguments import (
    Arguments,
    AskArguments,
    DetectArguments,
    EditArguments,
    FindArguments,
    GenerateArguments,
    PoseArguments,
    SegmentArguments,
)
from superlink.mcp.outputs import AskOutput, DrawOutput, FindOutput, Output
from superlink.mcp.platform import OnProgress, Platform
from superlink.overlays import draw_over
from superlink.results import DrawingAnswer

INSTRUCTIONS = (
    "Superlink looks at images and makes them. Use detect, segment or pose when you know what to look for: they are "
    "fast and exact. Use ask for questions in words, and when you do not know what an image shows. Use generate and "
    "edit to make images. Coordinates are pixels of the upright image, from its upper left corner."
)


@dataclass(frozen=True)
class ToolKind:
    """A tool as agents see it."""

    name: str
    title: str
    description: str
    arguments: type[Arguments]
    output: type[Output]
    # The decoder without which it cannot work; None where the MLLM is enough.
    decoder: str | None


TOOLS = (
    ToolKind(
        "detect",
        "Find things in an image",
        "Find named things in an image: whether each is there, how many, and a box and a probability for every one. "
        "Use it to count, to locate, and to check for presence when you can name what you look for.",
        DetectArguments,
        FindOutput,
        "detection",
    ),
    ToolKind(
        "segment",
        "Cut things out of an image",
        "Find named or marked things in an image with a mask for every one, pixel by pixel. Use it for areas and "
        "outlines, or for the thing at a point or in a box; where boxes are enough, detect is faster.",
        SegmentArguments,
        FindOutput,
        "segmentation",
    ),
    ToolKind(
        "pose",
        "Find keypoints of people and animals",
        "Find people, animals and other jointed things in an image with the places of their keypoints (nose, left "
        "wrist and so on) and the bones between them. Use it for postures and gestures.",
        PoseArguments,
        FindOutput,
        "pose",
    ),
    ToolKind(
        "generate",
        "Draw an image",
        "Draw an image from words. Takes a while; progress is reported.",
        GenerateArguments,
        DrawOutput,
        "diffusion",
    ),
    ToolKind(
        "edit",
        "Change an image",
        "Change in an image what the prompt says and leave the rest as it is; a mask limits where. Takes a while; "
        "progress is reported.",
        EditArguments,
        DrawOutput,
        "diffusion",
    ),
    ToolKind(
        "ask",
        "Ask about images",
        "Ask a question in words about one or several images, or without any. The model answers in text and uses the "
        "other tools by itself where the answer needs them. Use it when the question needs understanding rather than a "
        "list of known names, or to let it choose the tool.",
        AskArguments,
        AskOutput,
        None,
    ),
)


@dataclass(frozen=True)
class ToolAnswer:
    """What came of a call."""

    output: Output
    text: str
    # PNG file bytes in base64.
    pictures: tuple[str, ...] = ()


async def use(platform: Platform, arguments: Arguments, on_progress: OnProgress) -> ToolAnswer:
    """The answer of the tool that takes ``arguments``. Raises SuperlinkError."""
    match arguments:
        case FindArguments():
            return await _find(platform, arguments)
        case GenerateArguments():
            return _drawn(await platform.generate(arguments, on_progress))
        case EditArguments():
            image = await platform.image(arguments.image)
            mask = await platform.image(arguments.mask) if arguments.mask is not None else None
            return _drawn(await platform.edit(arguments, image, mask, on_progress))
        case AskArguments():
            return await _ask(platform, arguments)
    raise AssertionError(f"no tool takes {type(arguments).__name__}")


async def _find(platform: Platform, arguments: FindArguments) -> ToolAnswer:
    image = await platform.image(arguments.image)
    answer = await platform.find(arguments, image)
    output = FindOutput.of(answer)
    if not arguments.overlay:
        return ToolAnswer(output, output.text())
    overlay = await asyncio.to_thread(draw_over, image, answer.detections)
    named = ", ".join(f"#{number} is {phrase}" for number, phrase in overlay.legend.items())
    legend = f"\nIn the picture {named}." if named else ""
    return ToolAnswer(output, output.text() + legend, (base64.b64encode(overlay.content).decode("ascii"),))


async def _ask(platform: Platform, arguments: AskArguments) -> ToolAnswer:
    answer = await platform.ask(arguments, [await platform.image(given) for given in arguments.images])
    output = AskOutput.of(answer)
    return ToolAnswer(output, output.text(), tuple(image.b64_json for image in answer.images))


def _drawn(answer: DrawingAnswer) -> ToolAnswer:
    output = DrawOutput.of(answer)
    return ToolAnswer(output, output.text(), tuple(image.b64_json for image in answer.images))
