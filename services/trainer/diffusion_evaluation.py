"""How well the diffusion tool does what it is asked for: a trained detector looks for it in what was made."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from services.detection.model import Detector
from services.diffusion.layers import lay_over
from services.diffusion.model import Diffuser
from services.diffusion.structures import DiffusionOptions
from services.grounding.structures import GroundingOptions
from services.trainer.autoencoder_stage import psnr, to_pixels
from services.trainer.scenes.categories import CATEGORY_INDEX
from services.trainer.scenes.composer import Composer
from services.trainer.scenes.drawings import NOTHING, Drawing, draw_drawing, draw_edit_drawing
from services.trainer.scenes.scene import Scene

# Links ``[drawings, queries, link_width]`` that ask for drawings or edits.
LinksOf = Callable[[Sequence[Drawing]], Tensor]

# Apart from what any run learns from.
_FIRST_SEED = 5_000_000_000
_BATCH = 16


def held_out_drawings(composer: Composer, images: int) -> tuple[list[Drawing], list[Drawing]]:
    """``images`` drawings and as many edits that no run learns from."""
    rngs = [np.random.default_rng(_FIRST_SEED + number) for number in range(images)]
    drawings = [draw_drawing(composer, rng) for rng in rngs]
    return drawings, [draw_edit_drawing(composer, _FIRST_SEED + number, rng) for number, rng in enumerate(rngs)]


def evaluate_diffuser(
    diffuser: Diffuser, detector: Detector, drawings: Sequence[Drawing], edits: Sequence[Drawing], links_of: LinksOf
) -> dict[str, float]:
    """Make ``drawings`` and ``edits``, asked for by the links that ``links_of`` gives.

    - agreement: share of the drawings in which the detector finds the category that was asked for;
    - baseline: the same for the category that another drawing was asked for;
    - changed: share of the edits that add, remove or replace after which the detector finds what it should and not
      what it should not;
    - untouched_psnr: dB between source and result of the edits where nothing should change; it can't exceed what the
      autoencoder keeps.
    """
    training = diffuser.training
    diffuser.eval()
    drawn, edited = make_images(diffuser, drawings, links_of), make_images(diffuser, edits, links_of)
    diffuser.train(training)
    asked = [drawing.slots.category for drawing in drawings]
    verdicts = [
        verdict for edit, image in zip(edits, edited, strict=True) for verdict in _verdict(detector, edit, image)
    ]
    return {
        "agreement": _mean([find(detector, image, [key])[0] for image, key in zip(drawn, asked, strict=True)]),
        "baseline": _mean(
            [find(detector, image, [key])[0] for image, key in zip(drawn, asked[1:] + asked[:1], strict=True)]
        ),
        "changed": _mean(verdicts),
        "untouched_psnr": _mean([untouched_psnr(edit, image) for edit, image in zip(edits, edited, strict=True)]),
    }


def make_images(diffuser: Diffuser, drawings: Sequence[Drawing], links_of: LinksOf) -> list[NDArray[np.uint8]]:
    """What the tool makes of each, ``[side, side, 3]``; all are drawings or all are edits."""
    config = diffuser.config
    options = DiffusionOptions(
        steps=config.default_steps,
        guidance=config.default_guidance,
        image_guidance=config.default_image_guidance,
        width=config.image_side,
        height=config.image_side,
    )
    made: list[NDArray[np.uint8]] = []
    device = diffuser.vocabulary.weight.device
    for start in range(0, len(drawings), _BATCH):
        part = drawings[start : start + _BATCH]
        links = links_of(part)
        given = [drawing.source for drawing in part if drawing.source is not None]
        sources = torch.stack([to_pixels(scene.image) for scene in given]).to(device) if given else None
        images: Tensor = diffuser.sample(
            links, sources, None, range(start, start + len(part)), options, lambda _done, _total: None
        )
        rows = images.permute(0, 2, 3, 1).cpu().numpy()
        made.extend([lay_over(scene.image, layer) for scene, layer in zip(given, rows, strict=True)] if given else rows)
    return made


@torch.no_grad()
def find(detector: Detector, image: NDArray[np.uint8], keys: Sequence[str]) -> list[bool]:
    """Whether the detector finds each category in ``image``, asked in rows of its own vocabulary."""
    device = detector.logit_bias.device
    rows = torch.tensor([CATEGORY_INDEX[key] for key in keys], device=device)
    links = detector.vocabulary(rows)[None]
    prepared = detector.prepare(image)
    outputs = detector(detector.encode(prepared.pixels[None].to(device)), links, torch.ones_like(links[..., 0]).bool())
    (result,) = detector.decode(outputs, [prepared.original_size], [len(keys)], [GroundingOptions()])
    return [bool(found) for found in result.presence_found]


def untouched_psnr(edit: Drawing, image: NDArray[np.uint8]) -> float:
    """dB between the target of an edit and what was made, over the pixels that the edit should not change."""
    kept = _kept(edit.source or edit.target, edit.target)
    made, wanted = (to_pixels(pixels[kept][:, None])[None] for pixels in (image, edit.target.image))
    return psnr(made, wanted)


def _mean(values: Sequence[float]) -> float:
    """0 where there are none: a scene set may hold no edit that a detector can judge."""
    return float(np.mean(values)) if values else 0.0


def _kept(source: Scene, target: Scene) -> NDArray[np.bool_]:
    kept: NDArray[np.bool_] = (source.image == target.image).all(axis=2)
    return kept if kept.any() else ~kept


def _verdict(detector: Detector, edit: Drawing, image: NDArray[np.uint8]) -> list[bool]:
    """Whether an edit happened; nothing where a detector can't tell."""
    slots = edit.slots
    if slots.operation not in ("add", "remove", "replace"):
        return []
    wanted = {"add": slots.category, "replace": slots.other}.get(slots.operation, NOTHING)
    unwanted = slots.category if slots.operation != "add" else NOTHING
    happened = wanted == NOTHING or find(detector, image, [wanted])[0]
    return [happened and (unwanted == NOTHING or not find(detector, image, [unwanted])[0])]
