"""What a student learns from its teacher: to point the way its hidden states point (Mini-InternVL, section 3.1)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from transformers.models.internvl.modeling_internvl import InternVLVisionModel


class HiddenStateDistillation(nn.Module):
    """Negative cosine similarity of the last layers' hidden states, the last with the last, and so on backwards.

    The paper publishes neither how many layers nor how widths are matched. Here every layer of the student has a
    linear map to the teacher's width, which is dropped after training; or, for equal widths, none.
    """

    def __init__(
        self, layers: int, student_width: int, teacher_width: int, projection: Literal["linear", "none"]
    ) -> None:
        """``layers``: how many of the last ones. Raises ValueError where widths differ and nothing matches them."""
        super().__init__()
        if projection == "none" and student_width != teacher_width:
            raise ValueError(f"the student is {student_width} wide and the teacher {teacher_width}; use 'linear'")
        self.projections = nn.ModuleList(
            nn.Linear(student_width, teacher_width) if projection == "linear" else nn.Identity() for _ in range(layers)
        )

    def forward(self, student: Sequence[Tensor], teacher: Sequence[Tensor]) -> Tensor:
        """The similarity of every layer, last layer last: ``[layers]``, 1 where student and teacher agree.

        ``student`` and ``teacher`` hold the states after the last layers, ``[images, 1 + patches, width]`` each. The
        mean runs over images and places, the class token's among them.
        """
        similarities = [
            nn.functional.cosine_similarity(projection(own).float(), taught.float(), dim=-1).mean()
            for projection, own, taught in zip(self.projections, student, teacher, strict=True)
        ]
        return torch.stack(similarities)

    def loss(self, student: Sequence[Tensor], teacher: Sequence[Tensor]) -> Tensor:
        """The mean of ``forward`` over layers, negated: -1 at best."""
        loss: Tensor = -self(student, teacher).mean()
        return loss


def last_hidden_states(tower: InternVLVisionModel, pixels: Tensor, layers: int) -> tuple[Tensor, ...]:
    """States ``[images, 1 + patches, width]`` after each of the last ``layers`` transformer layers."""
    states: tuple[Tensor, ...] = tower(pixel_values=pixels, output_hidden_states=True).hidden_states
    return states[-layers:]
