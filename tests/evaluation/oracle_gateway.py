"""A real HTTP server in the gateway's shape that knows the right answers of a scene set, and can be told to err."""

from __future__ import annotations

import base64
import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from services.evaluation.scenes_set import CountAnswer, Prompt, SceneSet, YesNoAnswer

TIMINGS = [
    {"service": "gateway", "phase": "total", "milliseconds": 0.5},
    {"service": "mllm", "phase": "compute", "milliseconds": 0.25},
]


class Oracle:
    """Finds the prompt by its image and its words and answers it; ``wrong_tasks`` get wrong answers."""

    def __init__(self, scene_set: SceneSet) -> None:
        self.scene_set = scene_set
        self.wrong_tasks: set[str] = set()
        self.failing_tasks: set[str] = set()
        self.image_of_digest = {
            hashlib.sha256(scene_set.image_file(image_id).read_bytes()).hexdigest(): image_id
            for image_id in scene_set.images
        }

    def chat(self, request: dict) -> tuple[int, dict]:
        content = request["messages"][-1]["content"]
        parts = [{"type": "text", "text": content}] if isinstance(content, str) else content
        text = next(part["text"] for part in parts if part["type"] == "text")
        urls = [part["image_url"]["url"] for part in parts if part["type"] == "image_url"]
        image_id = self.image_id(base64.b64decode(urls[0].partition(",")[2])) if urls else None
        prompt = next(entry for entry in self.scene_set.prompts if (entry.text, entry.image_id) == (text, image_id))
        if prompt.task in self.failing_tasks:
            problem = {"status": 500, "code": "internal", "detail": "broken", "service": "mllm"}
            return 500, problem
        return 200, self.completion(prompt, prompt.task in self.wrong_tasks)

    def image_id(self, content: bytes) -> int:
        return self.image_of_digest[hashlib.sha256(content).hexdigest()]

    def completion(self, prompt: Prompt, wrong: bool) -> dict:
        content, phrases = "", []
        for phrase in prompt.phrases:
            said = f"{phrase.phrase} wrong" if wrong else phrase.phrase
            start = len(content)
            content += said
            detections = [
                {"bbox": list(self.scene_set.annotations[entry].bbox), "score": 0.9} for entry in phrase.annotation_ids
            ]
            phrases.append(
                {
                    "phrase": said,
                    "span": {"start": start, "end": len(content)},
                    "route": phrase.route,
                    "found": bool(phrase.annotation_ids),
                    "score": 0.9,
                    "detections": [] if wrong else detections,
                }
            )
            content += ", "
        observations = []
        if prompt.answer is not None and prompt.phrases:
            observations = [{"position": len(content), "groups": []}]
        content += "\n" + self.conclusion(prompt, wrong)
        calls = [{"id": "call_0", "tool": "detection", "status": "completed", "phrases": phrases}] if phrases else []
        extension = {"tool_calls": calls, "observations": observations, "timings": TIMINGS}
        message = {"role": "assistant", "content": content, "superlink": extension}
        return {"model": "oracle", "choices": [{"finish_reason": "stop", "message": message}]}

    def conclusion(self, prompt: Prompt, wrong: bool) -> str:
        answer = prompt.answer
        if answer is None:
            return "Hello."
        if isinstance(answer, CountAnswer):
            return f"There are {answer.value + wrong}."
        if isinstance(answer, YesNoAnswer):
            return "Yes." if answer.value is not wrong else "No."
        return "Something else." if wrong else f"{answer.options[answer.value][0]}."

    def detect(self, body: bytes, content_type: str) -> dict:
        """Multipart or JSON; both hold the image and the categories."""
        if content_type.startswith("application/json"):
            request = json.loads(body)
            content, categories = base64.b64decode(request["image"].partition(",")[2]), request["categories"]
        else:
            content, categories = _read_form(body, content_type)
        image_id = self.image_id(content)
        found = {
            name: [
                annotation for annotation in self.scene_set.annotations_of(image_id) if name in self.names(annotation)
            ]
            for name in categories
        }
        return {
            "model": "oracle",
            "categories": [{"phrase": name, "found": bool(found[name]), "score": 0.9} for name in categories],
            "detections": [
                {"category": name, "bbox": list(annotation.bbox), "score": 0.9}
                for name, annotations in found.items()
                for annotation in annotations
            ],
            "timings": TIMINGS,
        }

    def names(self, annotation) -> tuple[str, str]:
        category = self.scene_set.categories[annotation.category_id]
        return category.name, category.name_zh


def _read_form(body: bytes, content_type: str) -> tuple[bytes, list[str]]:
    boundary = b"--" + content_type.partition("boundary=")[2].encode()
    image, categories = b"", []
    for part in body.split(boundary)[1:-1]:
        head, _, content = part.removeprefix(b"\r\n").removesuffix(b"\r\n").partition(b"\r\n\r\n")
        if b'name="image"' in head:
            image = content
        elif b'name="categories"' in head:
            categories.append(content.decode())
    return image, categories


@contextmanager
def serve(oracle: Oracle) -> Iterator[str]:
    """The address of the oracle for as long as the block lasts."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.answer(200, {"ready": True, "services": []})

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            if self.path.startswith("/v1/detect"):
                self.answer(200, oracle.detect(body, self.headers["content-type"]))
            else:
                self.answer(*oracle.chat(json.loads(body)))

        def answer(self, status: int, document: dict) -> None:
            content = json.dumps(document).encode()
            self.send_response(status)
            self.send_header("content-type", "application/json" if status == 200 else "application/problem+json")
            self.send_header("content-length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *arguments: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
