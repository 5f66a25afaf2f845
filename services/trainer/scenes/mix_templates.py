"""How people ask for several things at once: clauses that are joined into one request.

``{x}`` is what the tool is asked for: names, a referring expression, a kind of figure, or what to draw.
"""

from __future__ import annotations

from services.trainer.scenes.templates import CHINESE, ENGLISH, Templates

CLAUSES: dict[str, Templates] = {
    "boxes": {
        ENGLISH: ("find {x}", "detect {x}", "locate {x}", "show me {x}", "draw boxes around {x}", "mark {x}"),
        CHINESE: ("找出{x}", "检测{x}", "定位{x}", "框出{x}", "标出{x}"),
    },
    "masks": {
        ENGLISH: ("segment {x}", "mask {x}", "cut out {x}", "outline {x}", "give me the mask of {x}"),
        CHINESE: ("分割{x}", "把{x}抠出来", "抠出{x}", "给我{x}的掩码", "描出{x}的轮廓"),
    },
    "pose": {
        ENGLISH: (
            "show the pose of {x}",
            "find the pose of {x}",
            "draw the skeleton of {x}",
            "mark the keypoints of {x}",
        ),
        CHINESE: ("显示{x}的姿态", "找出{x}的姿态", "画出{x}的骨架", "标出{x}的关键点"),
    },
    "places": {
        ENGLISH: ("find the {places} of {x}", "mark the {places} of {x}", "show the {places} of {x}"),
        CHINESE: ("找出{x}的{places}", "标出{x}的{places}", "显示{x}的{places}"),
    },
    "drawing": {
        ENGLISH: ("draw {x}", "draw me {x}", "paint {x}", "make a picture of {x}", "generate {x}"),
        CHINESE: ("画{x}", "给我画{x}", "画一幅{x}", "生成{x}的图片"),
    },
}
JOINTS: Templates = {
    ENGLISH: (", then ", ", and ", " and ", "; ", ", ", ". Then ", ", and also "),
    CHINESE: ("，再", "，", "，然后", "；", "，还要", "，并"),
}
ENDS = {ENGLISH: ".", CHINESE: "。"}
