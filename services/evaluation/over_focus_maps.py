"""Pictures of over-focus (De-focus, section 3.1): where gradients go and what is attended to, network by network."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.figure import Figure

from services.trainer.classification.focus_maps import focus_maps

_INCHES = 1.9
_PANELS = ("gradients of the loss", "class token's receptive field", "attention (rows look at columns)")


def draw_over_focus(file: Path, runs: Sequence[Path]) -> None:
    """Write a PNG or SVG with a row a run: its last layer but one, the mean over held-out digits.

    ``runs`` are folders of finished runs of the stage ``classification``. Raises WeightsError where one has no export.
    """
    with matplotlib.rc_context({"font.size": 8}):
        figure = Figure(figsize=(0.6 + _INCHES * len(_PANELS), 0.3 + _INCHES * len(runs)), layout="constrained")
        panels = figure.subplots(len(runs), len(_PANELS), squeeze=False)
        for row, run in zip(panels, runs, strict=True):
            maps = focus_maps(run)
            for panel, token_map in zip(row, (maps.gradients, maps.receptive_field), strict=False):
                panel.imshow(token_map.values, vmin=0, vmax=1)
                panel.set_xlabel(f"{token_map.tokens:.1f} of {token_map.values.size} tokens")
            # The root lets small weights be seen.
            row[-1].imshow(np.sqrt(maps.attention), vmin=0, vmax=1)
            row[0].set_ylabel(run.name)
            for panel in row:
                panel.set_xticks([])
                panel.set_yticks([])
        for panel, title in zip(panels[0], _PANELS, strict=True):
            panel.set_title(title, fontsize=8)
        figure.savefig(file, dpi=90, metadata={"Date": None} if file.suffix == ".svg" else None)
