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
        key = ".".join(str(part) for part in location)
        if problem["type"] == "extra_forbidden":
            valid = _keys_at(model, location[:-1])
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


def _keys_at(model: type[BaseModel], location: tuple[int | str, ...]) -> list[str]:
    """The field names that are valid at ``location``, walking through nested models, mappings and lists."""
    current: type[BaseModel] | None = model
    for part in location:
        if current is None:
            return []
        field = current.model_fields.get(str(part))
        if field is None:
            continue
        current = _first_model(field.annotation)
    return sorted(current.model_fields) if current is not None else []


def _first_model(annotation: Any) -> type[BaseModel] | None:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    for argument in getattr(annotation, "__args__", ()):
        found = _first_model(argument)
        if found is not None:
            return found
    return None
