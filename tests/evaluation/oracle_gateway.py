"""A real HTTP server in the gateway's shape that knows the right answers of a scene set, and can be told to err."""

from __future__ import annotations

import base64
import colorsys
import hashlib
import io
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
from PIL import Image

from services.evaluation.outcomes import FAST_TASKS
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
        self.services: list[str] = []
        self.made_for: dict[str, Prompt] = {}
        self.image_of_digest = {
            hashlib.sha256(scene_set.image_file(image_id).read_bytes()).hexdigest(): image_id
            for image_id in scene_set.images
        }

    def chat(self, request: dict) -> tuple[int, dict]:
        questions = [_parts(message["content"]) for message in request["messages"] if message["role"] == "user"]
        text = next(part["text"] for part in questions[-1] if part["type"] == "text")
        urls = [part["image_url"]["url"] for parts in questions for part in parts if part["type"] == "image_url"]
        image_id = self.image_id(base64.b64decode(urls[0].partition(",")[2])) if urls else None
        if len(questions) == 1 and (text, image_id) in [
            (entry.earlier, entry.image_id) for entry in self.scene_set.prompts if entry.earlier
        ]:
            message = {"role": "assistant", "content": "Here they are.", "superlink": {}}
            return 200, {"model": "oracle", "choices": [{"finish_reason": "stop", "message": message}]}
        prompt = next(
            entry
            for entry in self.scene_set.prompts
            if (entry.text, entry.image_id) == (text, image_id) and entry.task not in FAST_TASKS
        )
        if prompt.task in self.failing_tasks:
            problem = {"status": 500, "code": "internal", "detail": "broken", "service": "mllm"}
            return 500, problem
        return 200, self.completion(prompt, prompt.task in self.wrong_tasks)

    def found(self, annotation_id: int) -> dict:
        annotation = self.scene_set.annotations[annotation_id]
        mask = annotation.segmentation.model_dump(mode="json")
        return {"bbox": list(annotation.bbox), "score": 0.9, "segmentation": mask}

    def keypoints(self, prompt: Prompt, annotation_id: int, route: str) -> dict:
        """The keypoints that a prompt names of one figure, called as it calls them; hidden ones are last."""
        if route != "[POSE_OBJECT]":
            return {}
        annotation = self.scene_set.annotations[annotation_id]
        places = annotation.keypoints
        order = self.scene_set.categories[annotation.category_id].keypoints
        starts = {phrase.phrase: 3 * order.index(phrase.keypoint) for phrase in prompt.phrases if phrase.keypoint}
        named = [
            {"name": name, "x": places[start], "y": places[start + 1], "score": places[start + 2] / 2}
            for name, start in starts.items()
        ]
        return {"keypoints": sorted(named, key=lambda keypoint: -keypoint["score"])}

    def made(self, prompt: Prompt) -> dict:
        """An image of the prompt's own, with the colours that an edit asks for."""
        pixels = np.full((32, 32, 3), prompt.id % 251, dtype=np.uint8)
        pixels[0, 0] = divmod(prompt.id, 251)[0]
        if prompt.edit is not None:
            with Image.open(self.scene_set.image_file(prompt.image_id)) as opened:
                pixels = np.asarray(opened.convert("RGB")).copy()
            changed = prompt.edit.changed_mask()
            if prompt.edit.hue is not None:
                pixels[changed] = np.array(colorsys.hsv_to_rgb(prompt.edit.hue, 0.8, 0.9)) * 255
            elif prompt.edit.colour is not None:
                pixels[changed] = prompt.edit.colour
            else:
                pixels[changed] //= 2
        file = io.BytesIO()
        Image.fromarray(pixels).save(file, "PNG")
        self.made_for[hashlib.sha256(file.getvalue()).hexdigest()] = prompt
        encoded = base64.b64encode(file.getvalue()).decode()
        return {"b64_json": encoded, "width": pixels.shape[1], "height": pixels.shape[0], "seed": 0}

    def shown(self, prompt: Prompt) -> dict[int, list[list[float]]]:
        """What is in an image that was made."""
        if prompt.drawing is not None:
            return {category: [[1, 1, 9, 9]] for category in prompt.drawing.category_ids}
        boxes = [list(self.scene_set.annotations[entry].bbox) for entry in prompt.phrases[0].annotation_ids]
        return {prompt.edit.new: [[1, 1, 9, 9]], prompt.edit.recoloured: boxes}

    def segment(self, body: bytes, content_type: str) -> dict:
        content, fields = _read_form(body, content_type)
        image_id = self.image_id(content)
        if "regions" in fields:
            marks = tuple(json.loads(fields["regions"][0]))
            prompt = next(entry for entry in self.scene_set.prompts if marks and entry.marks == marks)
        else:
            prompt = next(
                entry for entry in self.scene_set.prompts if entry.task == "semantic" and entry.image_id == image_id
            )
        wrong = prompt.task in self.wrong_tasks
        return {
            "model": "oracle",
            "categories": [{"phrase": entry.phrase, "found": True, "score": 0.9} for entry in prompt.phrases],
            "detections": [
                {"category": entry.phrase, **self.found(annotation)}
                for entry in prompt.phrases
                for annotation in entry.annotation_ids
                if not wrong
            ],
            "timings": TIMINGS,
        }

    def image_id(self, content: bytes) -> int:
        return self.image_of_digest[hashlib.sha256(content).hexdigest()]

    def completion(self, prompt: Prompt, wrong: bool) -> dict:
        content, phrases = "", []
        for phrase in prompt.phrases:
            said = f"{phrase.phrase} wrong" if wrong else phrase.phrase
            start = len(content)
            content += said
            detections = [
                self.found(entry) | self.keypoints(prompt, entry, phrase.route) for entry in phrase.annotation_ids
            ]
            phrases.append(
                {
                    "phrase": said,
                    "span": {"start": start, "end": len(content)},
                    "route": phrase.route,
                    "found": bool(phrase.annotation_ids),
                    "score": 0.9,
                    "detections": [] if wrong else detections,
                    "images": [] if wrong or phrase.route not in ("[GEN]", "[EDIT]") else [self.made(prompt)],
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
            content, fields = _read_form(body, content_type)
            categories = fields["categories"]
        prompt = self.made_for.get(hashlib.sha256(content).hexdigest())
        if prompt is not None:
            ids = {category.name: category.id for category in self.scene_set.categories.values()}
            shown = self.shown(prompt)
            return {
                "categories": [],
                "detections": [
                    {"category": name, "bbox": box, "score": 0.9}
                    for name in categories
                    for box in shown.get(ids[name], [])
                ],
            }
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


def _parts(content: str | list[dict]) -> list[dict]:
    return [{"type": "text", "text": content}] if isinstance(content, str) else content


def _read_form(body: bytes, content_type: str) -> tuple[bytes, dict[str, list[str]]]:
    """The image, and all other fields."""
    boundary = b"--" + content_type.partition("boundary=")[2].encode()
    image, fields = b"", {}
    for part in body.split(boundary)[1:-1]:
        head, _, content = part.removeprefix(b"\r\n").removesuffix(b"\r\n").partition(b"\r\n\r\n")
        name = head.partition(b'name="')[2].partition(b'"')[0].decode()
        if name == "image":
            image = content
        else:
            fields.setdefault(name, []).append(content.decode())
    return image, fields


@contextmanager
def serve(oracle: Oracle) -> Iterator[str]:
    """The address of the oracle for as long as the block lasts."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            services = [{"name": name, "ready": True} for name in oracle.services]
            self.answer(200, {"ready": True, "services": services})

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            if self.path.startswith("/v1/detect"):
                self.answer(200, oracle.detect(body, self.headers["content-type"]))
            elif self.path.startswith("/v1/segment"):
                self.answer(200, oracle.segment(body, self.headers["content-type"]))
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
