"""How people ask for poses; ``{the}`` and its kin as in ``templates``, ``{places}`` is a list of keypoints."""

from __future__ import annotations

from services.trainer.scenes.templates import CHINESE, ENGLISH, Templates

# All keypoints of a kind are wanted.
POSE: Templates = {
    ENGLISH: (
        "Show the pose of {the}.",
        "Find the pose of {the}.",
        "Estimate the poses of the {many}.",
        "What pose is {the} in?",
        "Draw the skeleton of {the}.",
        "Draw skeletons on all {many}.",
        "Show me the skeleton of each {one}.",
        "Find the keypoints of {the}.",
        "Mark all keypoints of the {many}.",
        "How is {the} standing? Show the joints.",
        "I need the pose of every {one}.",
        "Trace the joints of {the}.",
        "Pose: {one}",
        "Keypoints: {many}",
    ),
    CHINESE: (
        "显示{one}的姿态。",
        "找出{one}的姿态。",
        "估计{one}的姿势。",
        "{one}是什么姿势？",
        "画出{one}的骨架。",
        "给每{measure}{one}画骨架。",
        "找出{one}的关键点。",
        "标出{one}的所有关键点。",
        "检测{one}的关键点。",
        "我需要每{measure}{one}的姿态。",
        "描出{one}的关节。",
        "姿态：{one}",
        "关键点：{one}",
    ),
}

# Only some keypoints are wanted.
POSE_PLACES: Templates = {
    ENGLISH: (
        "Find the {places} of {the}.",
        "Where is the {places} of {the}?",
        "Mark the {places} on each {one}.",
        "Show me the {places} of the {many}.",
        "Point at the {places} of {the}.",
        "Locate {places} of {the}.",
        "Find {the}. Now place {places}.",
        "Find all {many} and mark {places}.",
        "Which pixels are the {places} of {the}?",
        "Keypoints of the {one}: {places}",
    ),
    CHINESE: (
        "找出{one}的{places}。",
        "{one}的{places}在哪里？",
        "标出{one}的{places}。",
        "给我看看{one}的{places}。",
        "指出{one}的{places}。",
        "定位{one}的{places}。",
        "找到{one}，再标出{places}。",
        "请标记每{measure}{one}的{places}。",
        "{one}的关键点：{places}",
    ),
}

# Both sides at once, by what follows "left_" and "right_": English and Chinese.
BOTH_SIDES = {
    "eye": ("eyes", "眼睛"),
    "ear": ("ears", "耳朵"),
    "shoulder": ("shoulders", "肩膀"),
    "elbow": ("elbows", "肘"),
    "wrist": ("wrists", "手腕"),
    "hip": ("hips", "髋"),
    "knee": ("knees", "膝盖"),
    "ankle": ("ankles", "脚踝"),
    "front_paw": ("front paws", "前爪"),
    "back_paw": ("back paws", "后爪"),
}
