"""How people talk about what they marked: ``{region}`` is one marked thing, ``{a}`` and ``{b}`` are two."""

from __future__ import annotations

from services.trainer.scenes.templates import CHINESE, ENGLISH, Templates

REGION_NAME: Templates = {
    ENGLISH: (
        "What is {region}?",
        "What is this {region}?",
        "What does {region} show?",
        "Name {region}.",
        "What do you see in {region}?",
        "Which thing is {region}?",
        "What kind of object is {region}?",
        "Identify {region}.",
        "Tell me what {region} is.",
        "What did I mark with {region}?",
        "{region} What is this?",
        "{region}What is this?",
        "{region}What is it?",
        "{region} What did I mark?",
    ),
    CHINESE: (
        "{region}是什么？",
        "这个{region}是什么？",
        "{region}里是什么？",
        "说出{region}的名称。",
        "{region}标出的是什么东西？",
        "我标记的{region}是什么？",
        "{region}这是什么？",
        "{region}我标的是什么？",
        "告诉我{region}是什么。",
    ),
}
REGION_NAME_ANSWERS: Templates = {
    ENGLISH: ("It is {a_name}.", "That is {a_name}.", "This is {a_name}."),
    CHINESE: ("这是{name}。", "那是{name}。", "是{name}。"),
}

REGION_CAPTION: Templates = {
    ENGLISH: (
        "Describe {region}.",
        "Describe {region} briefly.",
        "Write a caption for {region}.",
        "Tell me about {region}.",
        "What can you say about {region}?",
        "Give a short description of {region}.",
        "Caption {region}.",
        "{region}Describe this.",
        "{region} Describe what I marked.",
    ),
    CHINESE: (
        "描述{region}。",
        "简单描述一下{region}。",
        "介绍一下{region}。",
        "给{region}写一句说明。",
        "说说{region}。",
        "{region}描述一下这个。",
        "{region}描述我标记的东西。",
    ),
}
REGION_CAPTION_ANSWERS: Templates = {
    ENGLISH: ("{size_name} {place}.",),
    CHINESE: ("{place}的一{measure}{size}{name}。",),
}

REGION_PRESENCE: Templates = {
    ENGLISH: (
        "Is {region} {a_name}?",
        "Is this {region} {a_name}?",
        "Does {region} show {a_name}?",
        "Have I marked {a_name} with {region}?",
        "Is there {a_name} in {region}?",
        "{region}Is this {a_name}?",
        "{region} Is it {a_name}?",
    ),
    CHINESE: (
        "{region}是{name}吗？",
        "{region}里是{name}吗？",
        "{region}这是{name}吗？",
        "{region}是不是{name}？",
        "我标记的{region}是{name}吗？",
    ),
}
REGION_YES: Templates = {
    ENGLISH: ("Yes, it is {a_name}.", "Yes, that is {a_name}."),
    CHINESE: ("是的，这是{name}。", "对，是{name}。"),
}
REGION_NO: Templates = {
    ENGLISH: ("No, it is {a_other}.", "No, that is {a_other}."),
    CHINESE: ("不是，这是{other}。", "不，是{other}。"),
}

REGION_LARGER: Templates = {
    ENGLISH: (
        "Which of {a} and {b} is larger?",
        "Which of {a}, {b} is larger?",
        "Which is bigger, {a} or {b}?",
        "Is {a} or {b} larger?",
        "{a}{b}Which of these is larger?",
        "Compare {a} and {b}: which is larger?",
    ),
    CHINESE: (
        "{a}和{b}哪个更大？",
        "{a}和{b}，哪个大？",
        "哪个更大，{a}还是{b}？",
        "{a}{b}哪个更大？",
        "比较{a}和{b}，哪一个大？",
    ),
}
REGION_LARGER_ANSWERS: Templates = {
    ENGLISH: ("Region {number} is larger.", "Region {number}.", "The larger one is region {number}."),
    CHINESE: ("区域 {number}更大。", "区域 {number}。", "更大的是区域 {number}。"),
}

SEGMENT_REGION: Templates = {
    ENGLISH: (
        "Segment {regions}.",
        "Segment what I marked: {regions}.",
        "Mask {regions}.",
        "Cut out {regions}.",
        "Give me the mask of {regions}.",
        "Outline {regions}.",
        "Which pixels belong to {regions}?",
        "I need masks for {regions}.",
        "Separate {regions} from the rest.",
        "Segment the thing at {regions}.",
        "{regions}Segment this.",
        "{regions} Segment what I marked.",
        "{regions}Cut it out.",
    ),
    CHINESE: (
        "分割{regions}。",
        "分割我标记的{regions}。",
        "把{regions}抠出来。",
        "给我{regions}的掩码。",
        "描出{regions}的轮廓。",
        "哪些像素属于{regions}？",
        "把{regions}和背景分开。",
        "{regions}分割这个。",
        "{regions}抠出来。",
    ),
}

# Row, then column: of three of each.
PLACES = {
    ENGLISH: (
        ("at the top left", "at the top", "at the top right"),
        ("at the left", "in the centre", "at the right"),
        ("at the bottom left", "at the bottom", "at the bottom right"),
    ),
    CHINESE: (("左上角", "上方", "右上角"), ("左边", "中间", "右边"), ("左下角", "下方", "右下角")),
}
# Of things that cover little of the image, some, and much.
SIZES = {ENGLISH: ("small ", "", "large "), CHINESE: ("小", "", "大")}
# The words that a routed phrase carries.
REGION_PHRASES = {ENGLISH: "region {number}", CHINESE: "区域 {number}"}
