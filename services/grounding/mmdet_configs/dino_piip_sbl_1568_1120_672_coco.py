"""DINO on PIIP-SBL 1568/1120/672: 57.9 box AP in the paper, after 36 epochs of COCO.

Train it with mmdet's own tools. Files of DeiT III weights go into ``backbone.pretrained``, the largest branch first.
"""

_base_ = ["mmdet::dino/dino-4scale_r50_8xb2-36e_coco.py"]
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
            {"size": "L", "resolution": 672, "window": 28, "position_side": 14},
            {"size": "B", "resolution": 1120, "window": 28, "position_side": 14},
            {"size": "S", "resolution": 1568, "window": 28, "position_side": 14},
        ],
        "merge": "convolutional",
        # The head makes its fourth level from the third.
        "out_indices": (1, 2, 3),
    },
    "neck": {"in_channels": [1024] * 3},
}
optim_wrapper = {
    "optimizer": {"_delete_": True, "type": "AdamW", "lr": 2e-4, "betas": (0.9, 0.999), "weight_decay": 0.05},
    "clip_grad": {"max_norm": 0.1, "norm_type": 2},
    "constructor": "PiipLayerDecay",
    "paramwise_cfg": {"_delete_": True, "decay_rate": 0.85},
}
