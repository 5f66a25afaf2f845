"""How good an encoder is: a linear probe on its features, and classes told by words alone."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from services.trainer.digits import load_digits
from services.trainer.latent_compression.corpora.corpus import read_picture
from services.trainer.latent_compression.digit_documents import TOPICS, draw_labelled, topic_text
from services.trainer.latent_compression.document_stream import centre_crop
from services.trainer.latent_compression.document_tokenizer import DocumentTokenizer
from services.trainer.latent_compression.model import LatentCompressionModel
from services.trainer.latent_compression.plan import LabelledImages
from services.trainer.latent_compression.sequences import SequenceBuilder
from superlink.configuration import ConfigurationError

_IMAGES_AT_ONCE = 256
_DIGIT_REPEATS = 3
_IMAGE_ENDINGS = {".jpg", ".jpeg", ".png", ".webp"}


@dataclass(frozen=True)
class Labelled:
    """Images with the numbers of their classes; ``pixels`` gives those at some places, ``[n, 3, side, side]``."""

    pixels: Callable[[Sequence[int]], Tensor]
    labels: NDArray[np.int64]


@dataclass(frozen=True)
class Judges:
    """What encoders are judged on."""

    training: Labelled
    held_out: Labelled
    # For each class the ids of one or several texts about it, as ``SequenceBuilder.query`` makes them.
    queries: Sequence[Sequence[tuple[int, ...]]]


def digit_judges(builder: SequenceBuilder) -> Judges:
    """Digits on canvases, each three times; a class' text is all its topic's words."""
    drawn = [draw_labelled(digits, _DIGIT_REPEATS, seed) for seed, digits in enumerate(load_digits())]
    training, held_out = (
        Labelled(lambda places, pixels=pixels: pixels[list(places)], labels)  # type: ignore[misc]
        for pixels, labels in drawn
    )
    return Judges(training, held_out, [[builder.query(topic_text(topic))] for topic in range(TOPICS)])


def folder_judges(
    settings: LabelledImages, image_size: int, tokenizer: DocumentTokenizer, builder: SequenceBuilder
) -> Judges:
    """Folders with a sub-folder for each class. Raises ConfigurationError where their classes differ."""
    classes, other = (
        sorted(entry.name for entry in folder.iterdir() if entry.is_dir()) if folder.is_dir() else []
        for folder in (settings.training, settings.held_out)
    )
    if not classes or classes != other:
        raise ConfigurationError(
            f"latent_compression.judged_on: {settings.training} and {settings.held_out} need the same sub-folders, "
            "one for each class."
        )
    queries = [
        [
            builder.query(tokenizer.encode(template.replace("{}", name.replace("_", " "))))
            for template in settings.templates
        ]
        for name in classes
    ]
    return Judges(
        _labelled(settings.training, classes, image_size), _labelled(settings.held_out, classes, image_size), queries
    )


@torch.no_grad()
def judge(model: LatentCompressionModel, judges: Judges) -> dict[str, float]:
    """``probe``: accuracy of a logistic regression on the mean of an image's patch tokens, encoder frozen.

    ``zero_shot``: share of images nearest to the text features of their own class.
    """
    training, _ = _features(model, judges.training)
    held_out, pooled = _features(model, judges.held_out)
    class_features = torch.stack(
        [torch.nn.functional.normalize(model.text_features(list(texts)).mean(dim=0), dim=0) for texts in judges.queries]
    )
    nearest = (pooled @ class_features.T).argmax(dim=1).cpu().numpy()
    return {
        "probe": linear_probe(training, judges.training.labels, held_out, judges.held_out.labels),
        "zero_shot": float((nearest == judges.held_out.labels).mean()),
    }


def linear_probe(
    training: NDArray[np.float32],
    training_labels: NDArray[np.int64],
    held_out: NDArray[np.float32],
    held_out_labels: NDArray[np.int64],
) -> float:
    """Accuracy on held-out features ``[images, width]`` of a logistic regression on standardised training features."""
    # Takes a second to import, and training does without it.
    from sklearn.exceptions import ConvergenceWarning  # type: ignore[import-untyped]
    from sklearn.linear_model import LogisticRegression  # type: ignore[import-untyped]

    mean, deviation = training.mean(axis=0), training.std(axis=0) + 1e-6
    probe = LogisticRegression(max_iter=1000)
    with warnings.catch_warnings():
        # A probe that is not quite done is off in the fourth digit.
        warnings.simplefilter("ignore", ConvergenceWarning)
        probe.fit((training - mean) / deviation, training_labels)
    return float(probe.score((held_out - mean) / deviation, held_out_labels))


def _features(model: LatentCompressionModel, images: Labelled) -> tuple[NDArray[np.float32], Tensor]:
    """Mean patch tokens ``[images, width]``, and pooled features ``[images, width]`` of unit length."""
    means, pooled = [], []
    for first in range(0, len(images.labels), _IMAGES_AT_ONCE):
        places = range(first, min(first + _IMAGES_AT_ONCE, len(images.labels)))
        pixels = images.pixels(places).to(model.logit_scale.device)
        tokens = model.encoder.patch_tokens(pixels)
        means.append(tokens.float().mean(dim=1))
        pooled.append(model.image_features(tokens))
    return torch.cat(means).cpu().numpy(), torch.cat(pooled)


def _labelled(folder: Path, classes: Sequence[str], image_size: int) -> Labelled:
    files = [
        (file, number)
        for number, name in enumerate(classes)
        for file in sorted((folder / name).iterdir())
        if file.suffix.lower() in _IMAGE_ENDINGS
    ]

    def read(place: int) -> Tensor:
        file = files[place][0]
        picture = read_picture(file.read_bytes())
        if picture is None:
            raise ConfigurationError(f"latent_compression.judged_on: {file} cannot be read.")
        return centre_crop(picture, image_size)

    return Labelled(
        lambda places: torch.stack([read(place) for place in places]),
        np.array([number for _, number in files], dtype=np.int64),
    )
