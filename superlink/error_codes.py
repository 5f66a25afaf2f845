"""Every code that an error of Superlink can have. Codes are stable: programs decide by them, and never by the words.

``tests/superlink/test_error_codes.py`` holds this list, the code that raises them and docs/errors.md together.
"""

from __future__ import annotations

from dataclasses import dataclass
from types import MappingProxyType


@dataclass(frozen=True)
class ErrorCode:
    """One kind of failure."""

    code: str
    # Of the response that reports it; 0: clients raise it themselves, without a response.
    http_status: int
    # Whether the same request may succeed later.
    retryable: bool
    meaning: str


_CODES = (
    # The request does not fit its description.
    ErrorCode("invalid_request", 400, False, "a field is missing, unknown or has another type or value than it may"),
    ErrorCode("conflicting_fields", 400, False, "two fields are right, and do not go together"),
    ErrorCode("invalid_multipart", 400, False, "the parts of a multipart body cannot be told apart"),
    ErrorCode("protocol_error", 400, False, "no message of the Model Context Protocol, which may want another status"),
    ErrorCode("bad_request", 400, False, "the HTTP request cannot be read"),
    ErrorCode("unsupported_parameter", 400, False, "OpenAI's API has this parameter or value, and this API does not"),
    ErrorCode("unknown_path", 404, False, "nothing is at this path"),
    ErrorCode("method_not_allowed", 405, False, "the path answers other methods; `Allow` lists them"),
    ErrorCode("body_too_large", 413, False, "the body is longer than the gateway takes"),
    ErrorCode("body_too_slow", 504, True, "the body did not arrive within the request's deadline"),
    # What is asked for.
    ErrorCode("unknown_model", 404, False, "the deployment serves another model"),
    ErrorCode("unknown_tool", 501, False, "the deployment lacks the tool"),
    ErrorCode("unknown_function", 400, False, "`tools` offers something that the deployment lacks"),
    ErrorCode("unknown_route", 400, False, "a routing token that the worker does not know"),
    ErrorCode("unknown_skeleton", 400, False, "nobody knows the keypoints of the thing; name them"),
    ErrorCode("empty_prompt", 400, False, "nothing is asked"),
    ErrorCode("empty_phrase", 400, False, "a phrase for a tool is empty"),
    ErrorCode("prompt_too_long", 400, False, "the words are more than the gateway or the model takes"),
    ErrorCode("too_many_phrases", 400, False, "more things are named than one request may name"),
    ErrorCode("too_many_groups", 400, False, "more phrases than one call of the worker may have"),
    ErrorCode("invalid_conversation", 400, False, "messages are out of order, or an answer that is sent back is none"),
    ErrorCode("invalid_message", 400, False, "a message holds what its role cannot say"),
    ErrorCode("invalid_tool_result", 400, False, "the content of a `tool` message is no result"),
    ErrorCode("invalid_sampling", 400, False, "a sampling option is out of its range"),
    ErrorCode("invalid_option", 400, False, "an option of a tool is out of its range"),
    ErrorCode("unsupported_option", 400, False, "the tool does not have this option"),
    ErrorCode("unsupported_schema", 400, False, "answers cannot be held to this JSON schema"),
    ErrorCode("mixed_routes", 400, False, "one call of a tool both draws and edits"),
    ErrorCode("misplaced_keypoints", 400, False, "names of keypoints without a thing before them"),
    # Images and regions.
    ErrorCode("no_image", 400, False, "the tool needs an image, and there is none"),
    ErrorCode("image_missing", 400, False, "no image was sent, or an empty file"),
    ErrorCode("unsupported_image", 415, False, "the file is no JPEG, PNG or WebP"),
    ErrorCode("image_too_large", 413, False, "the image has too many bytes or pixels, or too long a side"),
    ErrorCode("image_corrupt", 400, False, "the image is damaged"),
    ErrorCode("image_truncated", 400, False, "the image file ends before its last pixel"),
    ErrorCode("image_animated", 400, False, "the image has several frames"),
    ErrorCode("image_digest_mismatch", 400, False, "the image's bytes do not have the digest that came with them"),
    ErrorCode("too_many_images", 400, False, "the conversation has more images than the model takes"),
    ErrorCode("invalid_data_url", 400, False, "the data URL does not read `data:image/png;base64,…`"),
    ErrorCode("remote_image_refused", 400, False, "the image's address may not be fetched"),
    ErrorCode("image_fetch_failed", 400, False, "the image's host did not connect, broke off, or answered otherwise"),
    ErrorCode("image_fetch_too_slow", 504, True, "the image's host is slow"),
    ErrorCode("invalid_mask", 400, False, "the mask has another size than the image, or nothing of it is transparent"),
    ErrorCode("invalid_region", 400, False, "the mark is not one that can be made"),
    ErrorCode("empty_region", 400, False, "the mark covers nothing"),
    ErrorCode("region_outside_image", 400, False, "the mark lies beside the image"),
    ErrorCode("region_without_image", 400, False, "no image comes before the mark"),
    ErrorCode("too_many_regions", 400, False, "more marks than a request may have"),
    ErrorCode("unsupported_region", 400, False, "the model or the tool takes no marks"),
    # Files.
    ErrorCode("unknown_file", 404, False, "the API key has no such file, or it has expired"),
    ErrorCode("file_too_large", 413, False, "the file is larger than the deployment keeps"),
    ErrorCode("storage_quota_exceeded", 413, False, "the API key's files take up all that they may; delete some"),
    ErrorCode("storage_unavailable", 503, True, "the store of files does not answer"),
    # Keys, limits and repetitions.
    ErrorCode("missing_api_key", 401, False, "the deployment needs an API key"),
    ErrorCode("invalid_api_key", 401, False, "the API key is not known"),
    ErrorCode("revoked_api_key", 401, False, "the API key has been revoked"),
    ErrorCode("unknown_api_key", 404, False, "no API key has this id; only `superlink keys` says so"),
    ErrorCode("host_refused", 403, False, "agents do not reach the gateway under this `Host` or `Origin`"),
    ErrorCode("rate_limited", 429, True, "the API key's requests of this minute are used up"),
    ErrorCode("quota_exceeded", 429, True, "the API key's requests of this day are used up"),
    ErrorCode("too_many_concurrent_requests", 429, True, "the API key has as many requests running as it may"),
    ErrorCode("invalid_idempotency_key", 400, False, "the idempotency key is empty, too long, or not visible ASCII"),
    ErrorCode("idempotency_key_reused", 422, False, "another request had this idempotency key"),
    ErrorCode("request_in_progress", 409, True, "the first request with this idempotency key is being answered"),
    ErrorCode("redis_unavailable", 503, True, "the store of API keys and limits does not answer"),
    # The services.
    ErrorCode("overloaded", 429, True, "more is asked for than the deployment can do in time"),
    ErrorCode("queue_full", 429, True, "the worker has as many requests waiting as it takes"),
    ErrorCode("queued_too_long", 429, True, "the request waited for its turn in the worker's queue as long as any may"),
    ErrorCode("out_of_memory", 429, True, "the worker lacks the memory for this image now"),
    ErrorCode("cancelled", 499, False, "the caller left; only logs and metrics show it"),
    # Of batches as a whole.
    ErrorCode("batches_disabled", 501, False, "the deployment works on no batches"),
    ErrorCode("unknown_batch", 404, False, "the API key has no such batch"),
    ErrorCode("batch_over", 409, False, "the batch has ended, or is about to, and cannot be cancelled"),
    ErrorCode("empty_batch", 400, False, "the input file of the batch has no lines"),
    ErrorCode("too_many_lines", 400, False, "the input file of the batch has more lines than one may have"),
    ErrorCode("webhooks_disabled", 400, False, "the deployment has no secret to sign webhooks with"),
    ErrorCode("webhook_refused", 400, False, "the webhook's address may not be gone to"),
    ErrorCode("batch_gives_way", 429, True, "live requests come first; the worker of the batch asks again by itself"),
    # Of lines of batches, in the file of errors.
    ErrorCode("invalid_batch_line", 400, False, "the line is no JSON, or a field is missing, unknown or wrong"),
    ErrorCode("wrong_endpoint", 400, False, "the line asks another path than its batch"),
    ErrorCode("duplicate_custom_id", 400, False, "an earlier line has the same `custom_id`; that one is asked"),
    ErrorCode("batch_expired", 504, False, "the completion window was over before the line was answered"),
    ErrorCode("batch_cancelled", 499, False, "the batch was cancelled before the line was answered"),
    ErrorCode("line_abandoned", 500, False, "the processes that asked the line died time and again"),
    ErrorCode("internal", 500, False, "a defect; the service's log has the reason under the request's id"),
    ErrorCode("incomplete_answer", 500, False, "the model's stream ended without saying why"),
    ErrorCode("no_result", 500, False, "a stream ended without its result"),
    ErrorCode("unimplemented", 501, False, "the service does not know the call: processes of different versions"),
    ErrorCode("adapter_version_mismatch", 502, False, "the model and the decoder come from different trainings"),
    ErrorCode("unavailable", 503, True, "the service cannot be reached"),
    ErrorCode("decoder_unavailable", 503, True, "none of a decoder's workers takes calls"),
    ErrorCode("not_ready", 503, True, "the service is starting or stopping"),
    ErrorCode("shutting_down", 503, True, "the service is being stopped"),
    ErrorCode("deadline_exceeded", 504, False, "the request ran out of time"),
    # Between processes of one deployment; clients of the REST API never cause them.
    ErrorCode("message_too_large", 413, False, "a message between two services is larger than gRPC lets pass"),
    ErrorCode("invalid_tensor", 400, False, "a tensor's bytes do not fit its type and shape"),
    ErrorCode("unsupported_input_mode", 400, False, "the decoder takes link embeddings and no phrases"),
    # Said by the SDK itself, when no gateway answered as one does.
    ErrorCode("gateway_unreachable", 0, True, "no gateway answers at the address"),
    ErrorCode("connection_lost", 0, True, "the connection broke before the answer was complete"),
    ErrorCode("client_timeout", 0, True, "no answer came within the client's own `timeout_s`"),
    ErrorCode("invalid_response", 0, False, "what answered is no gateway, or one of another version"),
    ErrorCode("unknown", 0, False, "something before the gateway answered, a proxy perhaps, and gave no code"),
)

# By their names.
CODES = MappingProxyType({entry.code: entry for entry in _CODES})
