"""A pyramid with a linear head for every cell of a pattern field."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional

from services.backbones.piip.interaction import Injector
from services.backbones.piip.merging import light_merge
from services.backbones.piip.pyramid import ImagePyramid
from services.trainer.image_pyramid.pattern_fields import CELLS, CLASSES
from services.trainer.image_pyramid.plan import ImagePyramidPlan


class CellClassifier(nn.Module):
    """Branches, the light merge of those that are read, and one linear layer."""

    def __init__(self, plan: ImagePyramidPlan) -> None:
        super().__init__()
        self.pyramid = ImagePyramid(plan.piip)
        self.read = slice(-1, None) if plan.readout == "finest" else slice(None)
        widths = plan.piip.widths[self.read]
        self.merge = light_merge(widths)
        self.head = nn.Conv2d(max(widths), CLASSES, 1)

    def forward(self, pixels: Tensor) -> Tensor:
        """``[batch, 3, side, side]`` to logits ``[batch, classes, cells, cells]``."""
        # Whoever asks a pyramid brings the picture to the size that its finest branch sees.
        seen = (self.pyramid.config.finest.resolution,) * 2
        if pixels.shape[2:] != seen:
            pixels = functional.interpolate(pixels, seen, mode="bilinear", align_corners=False)
        maps = [state.as_map() for state in self.pyramid(pixels)[self.read]]
        merged = functional.interpolate(self.merge(maps), (CELLS, CELLS), mode="bilinear", align_corners=False)
        logits: Tensor = self.head(merged)
        return logits

    def mean_gate(self) -> float:
        """Mean size of the gates of the interactions' attention: 0 before training and without interactions."""
        gates = [module.attention_gate.abs().mean() for module in self.modules() if isinstance(module, Injector)]
        return float(sum(gates) / len(gates)) if gates else 0.0
