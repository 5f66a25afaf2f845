"""The rows of the segmenter's vocabulary."""

from __future__ import annotations

from services.trainer.scenes.categories import CATEGORIES

# Grounds that have a name.
GROUND_NAMES = ("grass", "sand", "water", "snow", "road", "soil", "brick", "sky")
# One row a name, in this order, and one that stands for whatever is marked.
SEGMENT_NAMES = (*(category.key for category in CATEGORIES), *GROUND_NAMES, "region")
REGION_ROW = SEGMENT_NAMES.index("region")
