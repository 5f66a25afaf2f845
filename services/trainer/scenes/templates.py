"""How people ask and how the model answers: templates by task and language.

Questions fill ``{the}`` ("the dog"), ``{a}`` ("a dog"), ``{one}`` ("dog"), ``{many}`` ("dogs"), ``{list}`` (several
names) or ``{it}`` (a referring expression). The first template of a list of answers is the usual one.
"""

from __future__ import annotations

ENGLISH = "en"
CHINESE = "zh"
LANGUAGES = (ENGLISH, CHINESE)

Templates = dict[str, tuple[str, ...]]

DETECT: Templates = {
    ENGLISH: (
        "Find {the}.",
        "Find all {many}.",
        "Where is {the}?",
        "Where are the {many}?",
        "Detect {the}.",
        "Detect {many}.",
        "Locate {the} in this picture.",
        "Show me {the}.",
        "Show me every {one}.",
        "Can you find {a}?",
        "Can you show me where the {many} are?",
        "Mark all {many} in the image.",
        "Draw a box around each {one}.",
        "Give me the boxes of all {many}.",
        "Look for {a}.",
        "I am looking for {many}.",
        "Point out {the}.",
        "Spot the {many}.",
        "{one}",
        "{many}",
    ),
    CHINESE: (
        "找{one}。",
        "找出{one}。",
        "找出所有的{one}。",
        "{one}在哪里？",
        "{one}在哪儿？",
        "检测{one}。",
        "检测：{one}",
        "请定位图中的{one}。",
        "帮我找一下{one}。",
        "把{one}都标出来。",
        "框出每{measure}{one}。",
        "给我看看{one}的位置。",
        "标记图里所有的{one}。",
        "你能找到{one}吗？",
        "我在找{one}。",
        "指出{one}在什么地方。",
        "{one}",
    ),
}

DETECT_SEVERAL: Templates = {
    ENGLISH: (
        "Find {list}.",
        "Find all {list}.",
        "Detect {list}.",
        "Detect the following: {list}.",
        "Locate {list} in this picture.",
        "Where are {list}?",
        "Show me {list}.",
        "Can you find {list}?",
        "Mark {list} in the image.",
        "Draw boxes around {list}.",
        "Give me the boxes of {list}.",
        "Look for {list}.",
        "I am looking for {list}.",
        "Which of these can you locate: {list}?",
        "Search the image for {list}.",
        "{list}",
    ),
    CHINESE: (
        "找{list}。",
        "找出{list}。",
        "找出所有的{list}。",
        "检测{list}。",
        "检测：{list}",
        "{list}在哪里？",
        "请定位图中的{list}。",
        "帮我找一下{list}。",
        "把{list}标出来。",
        "框出{list}。",
        "给出{list}的位置。",
        "标记图里的{list}。",
        "你能找到{list}吗？",
        "我在找{list}。",
        "在图中搜索{list}。",
        "{list}",
    ),
}

REFER: Templates = {
    ENGLISH: (
        "Find {it}.",
        "Where is {it}?",
        "Detect {it}.",
        "Locate {it}.",
        "Show me {it}.",
        "Can you find {it}?",
        "Mark {it} in the image.",
        "Draw a box around {it}.",
        "Give me the box of {it}.",
        "Look for {it}.",
        "Point at {it}.",
        "I mean {it}: where is it?",
        "{it}",
    ),
    CHINESE: (
        "找{it}。",
        "找出{it}。",
        "{it}在哪里？",
        "检测{it}。",
        "检测：{it}",
        "请定位{it}。",
        "帮我找一下{it}。",
        "把{it}标出来。",
        "框出{it}。",
        "给出{it}的位置。",
        "标记{it}。",
        "你能找到{it}吗？",
        "指出{it}。",
        "{it}",
    ),
}

