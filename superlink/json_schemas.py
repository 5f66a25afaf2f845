"""JSON schemas that an answer's text can be held to, and the one place that says which are understood.

The gateway checks a schema with it before any work is done; the MLLM worker lets it say which tokens may come.
"""

from __future__ import annotations

import json
import re
from functools import cache

from llguidance import LLMatcher, LLTokenizer

from superlink.errors import SuperlinkError, invalid_argument

# Compiling one of this length takes about a tenth of a second.
MAX_SCHEMA_CHARACTERS = 50_000
# Where a schema would set these for itself.
_OPTIONS_KEY = "x-guidance"
_UNKNOWN_KEYWORDS = re.compile(r'Unimplemented keys: \[(?P<keys>".*")\]')


def check_schema(schema: str) -> None:
    """Raise what ``matcher_of`` raises for ``schema``, without a vocabulary."""
    matcher_of(schema, _bytes())


def matcher_of(schema: str, tokenizer: LLTokenizer) -> LLMatcher:
    """Follows one text and says which tokens keep it JSON that fits ``schema``.

    Raises SuperlinkError ``unsupported_schema``, which names the keyword or says what else is in the way.
    """
    if len(schema) > MAX_SCHEMA_CHARACTERS:
        raise _unsupported(f"it has {len(schema):,} characters; the limit is {MAX_SCHEMA_CHARACTERS:,}")
    try:
        document = json.loads(schema)
    except (ValueError, RecursionError) as error:
        raise _unsupported(f"it is no JSON ({error})") from error
    if not isinstance(document, dict):
        raise _unsupported("it is no object")
    document.pop(_OPTIONS_KEY, None)
    grammar = LLMatcher.grammar_from_json_schema(
        document,
        # Fixed spacing: a small model that may write white space anywhere writes little else.
        overrides={"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "},
    )
    matcher = LLMatcher(tokenizer, grammar, log_level=0)
    # Only the first step shows that nothing at all fits, as where a definition is nothing but itself.
    matcher.compute_bitmask()
    if matcher.is_error():
        raise too_hard(matcher)
    return matcher


def too_hard(matcher: LLMatcher) -> SuperlinkError:
    """Why ``matcher``, which is in an error state, cannot go on."""
    reason = matcher.get_error().partition("<state>")[0].strip()
    unknown = _UNKNOWN_KEYWORDS.search(reason)
    if unknown is not None:
        names = ", ".join(json.loads(f"[{unknown['keys']}]"))
        return _unsupported(f"it uses keywords that this API does not have: {names}")
    if reason.startswith("oneOf"):
        return _unsupported("it uses oneOf with alternatives that may fit together; use anyOf")
    if reason.startswith("NoExtension"):
        return _unsupported("nothing fits it")
    return _unsupported(" ".join(reason.split())[:500] or "it is too complex")


def _unsupported(reason: str) -> SuperlinkError:
    return invalid_argument("unsupported_schema", f"The schema of response_format cannot be held to: {reason}.")


@cache
def _bytes() -> LLTokenizer:
    """The vocabulary of single bytes."""
    return LLTokenizer("byte")
