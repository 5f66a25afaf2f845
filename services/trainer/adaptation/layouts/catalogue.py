"""All layouts by name."""

from __future__ import annotations

from services.trainer.adaptation.layouts.conversations import read_llava
from services.trainer.adaptation.layouts.driving import read_bddx, read_bddx_signals, read_drivelm
from services.trainer.adaptation.layouts.layout import Layout
from services.trainer.adaptation.layouts.pictures import (
    read_class_folders,
    read_coco,
    read_coco_marked,
    read_lettered_class_folders,
    read_pmc_oa,
    read_quilt,
    read_visual_genome,
)
from services.trainer.adaptation.layouts.remote_sensing import (
    read_dior_rsvg,
    read_geochat,
    read_rsvqa_hr,
    read_rsvqa_lr,
)

LAYOUTS: dict[str, Layout] = {
    "class-folders": Layout("classification: the class's name", "[SPLIT/]CLASS/IMAGE", read_class_folders),
    "lettered-class-folders": Layout(
        "classification: the letter of an option", "[SPLIT/]CLASS/IMAGE", read_lettered_class_folders
    ),
    "coco": Layout(
        "detection: all boxes of each category",
        "annotations/instances_SPLIT.json, SPLIT/ or images/",
        read_coco,
    ),
    "coco-marked": Layout(
        "regions marked on the pixels, to be named",
        "annotations/instances_SPLIT.json, SPLIT/ or images/",
        read_coco_marked,
        makes_pictures=True,
    ),
    "visual-genome": Layout(
        "regions whose box stands in the question",
        "region_descriptions.json, VG_100K/, VG_100K_2/",
        read_visual_genome,
    ),
    "drivelm": Layout(
        "six cameras stitched, places as c-tags",
        "v1_1_SPLIT_nus.json, nuscenes/samples/CAMERA/",
        read_drivelm,
        makes_pictures=True,
    ),
    "bdd-x": Layout("video: action and reason", "BDD-X-Annotations_v1.csv, [SPLIT.txt], videos/NAME.mov", read_bddx),
    "bdd-x-signals": Layout(
        "video: action, reason, and the next speed and angle", "info/**/*.json, videos/", read_bddx_signals
    ),
    "rsvqa-lr": Layout("questions", "LR_split_SPLIT_{questions,answers}.json, Images_LR/", read_rsvqa_lr),
    "rsvqa-hr": Layout("questions", "USGS_split_SPLIT_{questions,answers}.json, Data/", read_rsvqa_hr),
    "dior-rsvg": Layout(
        "grounding: one expression, one box", "SPLIT.txt, Annotations/*.xml, JPEGImages/", read_dior_rsvg
    ),
    "geochat": Layout("conversations with turned boxes", "GeoChat_Instruct.json, images/", read_geochat),
    "pmc-oa": Layout("captions", "SPLIT.jsonl, images/", read_pmc_oa),
    "quilt-1m": Layout("captions", "quilt_1M_lookup.csv, images/", read_quilt),
    "llava": Layout("conversations as they are: FIT-RS, ShareGPT4V", "SPLIT.json or SPLIT.jsonl, images", read_llava),
}
