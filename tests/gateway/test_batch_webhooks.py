"""Webhooks of batches: signed, sent again, and to public addresses only."""

import asyncio
import socket
import threading
import time
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import openai
import pytest
from api_key_maker import expect_problem
from batch_lines import detect_line
from batch_workers import batch_gateway, batch_worker, order, until_over, upload
from live_redis import LiveRedis

pytestmark = pytest.mark.surface

SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"  # noqa: S105 (of this test)


class Receiver(HTTPServer):
    """Takes webhooks; the first ``refusals`` are answered with 500."""

    def __init__(self, refusals: int) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.refusals = refusals
        self.taken: list[tuple[bytes, dict[str, str]]] = []


class _Handler(BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        assert isinstance(self.server, Receiver)
        body = self.rfile.read(int(self.headers["content-length"]))
        self.server.taken.append((body, {name.lower(): value for name, value in self.headers.items()}))
        self.send_response(500 if len(self.server.taken) <= self.server.refusals else 204)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        return


async def test_a_webhook_is_signed_and_sent_again_until_it_is_taken(redis_server: LiveRedis, tmp_path: Path) -> None:
    with Receiver(refusals=1) as receiver:
        threading.Thread(target=receiver.serve_forever, daemon=True).start()
        port = receiver.server_address[1]
        webhooks = {
            "secret": SECRET,
            "ports": [port],
            "allowed_networks": ["127.0.0.0/8"],
            "retry_after_s": [0.2, 0.2],
        }
        async with batch_gateway(redis_server, batches={"webhooks": webhooks}) as gateway:
            with batch_worker(tmp_path / "worker", gateway):
                body = detect_line("a")
                where = {"superlink": {"webhook_url": f"http://localhost:{port}/hook"}}
                over = await until_over(gateway, await order(gateway, body, **where))
                deadline = time.monotonic() + 30
                while len(receiver.taken) < 2 and time.monotonic() < deadline:  # noqa: ASYNC110
                    await asyncio.sleep(0.1)
                await asyncio.sleep(1)
        receiver.shutdown()
    assert len(receiver.taken) == 2
    client = openai.OpenAI(api_key="none", webhook_secret=SECRET)
    for content, headers in receiver.taken:
        event = client.webhooks.unwrap(content.decode(), headers)
        assert (event.type, event.data.id) == ("batch.completed", over["id"])
    assert receiver.taken[0][1]["webhook-id"] == receiver.taken[1][1]["webhook-id"]
    with pytest.raises(openai.InvalidWebhookSignatureError):
        client.webhooks.unwrap(receiver.taken[0][0].decode() + " ", receiver.taken[0][1])


async def test_webhooks_go_to_public_addresses_only(redis_server: LiveRedis, tmp_path: Path) -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        listener.setblocking(False)
        port = listener.getsockname()[1]
        webhooks = {"secret": SECRET, "ports": [443, port]}
        async with batch_gateway(redis_server, batches={"webhooks": webhooks}) as gateway:
            for address in ("ftp://example.org/", "https://u:p@example.org/", "https://example.org:81/", "x" * 3000):
                body = {
                    "input_file_id": await upload(gateway, detect_line("a")),
                    "endpoint": "/v1/detect",
                    "completion_window": "24h",
                    "superlink": {"webhook_url": address},
                }
                expect_problem(await gateway.http.post("/v1/batches", json=body), 400, "webhook_refused")
            with batch_worker(tmp_path / "worker", gateway) as worker:
                for host in ("127.0.0.1", "localhost", "[::ffff:127.0.0.1]", "0x7f.1"):
                    where = {"superlink": {"webhook_url": f"http://{host}:{port}/"}}
                    await until_over(gateway, await order(gateway, detect_line("a"), **where))
                given_up = "a webhook was not delivered"
                deadline = time.monotonic() + 30
                while sum(entry["message"] == given_up for entry in worker.entries()) < 4:
                    assert time.monotonic() < deadline
                    await asyncio.sleep(0.1)
                said = [entry for entry in worker.entries() if entry["message"] == given_up]
                assert all(entry["given_up"] and "public address" in entry["reason"] for entry in said)
        with pytest.raises(BlockingIOError):
            listener.accept()
