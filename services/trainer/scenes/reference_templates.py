"""How people refer to a result of an earlier turn; ``{it}`` is "the second one"."""

from __future__ import annotations

from services.trainer.scenes.templates import CHINESE, ENGLISH, Templates

ORDINALS = {
    ENGLISH: ("first", "second", "third", "fourth", "fifth"),
    CHINESE: ("第一", "第二", "第三", "第四", "第五"),
}
# ``{ordinal}``: "second", "第二"; ``{number}``: "2".
SPOKEN: Templates = {
    ENGLISH: ("the {ordinal} one", "the {ordinal} {one}", "number {number}", "{one} {number}", "the {ordinal}"),
    CHINESE: ("{ordinal}{measure}", "{ordinal}{measure}{one}", "第{number}{measure}", "{one}{number}", "{ordinal}个"),
}
SPOKEN_LAST: Templates = {
    ENGLISH: ("the last one", "the last {one}"),
    CHINESE: ("最后一{measure}", "最后一{measure}{one}", "最后一个"),
}
# Clauses about one thing, to be masked.
MASK_IT: Templates = {
    ENGLISH: (
        "Now segment {it}.",
        "Segment {it}.",
        "Now mask {it}.",
        "Mask {it}.",
        "Cut out {it}.",
        "Give me the mask of {it}.",
        "Outline {it}.",
        "And the mask of {it}?",
        "Can you segment {it}?",
    ),
    CHINESE: (
        "现在分割{it}。",
        "分割{it}。",
        "把{it}抠出来。",
        "抠出{it}。",
        "给我{it}的掩码。",
        "描出{it}的轮廓。",
        "能分割{it}吗？",
    ),
}
NOW = {ENGLISH: ("Now ", "", "OK, now ", "Then "), CHINESE: ("现在", "", "好，", "然后")}
TOO_FEW: Templates = {
    ENGLISH: ("There {is_or_are} only {number}.", "I found only {number}."),
    CHINESE: ("只有{number}{measure}。", "我只找到{number}{measure}。"),
}
