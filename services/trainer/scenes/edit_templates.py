"""How people ask for edits.

``{it}`` is "the dog" or "the dogs", ``{a}`` "a dog", ``{other}`` what replaces it, ``{a_colour}`` "an orange",
``{ground}`` "grass".
"""

from __future__ import annotations

from collections.abc import Mapping

INSTRUCTIONS: Mapping[str, Mapping[str, tuple[str, ...]]] = {
    "recolour": {
        "en": (
            "Make {it} {colour}.",
            "Turn {it} {colour}.",
            "Paint {it} {colour}.",
            "Change the colour of {it} to {colour}.",
            "I would like {it} to be {colour}.",
            "Give {it} {a_colour} colour.",
            "Colour {it} {colour}, please.",
            "Can you make {it} {colour}?",
        ),
        "zh": (
            "把{it}变成{colour}。",
            "把{it}涂成{colour}。",
            "将{it}改为{colour}。",
            "请把{it}的颜色换成{colour}。",
            "让{it}变成{colour}。",
            "我想要{colour}的{it}。",
            "{it}改成{colour}吧。",
            "能把{it}变成{colour}吗？",
        ),
    },
    "replace": {
        "en": (
            "Replace {it} with {other}.",
            "Swap {it} for {other}.",
            "Turn {it} into {other}.",
            "Change {it} into {other}.",
            "Put {other} where {it} can be seen now.",
            "Instead of {it} I want {other}.",
            "Exchange {it} for {other}, please.",
            "Can you turn {it} into {other}?",
        ),
        "zh": (
            "把{it}换成{other}。",
            "将{it}替换为{other}。",
            "用{other}代替{it}。",
            "把{it}变成{other}。",
            "不要{it}，换成{other}。",
            "请用{other}替换{it}。",
            "{it}换成{other}吧。",
            "能把{it}换成{other}吗？",
        ),
    },
    "remove": {
        "en": (
            "Remove {it}.",
            "Delete {it}.",
            "Take {it} away.",
            "Erase {it} from the picture.",
            "Get rid of {it}.",
            "Make {it} disappear.",
            "I do not want {it} in the image.",
            "Can you remove {it}?",
        ),
        "zh": (
            "去掉{it}。",
            "删除{it}。",
            "把{it}移走。",
            "把{it}从图中擦掉。",
            "不要{it}。",
            "让{it}消失。",
            "请移除图中的{it}。",
            "能去掉{it}吗？",
        ),
    },
    "add": {
        "en": (
            "Add {a}.",
            "Put {a} into the picture.",
            "Add {a} somewhere.",
            "Insert {a}.",
            "Draw {a} into the image.",
            "I would like {a} in there too.",
            "Place {a} in the scene.",
            "Can you add {a}?",
        ),
        "zh": (
            "加上{a}。",
            "添加{a}。",
            "在图中放{a}。",
            "画上{a}。",
            "再加{a}。",
            "我想在图里有{a}。",
            "请在画面中加入{a}。",
            "能加{a}吗？",
        ),
    },
    "ground": {
        "en": (
            "Make the background {colour}.",
            "Change the background to {colour}.",
            "Turn the background {colour}.",
            "Give it {a_colour} background.",
            "Use {a_colour} ground instead.",
            "Paint everything behind {colour}.",
            "I want {a_colour} background.",
            "Can you make the background {colour}?",
        ),
        "zh": (
            "把背景变成{colour}。",
            "背景换成{colour}。",
            "将背景改为{colour}。",
            "换一个{colour}的背景。",
            "用{colour}做背景。",
            "把后面涂成{colour}。",
            "我想要{colour}的背景。",
            "能把背景变成{colour}吗？",
        ),
    },
    "named_ground": {
        "en": (
            "Put it on {ground}.",
            "Change the ground to {ground}.",
            "Change the background to {ground}.",
            "Put {ground} behind everything.",
            "Use {ground} as the background.",
            "Set the scene on {ground}.",
            "I want {ground} in the background.",
            "Can you put it on {ground}?",
        ),
        "zh": (
            "把背景换成{ground}。",
            "把地面变成{ground}。",
            "背景改为{ground}。",
            "用{ground}做背景。",
            "放在{ground}上。",
            "换一个{ground}背景。",
            "我想要{ground}的背景。",
            "能把背景换成{ground}吗？",
        ),
    },
}
