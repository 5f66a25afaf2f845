"""What an image pyramid costs in time: ``python tests/benchmarks/image_pyramid.py [--json FILE] [--only PART]``.

- ``pyramid``: one forward pass of PIIP-TSB 1120/896/448, with the light and with the convolutional merge, over one of
  ViTDet-B at 1024 pixels (windows of 14, every third layer global). The published costs are 243 and 463 G MACs.
- ``attention``: deformable attention as it is built here over the same sums by mmcv's fallback in torch, at the four
  pairs of grids of that pyramid; in inference, and forward and backward.

Networks take turns, and with one thread the clock is the thread's own CPU time, so that what else runs on the machine
matters little. Weights are random: nothing here depends on them but where the points lie, which is around each query.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from services.backbones.piip.configuration import InteractionConfig, VitBranchConfig
from services.backbones.piip.deformable_attention import DeformableAttention, cell_centres
from services.backbones.piip.merging import convolutional_merge, light_merge
from services.backbones.piip.published import TSB, pyramid
from services.backbones.piip.pyramid import ImagePyramid
from services.backbones.piip.sampling import sample_by_bags, sample_by_grid
from services.backbones.piip.vit import VitBranch
from services.grounding import compiled_operations  # noqa: F401  (must come before mmcv)

from mmcv.ops.multi_scale_deform_attn import multi_scale_deformable_attn_pytorch  # isort: skip

RESOLUTIONS = (1120, 896, 448)
# Query grid, key grid and width of each direction of the two units.
PAIRS = (
    ("T from S", 70, 56, 192),
    ("S from T", 56, 70, 384),
    ("S from B", 56, 28, 384),
    ("B from S", 28, 56, 768),
)


def seconds(ways: dict[str, Callable[[], object]], repeats: int) -> dict[str, float]:
    """Median time of each way; they take turns, and each runs once before it counts."""
    clock = time.thread_time if torch.get_num_threads() == 1 else time.perf_counter
    spent: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(repeats + 1):
        for name, way in ways.items():
            started = clock()
            way()
            if turn:
                spent[name].append(clock() - started)
    return {name: statistics.median(values) for name, values in spent.items()}


def measure_pyramid(repeats: int) -> dict[str, float]:
    """Seconds of a forward pass of each network, and their ratios."""
    settings = pyramid(TSB, RESOLUTIONS, 14)
    network = ImagePyramid(settings).eval()
    merges: dict[str, nn.Module] = {
        "light": light_merge(settings.widths).eval(),
        "convolutional": convolutional_merge(settings.widths).eval(),
    }
    single = VitBranch(
        VitBranchConfig.model_validate({"size": "B", "resolution": 1024, "window": 14, "global_layers": (2, 5, 8, 11)}),
        1,
    ).eval()
    large, small = torch.randn(1, 3, 1120, 1120), torch.randn(1, 3, 1024, 1024)
    states = network(large)
    maps = [state.as_map() for state in states]
    spent = seconds(
        {
            "vitdet_b": lambda: single.run(single.embed(small), 0),
            "branches_and_interactions": lambda: network(large),
            **{f"merge_{name}": (lambda merge=merge: merge(maps)) for name, merge in merges.items()},
        },
        repeats,
    )
    figures = {f"{name}_s": value for name, value in spent.items()}
    for name in merges:
        whole = spent["branches_and_interactions"] + spent[f"merge_{name}"]
        figures[f"{name}_merge_vs_vitdet_b"] = whole / spent["vitdet_b"]
    return figures


def by_mmcv(values: Tensor, grid: tuple[int, int], places: Tensor, weights: Tensor) -> Tensor:
    """The same sums by mmcv's fallback."""
    locations = (places + 0.5) / places.new_tensor((grid[1], grid[0]))
    shapes = torch.tensor([grid])
    summed: Tensor = multi_scale_deformable_attn_pytorch(
        values, shapes, locations[:, :, :, None], weights[..., None, :]
    )
    return summed


def measure_attention(repeats: int) -> dict[str, dict[str, float]]:
    """For each direction: milliseconds of both, and how many times faster ours is."""
    config = InteractionConfig()
    figures = {}
    for name, side, key_side, width in PAIRS:
        layer = DeformableAttention(width, width, config)
        values = torch.randn(1, key_side**2, config.heads, width // 2 // config.heads)
        offsets = layer.offsets.bias.detach().view(config.heads, config.points, 2)
        centres = cell_centres((side, side), (key_side, key_side), torch.device("cpu"))
        places = centres[:, None, None] + offsets + torch.randn(1, side**2, config.heads, config.points, 2)
        weights = torch.rand(1, side**2, config.heads, config.points).softmax(dim=-1)
        grid = (key_side, key_side)

        def learn(form: Callable[..., Tensor], parts: Sequence[Tensor], grid: tuple[int, int] = grid) -> None:
            values, places, weights = (part.clone().requires_grad_() for part in parts)
            with torch.enable_grad():
                form(values, grid, places, weights).sum().backward()

        parts = (values, places, weights)
        spent = seconds(
            {
                "mmcv": lambda parts=parts, grid=grid: by_mmcv(parts[0], grid, *parts[1:]),
                "ours": lambda parts=parts, grid=grid: sample_by_bags(parts[0], grid, *parts[1:]),
                "mmcv_training": lambda parts=parts, learn=learn: learn(by_mmcv, parts),
                "ours_training": lambda parts=parts, learn=learn: learn(sample_by_grid, parts),
            },
            repeats,
        )
        figures[name] = {f"{way}_ms": 1000 * value for way, value in spent.items()} | {
            "times_faster": spent["mmcv"] / spent["ours"],
            "times_faster_training": spent["mmcv_training"] / spent["ours_training"],
        }
    totals = {
        way: sum(figures[name][f"{way}_ms"] for name, *_ in PAIRS)
        for way in ("mmcv", "ours", "mmcv_training", "ours_training")
    }
    figures["all"] = {
        "times_faster": totals["mmcv"] / totals["ours"],
        "times_faster_training": totals["mmcv_training"] / totals["ours_training"],
    }
    return figures


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    parser.add_argument("--only", choices=("pyramid", "attention"), help="measure this part alone")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    figures: dict[str, object] = {}
    with torch.no_grad():
        if arguments.only != "pyramid":
            figures["attention"] = measure_attention(arguments.repeats)
        if arguments.only != "attention":
            figures["pyramid"] = measure_pyramid(arguments.repeats)
    text = json.dumps(figures, indent=2)
    sys.stdout.write(text + "\n")
    if arguments.json:
        arguments.json.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
