"""The page as the gateway serves it; no browser needed."""

import re
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from api_key_maker import REQUIRED, expect_problem
from live_gateway import LiveGateway, live_gateway
from live_redis import live_redis

PAGE = Path(__file__).parents[2] / "gateway" / "playground" / "page"
SAMPLES = Path(__file__).parents[2] / "assets" / "samples"
FILES = sorted(path.relative_to(PAGE).as_posix() for path in PAGE.rglob("*") if path.is_file())
TEXTS = [name for name in FILES if not name.endswith(".png")]


@pytest.fixture
async def served() -> AsyncIterator[LiveGateway]:
    async with live_gateway() as running:
        yield running


async def test_the_page_has_a_strict_policy(served: LiveGateway) -> None:
    response = await served.http.get("/playground")

    assert response.status_code == 200
    assert response.headers["content-type"] == "text/html; charset=utf-8"
    policy = dict(part.strip().split(" ", 1) for part in response.headers["content-security-policy"].split(";"))
    assert policy["default-src"] == "'none'"
    assert policy["script-src"] == policy["style-src"] == policy["connect-src"] == "'self'"
    assert policy["frame-ancestors"] == policy["base-uri"] == "'none'"
    assert "unsafe" not in response.headers["content-security-policy"]
    assert response.headers["x-content-type-options"] == "nosniff"


async def test_every_file_is_served_and_kept_until_it_changes(served: LiveGateway) -> None:
    types = {".js": "text/javascript", ".css": "text/css", ".png": "image/png", ".svg": "image/svg+xml"}
    for name in FILES:
        address = "/playground" if name == "index.html" else f"/playground/{name}"
        response = await served.http.get(address)
        assert response.content == (PAGE / name).read_bytes()
        assert response.headers["content-type"].startswith(types.get(Path(name).suffix, "text/html"))
        assert response.headers["cache-control"] == "no-cache"
        again = await served.http.get(address, headers={"if-none-match": f'"other", W/{response.headers["etag"]}'})
        assert (again.status_code, again.content) == (304, b"")
        assert again.headers["etag"] == response.headers["etag"]
        changed = await served.http.get(address, headers={"if-none-match": '"older"'})
        assert changed.status_code == 200
        head = await served.http.head(address)
        assert (head.status_code, head.headers["etag"]) == (200, response.headers["etag"])


async def test_nothing_else_is_served(served: LiveGateway) -> None:
    for name in ("missing.js", "index.html", "../pages.py", "%2e%2e/pages.py", "samples"):
        expect_problem(await served.http.get(f"/playground/{name}"), 404, "unknown_path")
    slash = await served.http.get("/playground/")
    assert (slash.status_code, slash.headers["location"]) == (307, "../playground")


async def test_a_deployment_with_keys_shows_the_page_to_everyone(tmp_path: Path) -> None:
    with live_redis(tmp_path) as redis:
        async with live_gateway(redis_url=redis.url, keys=REQUIRED) as keyed:
            for path in ("/playground", "/playground/", "/playground/main.js", "/playground/samples/tour.png"):
                assert (await keyed.http.get(path)).status_code in (200, 307)
            expect_problem(await keyed.http.get("/v1/models"), 401, "missing_api_key")
            expect_problem(await keyed.http.get("/playgrounds"), 401, "missing_api_key")


def test_the_page_names_no_other_host() -> None:
    for name in TEXTS:
        addresses = set(re.findall(r"https?://[^\s\"'`)]+", (PAGE / name).read_text(encoding="utf-8")))
        assert addresses <= {"http://www.w3.org/2000/svg"}, name


def test_the_page_has_no_inline_script_or_style() -> None:
    page = (PAGE / "index.html").read_text(encoding="utf-8")
    assert not re.search(r"<style|\sstyle=|\son\w+=|javascript:", page)
    assert all("src=" in tag for tag in re.findall(r"<script[^>]*>", page))


def test_the_page_knows_every_file_that_it_is_made_of() -> None:
    everything = "\n".join((PAGE / name).read_text(encoding="utf-8") for name in TEXTS)
    for name in FILES:
        assert name == "index.html" or Path(name).name.removesuffix(".png") in everything, f"nothing uses {name}"


def test_no_module_waits_for_another_to_name_it() -> None:
    page = (PAGE / "index.html").read_text(encoding="utf-8")
    named = set(re.findall(r"(?:src|href)=\"playground/([^\"]+\.js)\"", page))
    assert named == {name for name in FILES if name.endswith(".js")}


def test_the_samples_are_those_of_the_repository() -> None:
    for path in (PAGE / "samples").iterdir():
        assert path.read_bytes() == (SAMPLES / path.name).read_bytes()
