"""``logprobs``: how likely the tokens of an answer were, in OpenAI's shape."""

from __future__ import annotations

from pydantic import BaseModel, Field

from superlink.v1 import mllm_pb2


class LikelyToken(BaseModel):
    """A token and its log-probability."""

    token: str = Field(description="Its text, or the name of a routing token.", examples=["[DET]"])
    bytes: list[int] | None = Field(description="UTF-8 bytes of the text; null for tokens that are no text.")
    logprob: float = Field(description="Among the tokens that could come here, at temperature 1.")


class TakenToken(LikelyToken):
    """A token of the answer."""

    top_logprobs: list[LikelyToken] = Field(description="The likeliest tokens in its place, best first.")


class LogProbabilities(BaseModel):
    """Of the text's tokens and of routing tokens, in the order in which they were written."""

    content: list[TakenToken]
    refusal: None = None


def taken_token_of(choice: mllm_pb2.TokenChoice) -> TakenToken:
    """The REST form of ``choice``."""
    likeliest = [_likely_token_of(each) for each in choice.alternatives]
    return TakenToken(**_likely_token_of(choice).model_dump(), top_logprobs=likeliest)


def _likely_token_of(choice: mllm_pb2.TokenChoice) -> LikelyToken:
    encoded = list(choice.encoded) if choice.encoded else None
    return LikelyToken(token=choice.token, bytes=encoded, logprob=round(choice.log_probability, 5))
