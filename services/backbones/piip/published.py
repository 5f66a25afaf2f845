"""The paper's configurations, and the costs that it and its authors' code report for them.

Rows are named as published: branches from the smallest to the largest, resolutions from high to low. Not here are the
rows whose bookkeeping is unknown: LH6B, the pyramids with ConvNeXt branches, and ADE20K's plain ViT-B and ViT-L.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from services.backbones.piip.configuration import (
    ConvNextBranchConfig,
    ConvNextSize,
    InteractionConfig,
    PiipConfig,
    VitBranchConfig,
    VitSize,
)
from services.backbones.piip.cost import convnext_macs, interaction_macs, pyramid_cost, vit_macs

_GIGA = 1e9
_CLASSES = 1000
# Of ViTDet: every third layer sees everything.
_EVERY_THIRD = {12: (2, 5, 8, 11), 24: (2, 5, 8, 11, 14, 17, 20, 23)}


@dataclass(frozen=True)
class PublishedRow:
    """A configuration's cost here and in print, both in 10⁹ MACs of one picture."""

    name: str
    gmacs: float
    published: float


TSB: tuple[VitSize, ...] = ("T", "S", "B")
SBL: tuple[VitSize, ...] = ("S", "B", "L")
TSBL: tuple[VitSize, ...] = ("T", "S", "B", "L")


def pyramid(
    sizes: Sequence[VitSize],
    resolutions: Sequence[int],
    window: int | Sequence[int | None] | None = None,
    interaction: InteractionConfig | None = None,
    **branch: Any,
) -> PiipConfig:
    """A pyramid by its published name: ``sizes`` from small to large, ``resolutions`` from high to low.

    ``window`` is one for all or one a branch, in the same order; ``branch`` holds further keys of every branch.
    """
    windows = [window] * len(sizes) if window is None or isinstance(window, int) else list(window)
    branches = [
        VitBranchConfig.model_validate({"size": size, "resolution": resolution, "window": side} | branch)
        for size, resolution, side in zip(sizes, resolutions, windows, strict=True)
    ]
    return PiipConfig(branches=tuple(reversed(branches)), interaction=interaction or InteractionConfig())


def published_rows() -> list[PublishedRow]:
    """All rows that the cost model can be held to."""
    rows = [*_plain(), *_detection(), *_interactions(), *_inversion(), *_segmentation(), *_classification(), *_llava()]
    return [PublishedRow(name, macs() / _GIGA, published) for name, macs, published in rows]


_Row = tuple[str, Callable[[], float], float]


def _vit(size: VitSize, resolution: int, **keys: Any) -> Callable[[], float]:
    branch = VitBranchConfig.model_validate({"size": size, "resolution": resolution} | keys)
    return partial(vit_macs, branch)


def _convnext(size: ConvNextSize, resolution: int) -> ConvNextBranchConfig:
    return ConvNextBranchConfig.model_validate({"size": size, "resolution": resolution})


def _plain() -> Iterator[_Row]:
    yield "ViTDet-B 1024", _vit("B", 1024, window=14, global_layers=_EVERY_THIRD[12]), 463
    yield "ViTDet-L 1024", _vit("L", 1024, window=14, global_layers=_EVERY_THIRD[24]), 1542
    yield "InternViT-6B 1024, global attention", _vit("6B", 1024), 29323
    yield "InternViT-6B 1024, windows", _vit("6B", 1024, window=14), 24418
    yield "InternViT-6B 512, global attention", _vit("6B", 512), 6364
    yield "InternViT-6B 512, windows", _vit("6B", 512, window=14), 6105
    yield "ViT-L 224", _vit("L", 224, class_token=True), 61.6
    yield "ConvNeXt-B 1024", partial(convnext_macs, _convnext("B", 1024)), 321
    yield "CLIP-L 336", _vit("L", 336, patch_size=14, class_token=True), 191


def _merged(config: PiipConfig, pads_projections: bool = False) -> Callable[[], float]:
    return lambda: pyramid_cost(config, pads_projections).published


_BARE = InteractionConfig(projects_and_norms=False)


def _detection() -> Iterator[_Row]:
    for resolutions, published in (((1120, 896, 448), 243), ((1568, 896, 448), 287), ((1568, 1120, 672), 453)):
        yield f"PIIP-TSB {_joined(resolutions)}", _merged(pyramid(TSB, resolutions, 14)), published
    for resolutions, published in (
        ((1120, 672, 448), 727),
        ((1344, 896, 448), 1002),
        ((1568, 896, 672), 1464),
        ((1568, 1120, 672), 1709),
    ):
        yield f"PIIP-SBL {_joined(resolutions)}", _merged(pyramid(SBL, resolutions, 28)), published
    yield "PIIP-SBL 672/448/224", _merged(pyramid(SBL, (672, 448, 224), (28, 28, 14))), 245
    augreg = pyramid(SBL, (1568, 1120, 672), 28)
    yield "PIIP-SBL 1568/1120/672, AugReg", _merged(augreg, pads_projections=True), 1874
    bare = pyramid(SBL, (1568, 1120, 672), 28, _BARE)
    yield "PIIP-SBL 1568/1120/672, AugReg, no FC/LN", _merged(bare, pads_projections=True), 1741
    for four, published in (
        ((1344, 896, 672, 448), 755),
        ((1568, 1120, 672, 448), 861),
        ((1792, 1568, 1120, 448), 1535),
    ):
        yield f"PIIP-TSBL {_joined(four)}", _merged(pyramid(TSBL, four, 28)), published
    yield "PIIP-H6B 1024/512", _merged(pyramid(("H", "6B"), (1024, 512))), 11080
    yield "PIIP-H6B 1024/512, no FC/LN", _merged(pyramid(("H", "6B"), (1024, 512), interaction=_BARE)), 10692


