"""Images by address: fetched where the profile says so, whole, in time, and only if they are images."""

import asyncio
import gzip
import io
import ssl
import subprocess
from collections.abc import Sequence
from pathlib import Path

import pytest
from api_key_maker import expect_problem
from image_fetching import PRIVATE, Names, detect, requests_to_every_endpoint, settings_for, show
from image_server import ImageServer, Writer, answer, image_server, redirect
from live_gateway import LiveGateway, live_gateway
from PIL import Image
from request_bodies import data_url, encode_picture
from scripted_workers import IMAGE_HEIGHT, IMAGE_WIDTH

from superlink.public_addresses import Address

pytestmark = [pytest.mark.surface, pytest.mark.faults]


async def test_every_endpoint_that_takes_an_image_takes_its_address(
    fetching: LiveGateway, image_host: ImageServer
) -> None:
    for name, (path, body) in requests_to_every_endpoint(f"{image_host.url}/dog.png").items():
        response = await fetching.http.post(path, json=body)
        assert response.status_code == 200, (name, response.text)
    assert len(image_host.received) == 6
    workers = fetching.workers
    for request in (*workers.detection.requests, *workers.segmentation.requests, *workers.diffusion.requests):
        assert request.image.encoded == encode_picture()
    assert workers.mllm.generate_requests[0].messages[0].parts[0].image.encoded == encode_picture()


async def test_masks_have_addresses_too(fetching: LiveGateway, image_host: ImageServer) -> None:
    image_host.replies["/mask.png"] = answer(transparent_picture())
    body = {"image": f"{image_host.url}/dog.png", "mask": f"{image_host.url}/mask.png", "prompt": "make the dog blue"}

    response = await fetching.http.post("/v1/images/edits", json=body)

    assert response.status_code == 200, response.text
    [request] = fetching.workers.diffusion.requests
    assert request.groups[0].region.HasField("mask")


def transparent_picture() -> bytes:
    buffer = io.BytesIO()
    Image.new("RGBA", (IMAGE_WIDTH, IMAGE_HEIGHT), (0, 0, 0, 0)).save(buffer, format="PNG")
    return buffer.getvalue()


async def test_addresses_are_refused_unless_the_profile_fetches_them(
    gateway: LiveGateway, image_host: ImageServer
) -> None:
    for name, (path, body) in requests_to_every_endpoint(f"{image_host.url}/dog.png").items():
        problem = expect_problem(await gateway.http.post(path, json=body), 400, "remote_image_refused")
        assert "gateway.image_urls.enabled" in problem["detail"], name
        assert "data URL" in problem["detail"]
    assert not image_host.received


async def dripping(writer: Writer) -> None:
    writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n")
    while True:
        writer.write(b"\0")
        await writer.drain()
        await asyncio.sleep(0.05)


async def dripping_headers(writer: Writer) -> None:
    writer.write(b"HTTP/1.1 200 OK\r\n")
    while True:
        writer.write(b"X: y\r\n")
        await writer.drain()
        await asyncio.sleep(0.05)


async def silent(writer: Writer) -> None:
    await asyncio.sleep(30)


async def test_an_endless_body_is_cut_off(image_host: ImageServer) -> None:
    sent = 0

    async def counted(writer: Writer) -> None:
        nonlocal sent
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: image/png\r\n\r\n")
        while True:
            writer.write(b"\0" * 65_536)
            await writer.drain()
            sent += 65_536

    image_host.replies["/endless"] = counted
    async with live_gateway(image_urls=settings_for(image_host)) as gateway:
        expect_problem(await detect(gateway, f"{image_host.url}/endless"), 413, "image_too_large")
    # What was under way in buffers comes on top of the ten megabytes.
    assert sent < 20_000_000


async def test_a_length_above_the_limit_is_not_even_begun(fetching: LiveGateway, image_host: ImageServer) -> None:
    image_host.replies["/large"] = b"HTTP/1.1 200 OK\r\nContent-Length: 99999999\r\n\r\n"

    problem = expect_problem(await detect(fetching, f"{image_host.url}/large"), 413, "image_too_large")
    assert "99,999,999" in problem["detail"]


