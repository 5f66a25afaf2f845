"""The rows of the segmenter's vocabulary."""

from __future__ import annotations

from services.trainer.scenes.categories import CATEGORIES
from services.trainer.scenes.grounds import GROUND_NAMES

# One row a name, in this order, and one that stands for whatever is marked.
SEGMENT_NAMES = (*(category.key for category in CATEGORIES), *GROUND_NAMES, "region")
FIRST_GROUND_ROW = len(CATEGORIES)
REGION_ROW = SEGMENT_NAMES.index("region")
