"""The cost model against the published figures, and against what the networks really multiply."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import typer
from torch.utils.flop_counter import FlopCounterMode
from typer.testing import CliRunner

from services.backbones.piip.configuration import PiipConfig, VitBranchConfig
from services.backbones.piip.cost import pyramid_cost, vit_macs
from services.backbones.piip.merging import convolutional_merge
from services.backbones.piip.published import SBL, TSB, TSBL, PublishedRow, VitSize, published_rows, pyramid
from services.backbones.piip.pyramid import ImagePyramid
from services.evaluation.flops import flops

pytestmark = pytest.mark.backbones


@pytest.mark.parametrize("row", published_rows(), ids=lambda row: row.name)
def test_every_published_row_is_met(row: PublishedRow) -> None:
    assert row.gmacs == pytest.approx(row.published, rel=0.003)


@pytest.mark.parametrize(
    ("sizes", "resolutions", "window", "branches", "interactions", "light", "convolutional"),
    [
        (TSB, (1120, 896, 448), 14, (31.2, 73.2, 69.9), 67.1, 1.67, 65.8),
        (TSB, (1568, 1120, 672), 14, (61.2, 114.4, 157.3), 117.4, 2.89, 121.5),
        (SBL, (1120, 672, 448), 28, (141.0, 176.4, 267.7), 138.2, 3.34, 107.6),
        (SBL, (1568, 1120, 672), 28, (276.3, 490.1, 602.2), 332.7, 7.68, 238.9),
        (TSBL, (1344, 896, 672, 448), 28, (64.1, 90.2, 176.4, 267.7), 152.2, 4.04, 163.8),
        (("H", "6B"), (1024, 512), None, (3956.1, 6365.1), 742.4, 16.8, 717.3),
    ],
)
def test_the_parts_of_the_cost(
    sizes: tuple[VitSize, ...],
    resolutions: tuple[int, ...],
    window: int | None,
    branches: tuple[float, ...],
    interactions: float,
    light: float,
    convolutional: float,
) -> None:
    cost = pyramid_cost(pyramid(sizes, resolutions, window))
    assert [macs / 1e9 for macs in cost.branches] == pytest.approx(branches[::-1], rel=0.002)
    assert cost.interactions / 1e9 == pytest.approx(interactions, rel=0.002)
    assert cost.light_merge / 1e9 == pytest.approx(light, rel=0.005)
    assert cost.convolutional_merge / 1e9 == pytest.approx(convolutional, rel=0.002)


@pytest.mark.parametrize(("size", "giga"), [("T", 1.25), ("S", 4.60), ("B", 17.56), ("L", 61.55)])
def test_plain_transformers_at_224(size: VitSize, giga: float) -> None:
    branch = VitBranchConfig.model_validate({"size": size, "resolution": 224, "class_token": True})
    assert vit_macs(branch) / 1e9 == pytest.approx(giga, rel=0.005)


def test_the_networks_multiply_as_much_as_the_model_says() -> None:
    branches = [
        {"resolution": resolution, "width": width, "depth": 2, "heads": 4, "window": 6}
        for resolution, width in ((96, 256), (144, 192), (224, 128))
    ]
    settings = PiipConfig.model_validate({"branches": branches, "interaction": {"stages": 2}})
    cost = pyramid_cost(settings)
    network, merge = ImagePyramid(settings).eval(), convolutional_merge(settings.widths)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        merge([state.as_map() for state in network(torch.randn(1, 3, 224, 224))])
    # Norms and sampling, which the counter does not see, are a few per cent.
    counted = counter.get_total_flops() / 2
    assert counted == pytest.approx(cost.without_merge + cost.convolutional_merge, rel=0.04)


def test_the_command_writes_the_rows(tmp_path: Path) -> None:
    app = typer.Typer()
    app.command()(flops)
    file = tmp_path / "piip.json"
    answer = CliRunner().invoke(app, ["--table", "piip", "--json", str(file)])
    assert answer.exit_code == 0, answer.output
    rows = json.loads(file.read_text(encoding="utf-8"))["rows"]
    named = {row["name"]: row for row in rows}
    assert named["PIIP-TSB 1120/896/448"] == {
        "name": "PIIP-TSB 1120/896/448",
        "gmacs": pytest.approx(243.1, rel=1e-3),
        "published": 243,
    }
    assert len(named) == len(rows) == len(published_rows())
    assert CliRunner().invoke(app, ["--table", "piipp"]).exit_code == 2
