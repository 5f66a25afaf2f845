"""Image pyramids inside mmdet: complete detectors build, learn and predict."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from mmengine.config import Config
from torch import Tensor, nn

from services.backbones.piip.pretrained import CheckpointError
from services.grounding import compiled_operations, piip_backbone  # noqa: F401
from services.grounding.piip_layer_decay import layer_factor

from mmcv.ops import RoIAlign, nms  # isort: skip
from mmdet.registry import MODELS  # isort: skip
from mmdet.structures import DetDataSample  # isort: skip
from mmdet.structures.mask import BitmapMasks  # isort: skip
from mmengine.optim import build_optim_wrapper  # isort: skip
from mmengine.registry import DefaultScope, init_default_scope  # isort: skip
from mmengine.structures import InstanceData  # isort: skip

pytestmark = pytest.mark.backbones

CONFIGS = Path(piip_backbone.__file__).parent / "mmdet_configs"
SIDE = 128
BRANCHES = [
    {"resolution": 64, "width": 64, "depth": 2, "heads": 2, "window": 3},
    {"resolution": 128, "width": 32, "depth": 2, "heads": 2, "window": 3},
]


@pytest.fixture(autouse=True)
def _scope() -> Any:
    init_default_scope("mmdet")
    yield
    DefaultScope._instance_dict.clear()


def read(name: str) -> Any:
    config = Config.fromfile(CONFIGS / f"{name}.py")
    config.model.backbone.update(branches=BRANCHES, interaction={"stages": 2, "heads": 4}, merge="light")
    config.model.data_preprocessor.pad_size_divisor = 32
    return config.model


def sample(masks: bool) -> DetDataSample:
    truth = InstanceData(bboxes=torch.tensor([[10.0, 20, 70, 90], [40, 8, 120, 60]]), labels=torch.tensor([3, 7]))
    if masks:
        drawn = torch.zeros(2, SIDE, SIDE, dtype=torch.uint8)
        drawn[0, 20:90, 10:70], drawn[1, 8:60, 40:120] = 1, 1
        truth.masks = BitmapMasks(drawn.numpy(), SIDE, SIDE)
    size = (SIDE, SIDE)
    return DetDataSample(
        gt_instances=truth,
        metainfo={"img_shape": size, "ori_shape": size, "batch_input_shape": size, "pad_shape": size},
    )


def learn_and_predict(settings: Any, masks: bool) -> tuple[Any, dict[str, Any]]:
    torch.manual_seed(0)
    detector = MODELS.build(settings)
    detector.init_weights()
    pixels = torch.randn(1, 3, SIDE, SIDE)
    losses = detector.train().loss(pixels, [sample(masks)])
    terms = [term for value in losses.values() for term in (value if isinstance(value, list) else [value])]
    torch.stack([term.sum() for term in terms]).sum().backward()
    with torch.no_grad():
        found = detector.eval().predict(pixels, [sample(masks)], rescale=False)
    assert len(found[0].pred_instances.bboxes) == len(found[0].pred_instances.scores)
    return detector, losses


def test_mask_rcnn_learns_and_predicts() -> None:
    settings = read("mask_rcnn_piip_tsb_1568_1120_672_1x_coco")
    settings.neck.in_channels = [64] * 4
    settings.neck.out_channels = settings.rpn_head.in_channels = settings.rpn_head.feat_channels = 32
    for part in (settings.roi_head.bbox_roi_extractor, settings.roi_head.mask_roi_extractor):
        part.out_channels = 32
    settings.roi_head.bbox_head.update(in_channels=32, fc_out_channels=32)
    settings.roi_head.mask_head.update(in_channels=32, conv_out_channels=32, num_convs=1)
    settings.train_cfg.rpn_proposal.update(nms_pre=50, max_per_img=20)
    settings.test_cfg.rpn.update(nms_pre=50, max_per_img=20)
    settings.test_cfg.rcnn.max_per_img = 5

    detector, losses = learn_and_predict(settings, masks=True)

    assert {"loss_rpn_cls", "loss_rpn_bbox", "loss_cls", "loss_bbox", "loss_mask"} <= losses.keys()
    gate = detector.backbone.dense.pyramid.units[0][0].into_larger.attention_gate
    assert gate.grad is not None
    assert gate.grad.any()


def test_dino_learns_and_predicts() -> None:
    settings = read("dino_piip_sbl_1568_1120_672_coco")
    settings.neck.in_channels = [64] * 3
    settings.num_queries = 20
    settings.dn_cfg.group_cfg.num_dn_queries = 4
    settings.encoder.num_layers = settings.decoder.num_layers = 1
    settings.test_cfg.max_per_img = 5

    _, losses = learn_and_predict(settings, masks=False)

    assert {"enc_loss_cls", "loss_cls", "loss_bbox", "loss_iou", "dn_loss_cls"} <= losses.keys()


@pytest.mark.parametrize("name", sorted(file.stem for file in CONFIGS.glob("*_coco.py")))
def test_shipped_configurations_describe_whole_detectors(name: str) -> None:
    settings = Config.fromfile(CONFIGS / f"{name}.py").model
    with torch.device("meta"):
        backbone = MODELS.build(settings.backbone)
    assert list(backbone.out_channels) == list(settings.neck.in_channels)


def test_learning_rates_fall_towards_the_first_layers_of_every_branch() -> None:
    settings = Config.fromfile(CONFIGS / "mask_rcnn_piip_tsb_1568_1120_672_1x_coco.py")
    small = read("mask_rcnn_piip_tsb_1568_1120_672_1x_coco").backbone
    small.branches = [BRANCHES[0] | {"depth": 4}, BRANCHES[1]]
    detector = nn.ModuleDict({"backbone": MODELS.build(small), "head": nn.Linear(3, 3)})

    groups = build_optim_wrapper(detector, settings.optim_wrapper).optimizer.param_groups

    rates = {id(parameter): group["lr"] / 1e-4 for group in groups for parameter in group["params"]}
    branches = "backbone.dense.pyramid.branches"
    expected = {
        f"{branches}.0.layers.3.norm1.bias": 0.85,
        f"{branches}.0.layers.0.norm1.bias": 0.85**4,
        # Two layers reach as far as four do.
        f"{branches}.1.layers.1.norm1.bias": 0.85,
        f"{branches}.1.layers.0.norm1.bias": 0.85**3,
        f"{branches}.1.patch_embedding.weight": 0.85**5,
        "backbone.dense.pyramid.units.0.0.into_larger.attention_gate": 1.0,
        "head.weight": 1.0,
    }
    named = dict(detector.named_parameters())
    assert {name: rates[id(named[name])] for name in expected} == pytest.approx(expected)
    assert len(rates) == len(named)
    assert {group["weight_decay"] for group in groups if group["params"][0].dim() == 1} == {0.0}
    assert layer_factor("backbone.dense.merges.0.weights", [24, 12], 0.85) == 1.0


def test_a_pretrained_file_that_is_missing_is_named(tmp_path: Path) -> None:
    keys = {"type": "PIIP", "branches": BRANCHES, "interaction": {"stages": 2, "heads": 4}, "merge": "light"}
    with pytest.raises(ValueError, match="pretrained: 2 files are wanted"):
        MODELS.build(keys | {"pretrained": ["a.safetensors"]})
    backbone = MODELS.build(keys | {"pretrained": [None, str(tmp_path / "b.safetensors")]})
    with pytest.raises(CheckpointError, match="b.safetensors"):
        backbone.init_weights()


def test_likelier_boxes_suppress_those_that_they_overlap() -> None:
    boxes = torch.tensor([[0.0, 0, 10, 10], [1, 1, 11, 11], [20, 20, 30, 30], [0, 0, 10, 4]])
    _, kept = nms(boxes, torch.tensor([0.5, 0.9, 0.1, 0.8]), 0.5)
    # Box 0 overlaps box 1 by 81 of 119, box 3 by 40 of 100; box 3 overlaps box 1 by 27 of 113.
    assert kept.tolist() == [1, 3, 2]


def test_aligned_regions_average_what_lies_under_them() -> None:
    rows, columns = torch.meshgrid(torch.arange(8.0), torch.arange(12.0), indexing="ij")
    features = torch.stack([columns, rows])[None].requires_grad_()
    # In pixels of twice the map's resolution: from (1, 2) to (5, 6) on the map, whose first centre is at 0.5.
    pooled = RoIAlign(2, spatial_scale=0.5, sampling_ratio=0)(features, torch.tensor([[0.0, 2, 4, 10, 12]]))

    torch.testing.assert_close(pooled[0, 0], torch.tensor([[1.5, 3.5], [1.5, 3.5]]))
    torch.testing.assert_close(pooled[0, 1], torch.tensor([[2.5, 2.5], [4.5, 4.5]]))
    pooled.sum().backward()
    assert isinstance(features.grad, Tensor)
    assert float(features.grad.sum()) == pytest.approx(8.0)
    outside = RoIAlign(2, spatial_scale=1.0, sampling_ratio=2)(features, torch.tensor([[0.0, 50, 50, 60, 60]]))
    assert not outside.any()
