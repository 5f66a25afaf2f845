"""The tokenizer of a public checkpoint, from whichever files it brings."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from google.protobuf.message import DecodeError
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers
from transformers import Qwen2Tokenizer
from transformers.convert_slow_tokenizer import generate_merges
from transformers.utils import sentencepiece_model_pb2_new

from services.runtime.weights import WeightsError

TOKENIZER_FILE = "tokenizer.json"
_SETTINGS_FILE = "tokenizer_config.json"
_SENTENCEPIECE_FILE = "tokenizer.model"
_BYTE_LEVEL_FILES = ("vocab.json", "merges.txt")

# Generated code, whose messages type checkers do not see.
sentencepiece: Any = sentencepiece_model_pb2_new

# SentencePiece's space.
_SPACE = "▁"
# Its code puts <s> first unless its settings say otherwise; theirs rarely say anything.
_BEGINS_BY_DEFAULT = "InternLM2"


def read_tokenizer(folder: Path) -> Tokenizer:
    """The tokenizer of ``folder``: tokenizer.json, else vocab.json and merges.txt, else tokenizer.model.

    Raises WeightsError when there is none or it is not one of these.
    """
    if (folder / TOKENIZER_FILE).is_file():
        try:
            return Tokenizer.from_file(str(folder / TOKENIZER_FILE))
        # The library raises nothing more special.
        except Exception as error:
            raise WeightsError(f"{folder / TOKENIZER_FILE}: is not a tokenizer ({error}).") from error
    if all((folder / name).is_file() for name in _BYTE_LEVEL_FILES):
        tokenizer: Tokenizer = Qwen2Tokenizer.from_pretrained(folder, local_files_only=True).backend_tokenizer
        return tokenizer
    if (folder / _SENTENCEPIECE_FILE).is_file():
        return _from_sentencepiece(folder)
    raise WeightsError(
        f"{folder}: there is no {TOKENIZER_FILE}, nor {' and '.join(_BYTE_LEVEL_FILES)}, nor {_SENTENCEPIECE_FILE}."
    )


def bos_token(folder: Path, tokenizer: Tokenizer) -> str | None:
    """The token that the checkpoint's ``tokenizer`` puts before every prompt; None for most."""
    settings = _settings(folder)
    token = settings.get("bos_token")
    if isinstance(token, dict):
        token = token["content"]
    if "add_bos_token" in settings:
        begins = settings["add_bos_token"]
    else:
        # Tokenizers that transformers wrote say it by what they make of nothing.
        begins = tokenizer.encode("").tokens == [token]
        begins = begins or str(settings.get("tokenizer_class")).startswith(_BEGINS_BY_DEFAULT)
    return token if begins else None


def _from_sentencepiece(folder: Path) -> Tokenizer:
    path = folder / _SENTENCEPIECE_FILE
    proto = sentencepiece.ModelProto()
    try:
        proto.ParseFromString(path.read_bytes())
    except DecodeError as error:
        raise WeightsError(f"{path}: is not a SentencePiece model ({error}).") from error
    trained = proto.trainer_spec
    if trained.model_type != trained.BPE or not trained.byte_fallback:
        raise WeightsError(f"{path}: only SentencePiece's BPE with byte fallback is supported.")
    names = [piece.piece for piece in proto.pieces]
    kinds = [piece.type for piece in proto.pieces]
    added = _added_tokens(folder)
    for token_id, token in added.items():
        # InternLM2 gives places of its vocabulary that were left free to its turn tokens.
        if token_id < len(names) and names[token_id] != token.content:
            names[token_id], kinds[token_id] = token.content, proto.SentencePiece.USER_DEFINED
    vocabulary = {name: token_id for token_id, name in enumerate(names)}
    normal = proto.SentencePiece.NORMAL
    scores = {name: piece.score for name, piece, kind in zip(names, proto.pieces, kinds, strict=True) if kind == normal}
    merges = generate_merges({name: vocabulary[name] for name in scores}, scores)
    unknown = names[kinds.index(proto.SentencePiece.UNKNOWN)]
    tokenizer = Tokenizer(
        models.BPE(vocab=vocabulary, merges=merges, unk_token=unknown, fuse_unk=True, byte_fallback=True)
    )
    begins = proto.normalizer_spec.add_dummy_prefix
    tokenizer.normalizer = _normalizer(proto.normalizer_spec)
    steps = [decoders.Replace(_SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    tokenizer.decoder = decoders.Sequence([*steps, decoders.Strip(" ", 1, 0)] if begins else steps)
    for token_id, (name, kind) in enumerate(zip(names, kinds, strict=True)):
        if kind == proto.SentencePiece.CONTROL and token_id not in added:
            tokenizer.add_special_tokens([AddedToken(name, normalized=False, special=True)])
        elif kind == proto.SentencePiece.USER_DEFINED and token_id not in added:
            tokenizer.add_tokens([AddedToken(name, normalized=False)])
    for token_id, token in added.items():
        tokenizer.add_special_tokens([token]) if token.special else tokenizer.add_tokens([token])
        if tokenizer.token_to_id(token.content) != token_id:
            raise WeightsError(f"{folder}: the ids of added tokens leave a gap before {token.content} ({token_id}).")
    return tokenizer


def _normalizer(spec: Any) -> normalizers.Normalizer:
    steps: list[normalizers.Normalizer] = []
    if spec.precompiled_charsmap:
        steps.append(normalizers.Precompiled(spec.precompiled_charsmap))
    if spec.remove_extra_whitespaces:
        # Spaces only; line breaks stay.
        steps += [normalizers.Replace(Regex(r"\A +| +\z"), ""), normalizers.Replace(Regex(" {2,}"), " ")]
    if spec.add_dummy_prefix:
        steps.append(normalizers.Prepend(_SPACE))
    return normalizers.Sequence([*steps, normalizers.Replace(" ", _SPACE)])


def _added_tokens(folder: Path) -> dict[int, AddedToken]:
    """By id, in ascending order."""
    found: dict[int, AddedToken] = {}
    file = folder / "added_tokens.json"
    if file.is_file():
        for content, token_id in json.loads(file.read_text(encoding="utf-8")).items():
            found[int(token_id)] = AddedToken(content, normalized=False, special=True)
    for token_id, token in _settings(folder).get("added_tokens_decoder", {}).items():
        found[int(token_id)] = AddedToken(
            token["content"],
            lstrip=token.get("lstrip", False),
            rstrip=token.get("rstrip", False),
            normalized=token.get("normalized", False),
            special=token.get("special", True),
        )
    return dict(sorted(found.items()))


def _settings(folder: Path) -> dict[str, Any]:
    file = folder / _SETTINGS_FILE
    if not file.is_file():
        return {}
    try:
        settings: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise WeightsError(f"{file}: is not valid JSON ({error}).") from error
    return settings