COUNT: Templates = {
    ENGLISH: (
        "How many {many} are there?",
        "How many {many} are in the picture?",
        "How many {many} do you see?",
        "How many {many} can you find?",
        "Count the {many}.",
        "Count all {many} in this image.",
        "What is the number of {many}?",
        "Tell me how many {many} there are.",
        "Can you count the {many}?",
        "I need the number of {many}.",
        "Give me a count of the {many}.",
        "How many {many}?",
        "Number of {many}?",
    ),
    CHINESE: (
        "有几{measure}{one}？",
        "图里有几{measure}{one}？",
        "图中有多少{measure}{one}？",
        "一共有多少{measure}{one}？",
        "你看到几{measure}{one}？",
        "数一数{one}。",
        "数一下图里的{one}。",
        "{one}有多少{measure}？",
        "{one}的数量是多少？",
        "请告诉我有几{measure}{one}。",
        "帮我数数有多少{one}。",
        "能数一下{one}吗？",
        "这张图里{one}有几{measure}？",
    ),
}

PRESENCE: Templates = {
    ENGLISH: (
        "Is there {a}?",
        "Is there {a} in the picture?",
        "Are there any {many}?",
        "Are there {many} in this image?",
        "Do you see {a}?",
        "Do you see any {many} here?",
        "Can you see {a}?",
        "Does the picture show {a}?",
        "Does this image contain any {many}?",
        "Tell me whether there is {a}.",
        "Is {a} here?",
        "Any {many}?",
        "Is there at least one {one}?",
    ),
    CHINESE: (
        "有{one}吗？",
        "图里有{one}吗？",
        "图中有没有{one}？",
        "有没有{one}？",
        "你看到{one}了吗？",
        "能看到{one}吗？",
        "这张图里有{one}吗？",
        "图片里是否有{one}？",
        "请告诉我有没有{one}。",
        "里面有{one}吗？",
        "是否存在{one}？",
        "这里有没有{one}？",
        "至少有一{measure}{one}吗？",
    ),
}

# ``{a}`` and ``{b}`` are plurals here.
COMPARE_MORE: Templates = {
    ENGLISH: (
        "Are there more {a} than {b}?",
        "Are there more {a} than {b} in the picture?",
        "Do you see more {a} than {b}?",
        "Is the number of {a} greater than the number of {b}?",
        "Does this image show more {a} than {b}?",
        "Tell me whether there are more {a} than {b}.",
        "Can you see more {a} than {b}?",
        "More {a} than {b}?",
        "Do the {a} outnumber the {b}?",
        "Compare: more {a} than {b}?",
        "Is it true that there are more {a} than {b}?",
        "Are the {a} more numerous than the {b}?",
    ),
    CHINESE: (
        "{a}比{b}多吗？",
        "图里的{a}比{b}多吗？",
        "{a}的数量比{b}多吗？",
        "{a}是不是比{b}多？",
        "这张图里{a}比{b}多吗？",
        "请告诉我{a}是否比{b}多。",
        "你看到的{a}比{b}多吗？",
        "{a}是否多于{b}？",
        "{a}的数量大于{b}吗？",
        "比较一下：{a}比{b}多吗？",
        "图中{a}有没有比{b}多？",
        "{a}多于{b}，对吗？",
    ),
}

# ``{a}`` and ``{b}`` are plurals here.
COMPARE_WHICH: Templates = {
    ENGLISH: (
        "Which are there more of, {a} or {b}?",
        "Are there more {a} or more {b}?",
        "Are there more {a} or {b}?",
        "More {a} or more {b}?",
        "What is more frequent, {a} or {b}?",
        "Which do you see more of: {a} or {b}?",
        "Which is the larger group, the {a} or the {b}?",
        "Compare the numbers of {a} and {b}: which is higher?",
        "Do you see more {a} or more {b}?",
        "Which has the higher count, {a} or {b}?",
        "Tell me which are more numerous, {a} or {b}.",
        "Of {a} and {b}, which are there more of?",
    ),
    CHINESE: (
        "{a}和{b}哪个多？",
        "{a}和{b}哪个更多？",
        "{a}多还是{b}多？",
        "图里{a}多还是{b}多？",
        "是{a}多还是{b}多？",
        "{a}与{b}相比，哪个数量更多？",
        "比较{a}和{b}的数量，哪个多？",
        "哪个更多，{a}还是{b}？",
        "请问{a}和{b}哪个数量多？",
        "图中哪个更多：{a}还是{b}？",
        "{a}和{b}，哪个多一些？",
        "告诉我{a}和{b}哪个多。",
    ),
}