async def test_slow_servers_are_given_up(image_host: ImageServer) -> None:
    image_host.replies |= {"/body": dripping, "/headers": dripping_headers, "/silent": silent}
    async with live_gateway(image_urls=settings_for(image_host, timeout_s=0.5)) as gateway:
        for path in ("/body", "/headers", "/silent"):
            async with asyncio.timeout(5):
                response = await detect(gateway, f"{image_host.url}{path}")
            assert "0.5 seconds" in expect_problem(response, 504, "image_fetch_too_slow")["detail"]


async def test_a_slow_look_up_is_given_up(image_host: ImageServer) -> None:
    async def never(host: str) -> Sequence[Address]:
        await asyncio.sleep(30)
        return []

    async with live_gateway(resolve=never, image_urls=settings_for(image_host, timeout_s=0.5)) as gateway:
        async with asyncio.timeout(5):
            response = await detect(gateway, "http://images.example/dog.png")
        expect_problem(response, 504, "image_fetch_too_slow")


async def test_the_requests_own_deadline_comes_first(fetching: LiveGateway, image_host: ImageServer) -> None:
    image_host.replies["/slow"] = silent
    headers = {"x-request-timeout-s": "0.5"}
    async with asyncio.timeout(4):
        response = await fetching.http.post(
            "/v1/detect", json={"image": f"{image_host.url}/slow", "phrase": "dog"}, headers=headers
        )

    expect_problem(response, 504, "image_fetch_too_slow")


async def test_a_client_that_leaves_ends_the_fetch(fetching: LiveGateway, image_host: ImageServer) -> None:
    begun, ended = asyncio.Event(), asyncio.Event()

    async def until_closed(writer: Writer) -> None:
        begun.set()
        writer.write(b"HTTP/1.1 200 OK\r\n\r\n")
        try:
            while True:
                writer.write(b"\0")
                await writer.drain()
                await asyncio.sleep(0.02)
        finally:
            ended.set()

    image_host.replies["/slow"] = until_closed
    for path, body in requests_to_every_endpoint(f"{image_host.url}/slow").values():
        begun.clear()
        ended.clear()
        leaving = asyncio.create_task(fetching.http.post(path, json=body))
        await begun.wait()
        leaving.cancel()
        await asyncio.wait_for(ended.wait(), 3)


async def test_what_it_is_says_the_content_not_its_header(fetching: LiveGateway, image_host: ImageServer) -> None:
    for media_type in ("text/html", "application/octet-stream", "image/gif"):
        image_host.replies["/picture"] = answer(encode_picture("JPEG"), f"Content-Type: {media_type}")
        assert (await detect(fetching, f"{image_host.url}/picture")).status_code == 200
    image_host.replies["/page.png"] = answer(b"<html>secret</html>", "Content-Type: image/png")
    response = await detect(fetching, f"{image_host.url}/page.png")
    expect_problem(response, 415, "unsupported_image")
    assert "secret" not in response.text


async def test_packed_answers_are_not_unpacked(fetching: LiveGateway, image_host: ImageServer) -> None:
    bomb = gzip.compress(b"\0" * 50_000_000)
    image_host.replies["/bomb"] = answer(bomb, "Content-Encoding: gzip", "Content-Type: image/png")

    problem = expect_problem(await detect(fetching, f"{image_host.url}/bomb"), 400, "image_fetch_failed")

    assert "packs" in problem["detail"]
    assert "accept-encoding: identity\r\n" in image_host.received[0].lower()


FAILURES = [
    (answer(b"", status="404 Not Found"), "404"),
    (answer(b"", status="500 Oops"), "500"),
    (answer(b"", status="206 Partial Content"), "206"),
    (answer(b"", status="304 Not Modified"), "304"),
    (b"SSH-2.0-OpenSSH_9.6\r\n", "HTTP"),
    (b"HTTP/1.1 200 OK\r\nContent-Length: 5000\r\n\r\ncut", "broke off"),
    (b"", "broke off"),
    (redirect("http://h:port/"), "redirects"),
    (redirect("http:////[1"), "redirects"),
]


