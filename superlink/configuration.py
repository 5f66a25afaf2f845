"""Typed YAML files: every key is known, and a wrong one is answered with the nearest right one."""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError


class ConfigurationError(Exception):
    """A configuration file is missing, is not YAML, or does not fit its model. The text says which key and why."""


class Section(BaseModel):
    """Base of every configuration model: unknown keys are errors and values never change after loading."""

    model_config = ConfigDict(extra="forbid", frozen=True)


SectionType = TypeVar("SectionType", bound=Section)


def load_yaml(path: Path, model: type[SectionType], overrides: dict[str, Any] | None = None) -> SectionType:
    """Read ``path`` as ``model``.

    ``overrides`` maps dotted keys to values and is applied over the file: ``{"gateway.port": 9000}``.

    Raises ConfigurationError, whose text names the file, the key and, for an unknown key, the nearest valid one.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigurationError(f"{path}: cannot be read ({error.strerror}).") from error
    try:
        content = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigurationError(f"{path}: is not valid YAML: {error}") from error
    if not isinstance(content, dict):
        raise ConfigurationError(f"{path}: must hold a mapping of keys to values.")
    for dotted, value in (overrides or {}).items():
        *parents, last = dotted.split(".")
        target = content
        for parent in parents:
            target = target.setdefault(parent, {})
            if not isinstance(target, dict):
                raise ConfigurationError(f"{path}: cannot set {dotted!r}: {parent!r} is not a section.")
        target[last] = value
    try:
        return model.model_validate(content)
    except ValidationError as error:
        raise ConfigurationError(f"{path}: {_explain(error, model)}") from error


def _explain(error: ValidationError, model: type[BaseModel]) -> str:
    sentences = []
    for problem in error.errors():
        location = problem["loc"]
        _, written = _walk(model, location)
        key = ".".join(written)
        if problem["type"] == "extra_forbidden":
            models, _ = _walk(model, location[:-1])
            valid = sorted(models[0].model_fields) if models else []
            nearest = difflib.get_close_matches(str(location[-1]), valid, n=1)
            hint = f" Did you mean {nearest[0]!r}?" if nearest else f" Valid keys: {', '.join(valid)}."
            sentences.append(f"unknown key {key!r}.{hint}")
        elif problem["type"] == "missing":
            sentences.append(f"missing key {key!r}.")
        elif isinstance(problem["input"], dict | BaseModel):
            # A whole section is no help to the reader, and may hold a password.
            sentences.append(f"{key!r}: {problem['msg'].removeprefix('Value error, ')}.")
        else:
            sentences.append(f"{key!r}: {problem['msg']} (got {problem['input']!r}).")
    return " ".join(sentences)


def _walk(model: type[BaseModel], location: tuple[int | str, ...]) -> tuple[list[type[BaseModel]], list[str]]:
    """The models that may stand at ``location``, through nested models, mappings and lists, and what leads there.

    Of sections of several kinds, a location also names the kind, which is no key of the file: it is left out.
    """
    models, written = [model], []
    for part in location:
        having = [one for one in models if str(part) in one.model_fields]
        of_kind = [one for one in models if "kind" in one.model_fields and one.model_fields["kind"].default == part]
        if having:
            models = _models(having[0].model_fields[str(part)].annotation)
        elif of_kind:
            models = of_kind
            continue
        written.append(str(part))
    return models, written


def _models(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [found for argument in getattr(annotation, "__args__", ()) for found in _models(argument)]