def _interactions() -> Iterator[_Row]:
    """The paper's ablation of how often branches meet, with the attention used and with dense attention."""
    for stages, deformable, regular in (
        (0, 176, None),
        (1, 182, 211),
        (2, 187, 245),
        (4, 198, 315),
        (6, 210, 384),
        (12, 243, 592),
    ):
        config = pyramid(TSB, (1120, 896, 448), 14, InteractionConfig(stages=stages))
        name = f"PIIP-TSB 1120/896/448, interactions after {stages} stages"
        yield name, _merged(config), deformable
        if regular is not None:
            yield f"{name}, regular attention", partial(_regular, config), regular


def _regular(config: PiipConfig) -> float:
    cost = pyramid_cost(config)
    return cost.published - cost.interactions + interaction_macs(config, "regular")


_NOT_INVERTED: tuple[tuple[tuple[VitSize, ...], tuple[int, ...], int, int, float], ...] = (
    (("B", "B", "B"), (896, 448, 224), 14, 0, 369),
    (("B", "B", "B"), (896, 448, 224), 14, 12, 466),
    (("T", "S", "B"), (896, 896, 896), 14, 12, 468),
    (("L", "L", "L"), (896, 448, 224), 14, 12, 1458),
    (("S", "B", "L"), (848, 848, 848), 28, 12, 1539),
)


def _inversion() -> Iterator[_Row]:
    """The paper's comparison of the inverted pyramid with others."""
    for sizes, resolutions, window, stages, published in _NOT_INVERTED:
        config = pyramid(sizes, resolutions, window, InteractionConfig(stages=stages))
        without = "" if stages else ", no interactions"
        yield f"{''.join(sizes)} {_joined(resolutions)}{without}", _merged(config), published
    direct = PiipConfig(
        branches=tuple(
            VitBranchConfig.model_validate(
                {"size": size, "resolution": resolution, "window": 14, "global_layers": wide}
            )
            for size, resolution, wide in (("B", 896, _EVERY_THIRD[12]), ("S", 672, ()), ("T", 448, ()))
        )
    )
    yield "TSB 448/672/896, parameter-direct", _merged(direct), 452


def _segmentation() -> Iterator[_Row]:
    yield "PIIP-TSB 896/448/336", _merged(pyramid(TSB, (896, 448, 336), 28)), 118
    yield "PIIP-SBL 1120/448/336", _merged(pyramid(SBL, (1120, 448, 336), 28)), 456
    for resolution, published in ((192, 1663), (256, 2354), (384, 4374), (512, 7308)):
        config = pyramid(("H", "6B"), (512, resolution), interaction=_BARE)
        yield f"PIIP-H6B 512/{resolution}, no FC/LN", _merged(config), published


def _with_heads(config: PiipConfig) -> float:
    return pyramid_cost(config).without_merge + _CLASSES * sum(config.widths)


def _classification() -> Iterator[_Row]:
    tsb = pyramid(TSB, (368, 192, 128), class_token=True)
    yield "PIIP-TSB 368/192/128, ImageNet", partial(_with_heads, tsb), 17.4
    for resolutions, published in (((320, 160, 96), 39.0), ((384, 192, 128), 61.2)):
        config = pyramid(SBL, resolutions, class_token=True)
        yield f"PIIP-SBL {_joined(resolutions)}, ImageNet", partial(_with_heads, config), published
    yield "PIIP-B 512/256/128, from scratch", partial(_with_merge_and_head, from_scratch()), 18.4


def from_scratch() -> PiipConfig:
    """The paper's model that was trained on ImageNet from scratch (appendix A.3)."""
    return PiipConfig(
        branches=tuple(
            VitBranchConfig(resolution=resolution, width=width, depth=12, heads=heads, window=window)
            for resolution, width, heads, window in ((128, 640, 8, None), (256, 320, 4, None), (512, 160, 2, 16))
        )
    )


def _with_merge_and_head(config: PiipConfig) -> float:
    return pyramid_cost(config).published + _CLASSES * config.widths[0]


def _llava() -> Iterator[_Row]:
    """Vision towers; projectors are not counted."""
    for resolutions, stages, published in (((512, 256), 2, 193), ((512, 448), 12, 422)):
        config = pyramid(("B", "L"), resolutions, None, InteractionConfig(stages=stages), class_token=True)
        yield f"PIIP-LLaVA CLIP-B,L {_joined(resolutions)}", partial(_unmerged, config), published


def _unmerged(config: PiipConfig) -> float:
    return pyramid_cost(config).without_merge


def _joined(resolutions: Sequence[int]) -> str:
    return "/".join(str(resolution) for resolution in resolutions)
