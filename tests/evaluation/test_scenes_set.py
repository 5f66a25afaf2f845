from __future__ import annotations

import json
import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pycocotools.coco import COCO

from services.evaluation.contact_sheet import contact_sheet
from services.evaluation.scenes_set import (
    ANNOTATIONS_FILE,
    PROMPTS_FILE,
    SceneSet,
    SceneSetError,
    encode_mask,
    load_scene_set,
)
from services.trainer.recipe import Data
from services.trainer.scenes.composer import EVALUATION_SEED_START
from tests.evaluation.conftest import make_small_set

FIXED_SET = Path(__file__).resolve().parents[1] / "data" / "scenes"


def test_a_set_is_read_as_it_was_made(scene_set: SceneSet) -> None:
    loaded = load_scene_set(scene_set.folder)
    assert loaded.prompts == scene_set.prompts
    assert loaded.images == scene_set.images
    assert loaded.annotations == scene_set.annotations
    assert loaded.info == scene_set.info


def test_the_same_seed_makes_the_same_files(scene_set: SceneSet, tmp_path: Path) -> None:
    again = make_small_set(tmp_path / "again")
    for name in (ANNOTATIONS_FILE, PROMPTS_FILE):
        assert (again.folder / name).read_bytes() == (scene_set.folder / name).read_bytes()
    for image_id in scene_set.images:
        assert again.image_file(image_id).read_bytes() == scene_set.image_file(image_id).read_bytes()


def test_annotations_are_coco(scene_set: SceneSet) -> None:
    coco = COCO(str(scene_set.folder / ANNOTATIONS_FILE))
    for annotation in coco.loadAnns(coco.getAnnIds()):
        mask = coco.annToMask(annotation)
        rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
        box = [columns[0], rows[0], columns[-1] + 1 - columns[0], rows[-1] + 1 - rows[0]]
        assert annotation["bbox"] == box
        assert annotation["area"] == mask.sum()


def test_masks_survive_the_file() -> None:
    mask = np.zeros((7, 11), dtype=np.bool_)
    mask[2:5, 3:9] = True
    encoded = encode_mask(mask)
    assert encoded.size == (7, 11)


def test_a_folder_that_holds_images_is_not_overwritten(scene_set: SceneSet) -> None:
    with pytest.raises(SceneSetError, match="holds images already"):
        make_small_set(scene_set.folder)


def test_the_contact_sheet_shows_every_image(scene_set: SceneSet) -> None:
    sheet = contact_sheet(scene_set, columns=4, limit=100)
    assert sheet.size == (4 * 246 + 6, 2 * 246 + 6)


@pytest.fixture
def broken(scene_set: SceneSet, tmp_path: Path) -> Path:
    shutil.copytree(scene_set.folder, tmp_path / "broken")
    return tmp_path / "broken"


def edit(file: Path, change) -> None:
    content = json.loads(file.read_text(encoding="utf-8"))
    change(content)
    file.write_text(json.dumps(content), encoding="utf-8")


def test_a_missing_file_is_named(broken: Path) -> None:
    (broken / PROMPTS_FILE).unlink()
    with pytest.raises(SceneSetError, match=r"prompts\.json is missing"):
        load_scene_set(broken)


def test_a_missing_image_is_named(broken: Path) -> None:
    (broken / "images" / "0003.webp").unlink()
    with pytest.raises(SceneSetError, match=r"0003\.webp is missing"):
        load_scene_set(broken)


def test_a_wrong_field_is_named(broken: Path) -> None:
    edit(broken / PROMPTS_FILE, lambda content: content["prompts"][1].update(text=""))
    with pytest.raises(SceneSetError, match=r"prompts\.1\.text"):
        load_scene_set(broken)


def test_an_unknown_version_is_refused(broken: Path) -> None:
    edit(broken / PROMPTS_FILE, lambda content: content.update(version=9))
    with pytest.raises(SceneSetError, match="version 9"):
        load_scene_set(broken)


def test_a_reference_into_another_image_is_refused(broken: Path) -> None:
    def change(content: dict) -> None:
        prompt = next(entry for entry in content["prompts"] if entry["phrases"] and entry["image_id"] == 1)
        prompt["phrases"][0]["annotation_ids"] = [9999]

    edit(broken / PROMPTS_FILE, change)
    with pytest.raises(SceneSetError, match="annotation 9999"):
        load_scene_set(broken)


def test_not_json_is_refused(broken: Path) -> None:
    (broken / ANNOTATIONS_FILE).write_text("{", encoding="utf-8")
    with pytest.raises(SceneSetError, match="Invalid JSON"):
        load_scene_set(broken)


def test_the_fixed_set_is_what_the_documentation_says() -> None:
    fixed = load_scene_set(FIXED_SET)
    assert len(fixed.images) >= 100
    assert {image.style for image in fixed.images.values()} == {"noto", "twemoji", "openmoji"}
    for image in fixed.images.values():
        assert min(image.width, image.height) >= 128
        assert max(image.width, image.height) <= 320
        with Image.open(fixed.image_file(image.id)) as opened:
            assert opened.size == (image.width, image.height)
    languages = Counter(prompt.language for prompt in fixed.prompts)
    assert min(languages["en"], languages["zh"]) > 500
    size = sum(file.stat().st_size for file in FIXED_SET.rglob("*") if file.is_file())
    assert size < 5_000_000


def test_the_fixed_set_uses_seeds_that_training_never_touches() -> None:
    fixed = load_scene_set(FIXED_SET)
    seeds = [image.seed for image in fixed.images.values()]
    assert min(seeds) == EVALUATION_SEED_START == fixed.info.first_seed
    assert Data.model_fields["first_seed"].default < EVALUATION_SEED_START
