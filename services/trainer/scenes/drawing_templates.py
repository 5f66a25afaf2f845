"""How people ask for pictures; ``{what}`` is what to draw: "a cat beside a tree on grass"."""

from __future__ import annotations

from services.trainer.scenes.templates import CHINESE, ENGLISH, Templates

DRAW: Templates = {
    ENGLISH: (
        "Draw {what}.",
        "Draw me {what}.",
        "Paint {what}.",
        "Generate a picture of {what}.",
        "Create an image of {what}.",
        "Make a picture of {what}.",
        "Make me an image with {what}.",
        "I want a picture of {what}.",
        "I would like to see a drawing of {what}.",
        "Can you draw {what}?",
        "Could you paint me {what}?",
        "Sketch {what}.",
        "Imagine {what} and draw it.",
        "New image: {what}",
        "Draw this: {what}.",
    ),
    CHINESE: (
        "画{what}。",
        "给我画{what}。",
        "帮我画{what}。",
        "生成一张图：{what}。",
        "创作一幅画：{what}。",
        "请画出{what}。",
        "做一张{what}的图片。",
        "我想要一张{what}的图。",
        "画一幅{what}的画。",
        "能画{what}吗？",
        "可以给我画{what}吗？",
        "想象{what}，画出来。",
        "新图片：{what}",
    ),
}

DRAWN_ANSWERS: dict[str, tuple[tuple[str, str], ...]] = {
    ENGLISH: (("Drawing ", "."), ("Here is ", "."), ("Sure: ", "."), ("", ".")),
    CHINESE: (("正在画", "。"), ("这是", "。"), ("好的：", "。"), ("", "。")),
}
EDITED_ANSWERS: dict[str, tuple[tuple[str, str], ...]] = {
    ENGLISH: (("Editing: ", "."), ("Done: ", "."), ("Sure: ", "."), ("", ".")),
    CHINESE: (("正在编辑：", "。"), ("完成：", "。"), ("好的：", "。"), ("", "。")),
}

# ``{first}`` and ``{second}`` are things with their articles or measure words; the first wording is the canonical one.
RELATIONS: dict[str, Templates] = {
    "beside": {
        ENGLISH: (
            "{first} beside {second}",
            "{first} next to {second}",
            "{first} by {second}",
            "{first} at the side of {second}",
        ),
        CHINESE: ("{first}在{second}旁边", "{second}旁边的{first}", "{first}挨着{second}"),
    },
    "above": {
        ENGLISH: ("{first} above {second}", "{first} over {second}", "{first} higher than {second}"),
        CHINESE: ("{first}在{second}上方", "{second}上方的{first}", "{first}在{second}上面"),
    },
}
NUMBERS = {"one": ("", "一"), "two": ("two", "两"), "three": ("three", "三")}

# What everything stands on or before; the first wording is the canonical one.
ON_GROUND: Templates = {
    ENGLISH: ("{what} on {ground}", "{what} with {ground} behind", "{what} in front of {ground}"),
    CHINESE: ("{what}，背景是{ground}", "{what}，{ground}背景", "{ground}背景上的{what}"),
}
ON_COLOUR: Templates = {
    ENGLISH: (
        "{what} on {a_colour} background",
        "{what} on {colour} ground",
        "{what} with {a_colour} background",
    ),
    CHINESE: ("{what}，{colour}背景", "{what}，背景是{colour}", "{colour}背景上的{what}"),
}