# ``{a}`` and ``{b}`` are singulars here.
COMPARE_LARGER: Templates = {
    ENGLISH: (
        "Which is larger, the {a} or the {b}?",
        "Which is bigger, the {a} or the {b}?",
        "Is the {a} or the {b} larger?",
        "What is bigger here: the {a} or the {b}?",
        "Which one is larger in the picture, the {a} or the {b}?",
        "Compare the sizes of the {a} and the {b}: which is larger?",
        "Tell me which is bigger, the {a} or the {b}.",
        "Of the {a} and the {b}, which is larger?",
        "Which takes up more space, the {a} or the {b}?",
        "Which covers more of the image, the {a} or the {b}?",
        "The {a} or the {b}: which is the bigger one?",
        "Between the {a} and the {b}, which is larger?",
    ),
    CHINESE: (
        "{a}和{b}哪个大？",
        "{a}和{b}哪个更大？",
        "{a}大还是{b}大？",
        "图里{a}和{b}谁更大？",
        "比较{a}和{b}的大小，哪个大？",
        "哪个更大，{a}还是{b}？",
        "请问{a}和{b}哪个比较大？",
        "图中哪个大一些：{a}还是{b}？",
        "{a}与{b}相比，哪个更大？",
        "告诉我{a}和{b}哪个大。",
        "{a}和{b}，哪个占的面积更大？",
        "是{a}大还是{b}大？",
    ),
}

OPEN: Templates = {
    ENGLISH: (
        "What is here? Show me.",
        "What do you see? Show me where.",
        "Show me everything.",
        "Find everything in this picture.",
        "Detect all objects.",
        "What is in the image? Mark it.",
        "Name what you see and point it out.",
        "Which things are there? Draw boxes.",
        "Locate every object that you know.",
        "Tell me what is here and where it is.",
        "Mark all the things in the picture.",
        "What objects can you find?",
        "Identify and locate everything.",
        "List the objects with their boxes.",
    ),
    CHINESE: (
        "这里有什么？指给我看。",
        "你看到什么？在哪里？",
        "把所有东西都找出来。",
        "找出图里的一切。",
        "检测所有物体。",
        "图里有什么？标出来。",
        "说出你看到的东西并指出位置。",
        "有哪些东西？框出来。",
        "定位你认识的每个物体。",
        "告诉我这里有什么，在什么地方。",
        "标记图中所有的东西。",
        "你能找到哪些物体？",
        "识别并定位所有物体。",
        "列出物体和它们的位置。",
    ),
}

CAPTION: Templates = {
    ENGLISH: (
        "Describe the picture in one sentence.",
        "Describe this image.",
        "Write a caption.",
        "Give me a short caption for this image.",
        "What does the picture show, in one sentence?",
        "Caption this.",
        "Summarise the image in words.",
        "Tell me in words what the picture shows.",
        "Please describe the scene.",
        "A short description, please.",
        "What is this a picture of?",
        "Describe the scene without boxes.",
    ),
    CHINESE: (
        "用一句话描述这张图。",
        "描述一下这张图片。",
        "写一个标题。",
        "给这张图写一句说明。",
        "用一句话说说图里是什么。",
        "请描述这个场景。",
        "简单描述一下。",
        "用文字概括这张图。",
        "这是一张什么图？",
        "说说画面的内容。",
        "请写一句图片说明。",
        "只用文字描述这个画面。",
    ),
}

