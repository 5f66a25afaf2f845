"""Frames of a video: a folder of pictures in the order of their names, or a file that OpenCV decodes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import cv2
from PIL import Image

from services.mllm.tiling import frame_indices
from services.trainer.adaptation.layouts.layout import IMAGE_SUFFIXES
from services.trainer.adaptation.rows import RowError


def read_frames(path: Path, samples: int, clip: tuple[float, float] | None) -> list[Image.Image]:
    """``samples`` frames of the video, or of its part from ``clip[0]`` to ``clip[1]`` seconds.

    All, where there are fewer. Which ones: ``tiling.frame_indices``. Raises RowError where there are none.
    """
    if path.is_dir():
        if clip is not None:
            raise RowError(f"{path}: is a folder of frames, which has no seconds; clip is for video files.")
        files = sorted(file for file in path.iterdir() if file.suffix.lower() in IMAGE_SUFFIXES)
        if not files:
            raise RowError(f"{path}: holds no frames.")
        return [Image.open(files[index]).convert("RGB") for index in frame_indices(len(files), samples)]
    return _decode(path, samples, clip)


def _decode(path: Path, samples: int, clip: tuple[float, float] | None) -> list[Image.Image]:
    video = cv2.VideoCapture(str(path))
    try:
        count, rate = int(video.get(cv2.CAP_PROP_FRAME_COUNT)), float(video.get(cv2.CAP_PROP_FPS))
        if not video.isOpened() or count < 1:
            raise RowError(f"{path}: is not a video that can be read.")
        first, last = 0, count - 1
        if clip is not None:
            first, last = (min(round(second * rate), count - 1) for second in clip)
        wanted = [first + index for index in frame_indices(last - first + 1, samples)]
        return _grab(video, wanted, path)
    finally:
        video.release()


def _grab(video: cv2.VideoCapture, wanted: Sequence[int], path: Path) -> list[Image.Image]:
    """Decode the frames numbered ``wanted``, in order: one pass, as seeking lands on other frames in some codecs."""
    frames: list[Image.Image] = []
    for number in range(wanted[-1] + 1):
        if not video.grab():
            break
        if number == wanted[len(frames)]:
            decoded, pixels = video.retrieve()
            if not decoded:
                break
            frames.append(Image.fromarray(cv2.cvtColor(pixels, cv2.COLOR_BGR2RGB)))
    # Containers may promise more frames than they hold.
    if not frames:
        raise RowError(f"{path}: no frame of it can be decoded.")
    return frames
