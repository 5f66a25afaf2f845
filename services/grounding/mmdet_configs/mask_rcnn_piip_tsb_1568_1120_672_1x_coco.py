"""Mask R-CNN on PIIP-TSB 1568/1120/672, 12 epochs of COCO: 46.6 box AP and 41.4 mask AP in the paper.

Train it with mmdet's own tools. Files of DeiT III and DeiT weights go into ``backbone.pretrained``, the largest branch
first.
"""

_base_ = [
    "mmdet::_base_/models/mask-rcnn_r50_fpn.py",
    "mmdet::_base_/datasets/coco_instance.py",
    "mmdet::_base_/schedules/schedule_1x.py",
    "mmdet::_base_/default_runtime.py",
]
custom_imports = {
    "imports": ["services.grounding.piip_backbone", "services.grounding.piip_layer_decay"],
    "allow_failed_imports": False,
}

model = {
    "data_preprocessor": {"mean": [127.5] * 3, "std": [127.5] * 3, "pad_size_divisor": 224},
    "backbone": {
        "_delete_": True,
        "type": "PIIP",
        "branches": [
            {"size": "B", "resolution": 672, "window": 14, "position_side": 14},
            {"size": "S", "resolution": 1120, "window": 14, "position_side": 14},
            {"size": "T", "resolution": 1568, "window": 14, "position_side": 14},
        ],
        "merge": "convolutional",
    },
    "neck": {"in_channels": [768] * 4, "norm_cfg": {"type": "GN", "num_groups": 32}},
}
# The finest branch's side; the other side as in the 1333 x 800 recipe.
train_pipeline = [
    {"type": "LoadImageFromFile", "backend_args": None},
    {"type": "LoadAnnotations", "with_bbox": True, "with_mask": True},
    {"type": "Resize", "scale": (1568, 941), "keep_ratio": True},
    {"type": "RandomFlip", "prob": 0.5},
    {"type": "PackDetInputs"},
]
test_pipeline = [
    {"type": "LoadImageFromFile", "backend_args": None},
    {"type": "Resize", "scale": (1568, 941), "keep_ratio": True},
    {"type": "LoadAnnotations", "with_bbox": True, "with_mask": True},
    {"type": "PackDetInputs", "meta_keys": ("img_id", "img_path", "ori_shape", "img_shape", "scale_factor")},
]
train_dataloader = {"dataset": {"pipeline": train_pipeline}}
val_dataloader = {"dataset": {"pipeline": test_pipeline}}
test_dataloader = val_dataloader
optim_wrapper = {
    "optimizer": {"_delete_": True, "type": "AdamW", "lr": 1e-4, "betas": (0.9, 0.999), "weight_decay": 0.05},
    "constructor": "PiipLayerDecay",
    "paramwise_cfg": {"decay_rate": 0.85},
}
