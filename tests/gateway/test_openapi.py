"""The OpenAPI document: it has every path, shows what can be sent as it is, and its examples are what it says."""

import json
from collections.abc import AsyncIterator, Iterator
from typing import Any

import jsonschema
import pytest
import pytest_asyncio
from api_key_maker import REQUIRED
from live_gateway import LiveGateway, live_gateway
from live_redis import LiveRedis

pytestmark = [pytest.mark.surface, pytest.mark.asyncio(loop_scope="module")]

METHODS = {
    "/v1/chat/completions": ["post"],
    "/v1/answer": ["post"],
    "/v1/detect": ["post"],
    "/v1/segment": ["post"],
    "/v1/pose": ["post"],
    "/v1/images/generations": ["post"],
    "/v1/images/edits": ["post"],
    "/v1/files": ["get", "post"],
    "/v1/files/{file_id}": ["delete", "get"],
    "/v1/files/{file_id}/content": ["get"],
    "/v1/batches": ["get", "post"],
    "/v1/batches/{batch_id}": ["get"],
    "/v1/batches/{batch_id}/cancel": ["post"],
    "/v1/models": ["get"],
    "/v1/models/{model}": ["get"],
    "/livez": ["get"],
    "/healthz": ["get"],
    "/readyz": ["get"],
    "/startupz": ["get"],
    "/metrics": ["get"],
}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def gateway() -> AsyncIterator[LiveGateway]:
    async with live_gateway() as running:
        yield running


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def document(gateway: LiveGateway) -> dict[str, Any]:
    content: dict[str, Any] = (await gateway.http.get("/openapi.json")).json()
    return content


def operations(document: dict[str, Any]) -> Iterator[tuple[str, str, dict[str, Any]]]:
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            yield path, method, operation


def referenced(node: Any) -> Iterator[str]:
    if isinstance(node, dict):
        if isinstance(node.get("$ref"), str):
            yield node["$ref"]
        for value in node.values():
            yield from referenced(value)
    elif isinstance(node, list):
        for value in node:
            yield from referenced(value)


def fits(document: dict[str, Any], schema: dict[str, Any], example: Any) -> None:
    """Raises where it does not."""
    validator = jsonschema.Draft202012Validator({**schema, "components": document["components"]})
    validator.validate(example)


async def test_it_has_every_path_and_every_model(document: dict[str, Any]) -> None:
    assert {path: sorted(methods) for path, methods in document["paths"].items()} == METHODS
    known = {f"#/components/schemas/{name}" for name in document["components"]["schemas"]}
    assert set(referenced(document)) <= known
    # Of what clients send back less is needed than answers have.
    assert document["components"]["schemas"]["ReturnedDetection"]["required"] == ["category", "bbox", "score"]
    names = [operation["operationId"] for _, _, operation in operations(document)]
    assert len(names) == len(set(names))


async def test_every_operation_says_what_it_does_and_how_it_fails(document: dict[str, Any]) -> None:
    for path, method, operation in operations(document):
        place = f"{method} {path}"
        assert operation["summary"], place
        assert operation["description"], place
        assert "default" in operation["responses"], place
        for status, response in operation["responses"].items():
            assert response["description"], place
            assert "x-request-id" in response["headers"], place
            if status.startswith("2"):
                continue
            problem = response["content"]["application/problem+json"]
            assert problem["schema"] == {"$ref": "#/components/schemas/Problem"}
            if status != "default":
                fits(document, problem["schema"], problem["example"])
                assert problem["example"]["status"] == int(status), place
        for parameter in operation.get("parameters", []):
            assert {"example", "examples"} & {*parameter, *parameter["schema"]}, (place, parameter)


async def test_every_document_that_is_sent_or_comes_back_has_an_example_that_fits(document: dict[str, Any]) -> None:
    for path, method, operation in operations(document):
        bodies = [operation["requestBody"]] if "requestBody" in operation else []
        successes = [response for status, response in operation["responses"].items() if status.startswith("2")]
        assert successes, (method, path)
        for each in (*bodies, *successes):
            for media_type, content in each["content"].items():
                if media_type == "application/json":
                    fits(document, content["schema"], content["example"])


async def test_every_example_of_a_request_can_be_sent_as_it_is(gateway: LiveGateway, document: dict[str, Any]) -> None:
    sent = []
    for path, method, operation in operations(document):
        for media_type, content in operation.get("requestBody", {}).get("content", {}).items():
            # A batch needs a file: tests/gateway/test_batches.py.
            if media_type != "application/json" or path == "/v1/batches":
                continue
            response = await gateway.http.request(method, path, json=content["example"])
            assert response.status_code == 200, (path, response.text)
            fits(document, operation["responses"]["200"]["content"]["application/json"]["schema"], response.json())
            sent.append(path)
    assert len(sent) == 7


async def test_options_of_forms_are_those_of_json(document: dict[str, Any]) -> None:
    """But for those that OpenAI's clients may send and that have no effect here."""
    schemas = document["components"]["schemas"]
    for path in ("/v1/answer", "/v1/detect", "/v1/segment", "/v1/pose"):
        content = document["paths"][path]["post"]["requestBody"]["content"]
        body = schemas[content["application/json"]["schema"]["$ref"].rpartition("/")[2]]
        assert content["multipart/form-data"]["schema"]["properties"].keys() == body["properties"].keys()
    fields = document["paths"]["/v1/images/edits"]["post"]["requestBody"]["content"]["multipart/form-data"]["schema"]
    assert {"image", "mask", "prompt", "superlink[seed]", "superlink[steps]"} <= fields["properties"].keys()
    assert '"null"' not in json.dumps(fields)


async def test_keys_and_repetitions_are_in_it_where_a_deployment_has_them(redis_server: LiveRedis) -> None:
    async with live_gateway(redis_url=redis_server.url, keys=REQUIRED) as keyed:
        document = (await keyed.http.get("/openapi.json")).json()
    for path, method, operation in operations(document):
        names = [parameter["name"] for parameter in operation.get("parameters", [])]
        assert ("Idempotency-Key" in names) == (method == "post" and path != "/v1/files")
        security = operation.get("security", document["security"])
        assert security == ([{"api_key": []}] if path.startswith("/v1/") else [])
        assert ("401" in operation["responses"]) == path.startswith("/v1/")