# Put before or behind a question that the model is to answer from its own sight.
WITHOUT_TOOLS: Templates = {
    ENGLISH: (
        " Answer without tools.",
        " Answer just by looking.",
        " Do not use tools.",
        " No tools, please.",
        " Without the detector.",
        " Just look yourself.",
    ),
    CHINESE: (
        "不用工具回答。",
        "只凭看来回答。",
        "不要使用工具。",
        "请不要用工具。",
        "不用检测器。",
        "自己看一看。",
    ),
}

# Around the phrases of an answer that routes: what stands before the first, and after the last.
ROUTED_ANSWERS: dict[str, tuple[tuple[str, str], ...]] = {
    ENGLISH: (
        ("Searching for ", "."),
        ("Here you are: ", "."),
        ("Looking for ", "."),
        ("Results: ", "."),
        ("", "."),
    ),
    CHINESE: (("查找", "。"), ("结果：", "。"), ("正在查找", "。"), ("请看：", "。"), ("", "。")),
}

OPEN_ANSWERS: dict[str, tuple[tuple[str, str], ...]] = {
    ENGLISH: (("I see ", "."), ("Here I see ", "."), ("There is ", "."), ("I find ", ".")),
    CHINESE: (("我看到", "。"), ("图里有", "。"), ("这里有", "。"), ("我找到", "。")),
}

ANSWER_SEPARATOR = {ENGLISH: ", ", CHINESE: "、"}

COUNT_ANSWERS: Templates = {
    # ``{there_are}``: "There is 1 dog" or "There are 3 dogs"; ``{number}``, ``{noun}``: "3", "dogs".
    ENGLISH: ("{there_are}.", "I count {number} {noun}.", "{number}.", "I find {number} {noun}."),
    CHINESE: (
        "有{number}{measure}{one}。",
        "一共{number}{measure}{one}。",
        "{number}{measure}。",
        "图里有{number}{measure}{one}。",
    ),
}

# ``{some}``: "a dog" or "3 dogs".
PRESENCE_YES: Templates = {
    ENGLISH: ("Yes, there {is_or_are} {some}.", "Yes.", "Yes, I see {some}.", "Yes, I find {some}."),
    CHINESE: ("有，有{number}{measure}{one}。", "有。", "有的，我看到{one}。", "是的，有{one}。"),
}
PRESENCE_NO: Templates = {
    ENGLISH: ("No, there is no {one}.", "No.", "No, I see no {one}.", "No, I find no {one}."),
    CHINESE: ("没有，图里没有{one}。", "没有。", "没有，我没看到{one}。", "没有，找不到{one}。"),
}

# ``{a}`` and ``{b}``: plurals; ``{x}`` and ``{y}``: their numbers.
MORE_YES: Templates = {
    ENGLISH: ("Yes, {x} {a} and {y} {b}.", "Yes.", "Yes, there are more {a}.", "Yes, {x} against {y}."),
    CHINESE: ("是的，{a}有{x}，{b}有{y}。", "是的。", "是的，{a}更多。", "是的，{x}比{y}。"),
}
MORE_NO: Templates = {
    ENGLISH: ("No, {x} {a} and {y} {b}.", "No.", "No, there are not more {a}.", "No, {x} against {y}."),
    CHINESE: ("不是，{a}有{x}，{b}有{y}。", "不是。", "不是，{a}没有更多。", "不是，{x}比{y}。"),
}
# ``{a}`` is the more numerous one.
WHICH_MORE: Templates = {
    ENGLISH: ("More {a}: {x} against {y}.", "More {a}.", "More {a} than {b}.", "More {a}: {x} and {y}."),
    CHINESE: ("{a}更多：{x}比{y}。", "{a}更多。", "{a}比{b}多。", "{a}多，{x}比{y}。"),
}
EQUALLY_MANY: Templates = {
    ENGLISH: ("Equally many: {x}.", "Equally many.", "The same number: {x}.", "Neither: {x} each."),
    CHINESE: ("一样多：{x}。", "一样多。", "数量相同：{x}。", "都是{x}。"),
}
# ``{a}`` is the larger one.
WHICH_LARGER: Templates = {
    ENGLISH: ("The {a}.", "The {a} is larger.", "The {a} is bigger.", "The {a} is larger than the {b}."),
    CHINESE: ("{a}。", "{a}更大。", "{a}比较大。", "{a}比{b}大。"),
}
NOT_FOUND: Templates = {
    ENGLISH: ("I do not find the {a}.", "There is no {a}.", "I see no {a}.", "No {a} was found."),
    CHINESE: ("没有找到{a}。", "图里没有{a}。", "我没看到{a}。", "找不到{a}。"),
}
TOOL_FAILED: Templates = {
    ENGLISH: (
        "The tool failed, so I cannot say.",
        "I cannot say: the tool failed.",
        "The detector failed. Please try again.",
        "Sorry, the tool failed.",
    ),
    CHINESE: ("工具出错了，我无法回答。", "无法回答：工具出错了。", "检测工具出错了，请重试。", "抱歉，工具出错了。"),
}

