"""How the released InternVL families lay turns out.

Literal shapes by the template names of their configurations; a beginning-of-text token is the tokenizer's affair:

    internlm2-chat, Hermes-2   <|im_start|>user⏎QUESTION<|im_end|><|im_start|>assistant⏎
    internvl2_5                <|im_start|>user⏎QUESTION<|im_end|>⏎<|im_start|>assistant⏎
    phi3-chat                  <|user|>⏎QUESTION<|end|><|assistant|>⏎
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from superlink.configuration import Section

TemplateName = Literal["internlm2-chat", "Hermes-2", "phi3-chat", "internvl2_5"]

# What the released checkpoints were trained to be told where nobody says anything else. They ask the model to be
# InternVL of the Shanghai AI Laboratory (with SenseTime; with Tsinghua University and partners).
SYSTEM_MESSAGE_1_5 = (
    "你是由上海人工智能实验室联合商汤科技开发的书生多模态大模型，英文名叫InternVL, 是一个有用无害的人工智能助手。"
)
SYSTEM_MESSAGE_2_5 = (
    "你是书生·万象，英文名是InternVL，是由上海人工智能实验室、清华大学及多家合作单位联合开发的多模态大语言模型。"
)


@dataclass(frozen=True)
class Template:
    """The tokens around a turn."""

    turn_end: str
    # Text between the end of a turn and the next header.
    after_turn: str
    # Special tokens that the headers begin with.
    header_tokens: tuple[str, ...]
    # Of the family's checkpoints.
    default_system_message: str

    def header(self, role: str) -> tuple[str, str]:
        """What a turn of ``role`` begins with: a special token and the text after it."""
        own = f"<|{role}|>"
        return (own, "\n") if own in self.header_tokens else (self.header_tokens[0], f"{role}\n")


_CHATML = ("<|im_start|>",)
_PHI3 = ("<|system|>", "<|user|>", "<|assistant|>", "<|observation|>")

TEMPLATES: dict[TemplateName, Template] = {
    "internlm2-chat": Template("<|im_end|>", "", _CHATML, SYSTEM_MESSAGE_1_5),
    "Hermes-2": Template("<|im_end|>", "", _CHATML, SYSTEM_MESSAGE_1_5),
    "phi3-chat": Template("<|end|>", "", _PHI3, SYSTEM_MESSAGE_1_5),
    "internvl2_5": Template("<|im_end|>", "\n", _CHATML, SYSTEM_MESSAGE_2_5),
}


class PromptFormat(Section):
    """How a model's conversations are laid out. The default is that of Superlink's own models and of ``*-hf`` ones."""

    template: TemplateName = "internvl2_5"
    # Said first in conversations that have no system turn of their own; empty: nothing.
    system_message: str = ""
    # The token before everything, of models whose tokenizer adds one.
    bos_token: str | None = None
    # Answers ground phrases in their text, <ref>dog</ref><box>[[244, 469, 557, 747]]</box>, as public models do; those
    # with trained links leave that to the tools, and show no markup.
    grounds_in_text: bool = False

    @property
    def shape(self) -> Template:
        """The tokens around its turns."""
        return TEMPLATES[self.template]