async def test_servers_that_fail_are_told_of(fetching: LiveGateway, image_host: ImageServer) -> None:
    for reply, word in FAILURES:
        image_host.replies["/broken"] = reply
        response = await detect(fetching, f"{image_host.url}/broken")
        assert word in expect_problem(response, 400, "image_fetch_failed")["detail"]


async def test_where_nobody_listens_is_a_clear_failure(fetching: LiveGateway, image_host: ImageServer) -> None:
    async with image_server() as gone:
        port = gone.port
    settings = settings_for(image_host, ports=[port])
    async with live_gateway(image_urls=settings) as gateway:
        response = await detect(gateway, f"http://127.0.0.1:{port}/dog.png")
    assert "No connection" in expect_problem(response, 400, "image_fetch_failed")["detail"]


async def test_the_next_address_of_a_host_is_tried(image_host: ImageServer, names: Names) -> None:
    names.answers["images.example"] = [[PRIVATE, "127.0.0.1"]]
    settings = settings_for(image_host, allowed_networks=["127.0.0.0/8"])
    async with live_gateway(resolve=names, image_urls=settings) as gateway:
        response = await detect(gateway, f"http://images.example:{image_host.port}/dog.png")
    assert response.status_code == 200, response.text


async def test_too_many_images_are_refused_before_any_is_fetched(
    fetching: LiveGateway, image_host: ImageServer
) -> None:
    body = show(f"{image_host.url}/dog.png")
    body["messages"][0]["content"] += body["messages"][0]["content"][:1] * 4

    expect_problem(await fetching.http.post("/v1/chat/completions", json=body), 400, "too_many_images")
    assert not image_host.received


async def test_an_address_that_is_given_twice_is_fetched_once(fetching: LiveGateway, image_host: ImageServer) -> None:
    body = show(f"{image_host.url}/dog.png")
    content = body["messages"][0]["content"]
    content[:0] = [content[0], {"type": "image_url", "image_url": {"url": data_url(encode_picture("JPEG"))}}]

    response = await fetching.http.post("/v1/chat/completions", json=body)

    assert response.status_code == 200, response.text
    assert len(image_host.received) == 1
    images = [part.image.encoded for part in fetching.workers.mllm.generate_requests[0].messages[0].parts][:3]
    assert images == [encode_picture(), encode_picture("JPEG"), encode_picture()]


async def test_nothing_of_the_client_goes_to_the_server(fetching: LiveGateway, image_host: ImageServer) -> None:
    headers = {"authorization": "Bearer secret", "cookie": "a=b", "x-forwarded-for": "1.2.3.4"}
    body = {"image": f"{image_host.url}/dog.png?size=2#part", "phrase": "dog"}
    image_host.replies["/dog.png?size=2"] = image_host.replies["/dog.png"]

    assert (await fetching.http.post("/v1/detect", json=body, headers=headers)).status_code == 200

    sent = image_host.received[0].lower()
    assert sent.startswith("get /dog.png?size=2 http/1.1\r\n")
    assert not any(word in sent for word in ("authorization", "cookie", "forwarded", "referer", "part"))


def certificate_for(name: str, folder: Path) -> Path:
    file = folder / "certificate.pem"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", f"/CN={name}",
         "-addext", f"subjectAltName=DNS:{name}", "-keyout", str(folder / "key.pem"), "-out", str(file)],
        check=True, capture_output=True,
    )  # fmt: skip
    return file


async def test_https_is_checked_by_the_hosts_name(
    names: Names, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    certificate = certificate_for("images.example", tmp_path)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, tmp_path / "key.pem")
    asked: list[str | None] = []
    context.sni_callback = lambda connection, name, _: asked.append(name)
    names.answers |= {"images.example": [["127.0.0.1"]], "other.example": [["127.0.0.1"]]}
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    async with image_server(tls=context) as image_host:
        image_host.replies["/dog.png"] = answer(encode_picture())
        async with live_gateway(resolve=names, image_urls=settings_for(image_host)) as gateway:
            good = await detect(gateway, f"https://images.example:{image_host.port}/dog.png")
            other = await detect(gateway, f"https://other.example:{image_host.port}/dog.png")

    assert good.status_code == 200, good.text
    assert asked == ["images.example", "other.example"]
    expect_problem(other, 400, "image_fetch_failed")