CAPTION_ANSWERS: Templates = {
    ENGLISH: ("{things}.", "The picture shows {things}.", "I see {things}.", "There is {things}."),
    CHINESE: ("{things}。", "图里有{things}。", "我看到{things}。", "画面上有{things}。"),
}
NOTHING: Templates = {
    ENGLISH: ("I see nothing that I know.", "Nothing that I know.", "I find nothing here.", "There is nothing I know."),
    CHINESE: ("没有我认识的东西。", "我没看到认识的东西。", "这里什么也没找到。", "图里没有我认识的物体。"),
}

# What is said where an image is needed and none was shown.
NO_IMAGE: Templates = {
    ENGLISH: (
        "Please show me an image.",
        "I need an image for that.",
        "There is no image. Please send one.",
        "Please send an image first.",
    ),
    CHINESE: ("请给我一张图片。", "这需要一张图片。", "没有图片，请先发一张。", "请先发送图片。"),
}

# Superlatives: the first wording is the canonical one, which the routed phrase carries.
SUPERLATIVES: dict[str, Templates] = {
    "leftmost": {
        ENGLISH: ("the leftmost {one}", "the {one} furthest to the left", "the {one} on the far left"),
        CHINESE: ("最左边的{one}", "最左侧的{one}", "最靠左的{one}"),
    },
    "rightmost": {
        ENGLISH: ("the rightmost {one}", "the {one} furthest to the right", "the {one} on the far right"),
        CHINESE: ("最右边的{one}", "最右侧的{one}", "最靠右的{one}"),
    },
    "topmost": {
        ENGLISH: ("the topmost {one}", "the highest {one}", "the {one} nearest the top"),
        CHINESE: ("最上面的{one}", "最上方的{one}", "最靠上的{one}"),
    },
    "bottommost": {
        ENGLISH: ("the bottommost {one}", "the lowest {one}", "the {one} nearest the bottom"),
        CHINESE: ("最下面的{one}", "最下方的{one}", "最靠下的{one}"),
    },
    "largest": {
        ENGLISH: ("the largest {one}", "the biggest {one}", "the {one} that is largest"),
        CHINESE: ("最大的{one}", "最大的那{measure}{one}", "个头最大的{one}"),
    },
    "smallest": {
        ENGLISH: ("the smallest {one}", "the tiniest {one}", "the {one} that is smallest"),
        CHINESE: ("最小的{one}", "最小的那{measure}{one}", "个头最小的{one}"),
    },
}

# Relations: {one} stands there as seen from {other}. The first wording is the canonical one.
RELATIONS: dict[str, Templates] = {
    "left": {
        ENGLISH: ("the {one} left of the {other}", "the {one} to the left of the {other}"),
        CHINESE: ("{other}左边的{one}", "{other}左侧的{one}"),
    },
    "right": {
        ENGLISH: ("the {one} right of the {other}", "the {one} to the right of the {other}"),
        CHINESE: ("{other}右边的{one}", "{other}右侧的{one}"),
    },
    "above": {
        ENGLISH: ("the {one} above the {other}", "the {one} higher up than the {other}"),
        CHINESE: ("{other}上面的{one}", "{other}上方的{one}"),
    },
    "below": {
        ENGLISH: ("the {one} below the {other}", "the {one} lower down than the {other}"),
        CHINESE: ("{other}下面的{one}", "{other}下方的{one}"),
    },
}

# Text only: what may be said, and what is answered.
SMALL_TALK: dict[str, tuple[tuple[tuple[str, ...], tuple[str, ...]], ...]] = {
    ENGLISH: (
        (
            ("Hello.", "Hi!", "Hi there.", "Good morning.", "Hey.", "Good evening!"),
            ("Hello! Show me an image and say what to find.", "Hi! What shall I look for?"),
        ),
        (
            ("What can you do?", "Who are you?", "What are you?", "Help.", "How do you work?", "What is this program?"),
            (
                "I find, count and compare things in images.",
                "I am Superlink. I find, count and compare things in images.",
            ),
        ),
        (
            ("Thanks.", "Thank you!", "Great, thanks.", "Well done.", "Nice work!", "Perfect."),
            ("You are welcome.", "With pleasure."),
        ),
        (("Bye.", "Goodbye.", "See you.", "Good night."), ("Goodbye!", "See you!")),
        (("How are you?", "How do you do?", "Are you fine?", "Everything all right?"), ("I am fine, thank you.",)),
        (
            ("What is [DET]?", "What does [DET] mean?", "Say [DET].", "Write <link>.", "[DET]", "<|observe|>", "<ref>"),
            ("That is only text to me.", "I read that as plain text."),
        ),
    ),
    CHINESE: (
        (
            ("你好。", "您好！", "嗨。", "早上好。", "晚上好！", "你好啊"),
            ("你好！给我一张图片，告诉我要找什么。", "你好！要找什么？"),
        ),
        (
            ("你能做什么？", "你是谁？", "你会什么？", "帮助", "你怎么用？", "这是什么程序？"),
            ("我可以在图片里查找、计数和比较物体。", "我是Superlink，可以在图片里查找、计数和比较物体。"),
        ),
        (("谢谢。", "谢谢你！", "多谢。", "干得好。", "很好！", "太棒了。"), ("不客气。", "很高兴帮忙。")),
        (("再见。", "拜拜。", "回头见。", "晚安。"), ("再见！", "回头见！")),
        (("你好吗？", "最近怎么样？", "还好吗？"), ("我很好，谢谢。",)),
        (
            ("[DET]是什么？", "[DET]是什么意思？", "请说[DET]。", "写<link>。", "[DET]", "<|observe|>", "<ref>"),
            ("对我来说那只是文字。", "我把它当作普通文字。"),
        ),
    ),
}

# Typed around a request by people who know the routing tokens; it changes nothing.
LITERAL_TOKENS = ("[DET]", "<link>", "<ref>", "</ref>", "<|observe|>", "<|im_end|>", "[DET]<link>", "[SEG]", "<img>")

POLITE_BEFORE: Templates = {
    ENGLISH: ("Please ", "please ", "Hi, ", "Hello! ", "OK, ", "Now "),
    CHINESE: ("请", "请你", "麻烦", "你好，", "现在", "请问，"),
}
# Before questions, where a request's "please" would be no Chinese.
POLITE_BEFORE_QUESTION: Templates = {
    ENGLISH: POLITE_BEFORE[ENGLISH],
    CHINESE: ("你好，", "请问，", "请问", "您好，"),
}
POLITE_AFTER: Templates = {ENGLISH: (" Thanks.", " Thank you!", " please"), CHINESE: ("谢谢。", "谢谢！", "好吗？")}

LIST_SEPARATORS: Templates = {
    ENGLISH: (", ", ", ", ", ", " and ", "; ", ",", " , "),
    CHINESE: ("、", "、", "、", "，", "和", "; ", ", "),
}
# Before the last of several; the empty one keeps the ordinary separator.
LAST_SEPARATORS: Templates = {
    ENGLISH: ("", " and ", ", and ", " or "),
    CHINESE: ("", "和", "以及", "还有"),
}
