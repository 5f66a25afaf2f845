"""Processes that die, ports that are taken, weights that are missing."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest

from superlink import Client
from superlink.client_errors import RequestFailed
from superlink.ports import free_port_overrides
from superlink.profile import Profile, find_profile, load_profile
from superlink.results import Finished, TextDelta, ToolCallChanged
from superlink.stack import LocalStack, StackError, StackEvent

pytestmark = pytest.mark.faults
BACK_WITHIN_S = 120.0


def pid_of(stack: LocalStack, name: str) -> int:
    pid = stack.pid(name)
    assert pid is not None
    return pid


def wait_until(condition: Callable[[], bool], within_s: float = 10.0) -> None:
    deadline = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < deadline, f"did not come true within {within_s:g} s"
        time.sleep(0.05)


def is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


@pytest.fixture(scope="module")
def mortal(start_stack: Callable[[], LocalStack]) -> Iterator[LocalStack]:
    """A stack whose processes are killed; every test leaves it ready again."""
    with start_stack() as running:
        yield running


@pytest.fixture
def one_tool(profile: Profile) -> Profile:
    """A stack that starts sooner, where which tools there are does not matter."""
    return profile.model_copy(update={"decoders": {"detection": profile.decoders["detection"]}})


def test_text_arrives_when_a_decoder_dies_and_service_returns_when_it_does(mortal: LocalStack, sample: bytes) -> None:
    events: list[StackEvent] = []
    mortal.on_event = events.append
    with Client(mortal.url, max_retries=0) as client:
        whole = client.chat(sample, "What is here? Show me.")
        assert whole.errors == ()
        # A stopped process holds the call open, so that the kill comes in the middle of it.
        os.kill(pid_of(mortal, "detection"), signal.SIGSTOP)
        answer = None
        killed = False
        text = ""
        for event in client.chat(sample, "What is here? Show me.", stream=True):
            if isinstance(event, TextDelta):
                text += event.text
            if isinstance(event, ToolCallChanged) and event.call.status == "running" and not killed:
                mortal.kill("detection")
                killed = True
            if isinstance(event, Finished):
                answer = event.answer
        assert killed
        assert answer is not None
        assert answer.text == text
        assert text.startswith(whole.text[:10])
        assert [error.service for error in answer.errors] == ["detection"]
        assert answer.errors[0].detail
        mortal.wait_until_ready(BACK_WITHIN_S)
        again = client.chat(sample, "What is here? Show me.")
        assert again.text == whole.text
        assert again.detections == whole.detections
    kinds = [event.kind for event in events if event.process == "detection"]
    assert kinds == ["died", "restarting", "started"]


def test_the_model_says_that_its_tool_failed_and_makes_nothing_up(mortal: LocalStack, sample: bytes) -> None:
    questions = {"How many dogs are there?": "failed", "有几只狗？": "出错"}
    with Client(mortal.url, max_retries=0) as client, ThreadPoolExecutor() as asking:
        mortal.kill("detection")
        answers = asking.map(lambda question: client.chat(sample, question), questions)
        for answer, said in zip(answers, questions.values(), strict=True):
            [error] = answer.errors
            assert (error.service, error.hop, error.retryable) == ("detection", "orchestrator>detection", True)
            [observation] = answer.observations
            assert observation.groups[0].failed
            # Only what it says behind what it read is about the result.
            conclusion = answer.text[observation.position :]
            assert said in conclusion
            assert not any(character.isdecimal() for character in answer.text)
        mortal.wait_until_ready(BACK_WITHIN_S)
        for question in questions:
            again = client.chat(sample, question)
            assert again.errors == ()
            assert any(character.isdecimal() for character in again.text)


def test_the_fast_path_fails_clearly_while_its_decoder_is_away_and_works_again(mortal: LocalStack, grey: bytes) -> None:
    with Client(mortal.url, max_retries=0) as client:
        mortal.kill("detection")
        with pytest.raises(RequestFailed) as raised:
            client.detect(grey, ["dog"])
        assert raised.value.http_status == 503
        assert raised.value.service == "detection"
        assert raised.value.retryable
        wait_until(lambda: not client.ready().ready)
        mortal.wait_until_ready(BACK_WITHIN_S)
        assert client.detect(grey, ["dog"]).presence


def test_any_process_may_die_and_the_stack_heals(mortal: LocalStack, grey: bytes) -> None:
    with Client(mortal.url, max_retries=0) as client:
        for name in ("mllm", "orchestrator", "gateway"):
            mortal.kill(name)
            mortal.wait_until_ready(BACK_WITHIN_S)
            assert client.detect(grey, ["dog"]).presence


def test_no_process_is_left_when_the_one_that_started_them_is_killed(tmp_path: Path, one_tool: Profile) -> None:
    with subprocess.Popen(
        up_command(one_tool, tmp_path), stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as starter:
        assert starter.stdout is not None
        try:
            assert "Superlink runs at" in starter.stdout.readline()
            children = children_of(starter.pid)
            assert len(children) == len(LocalStack(one_tool).process_names)
        finally:
            starter.kill()
    wait_until(lambda: not any(is_running(pid) for pid in children), within_s=30)


def test_up_stops_in_order_when_it_is_told_to(tmp_path: Path, one_tool: Profile) -> None:
    with subprocess.Popen(
        up_command(one_tool, tmp_path), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as starter:
        assert starter.stdout is not None
        assert "Superlink runs at" in starter.stdout.readline()
        children = children_of(starter.pid)
        starter.send_signal(signal.SIGTERM)
        _, notes = starter.communicate(timeout=60)
        assert starter.returncode == 0
    assert not any(is_running(pid) for pid in children)
    order = [line.split()[0] for line in notes.splitlines() if " stopped " in line]
    assert order == list(reversed(LocalStack(one_tool).process_names))


def up_command(profile: Profile, folder: Path) -> list[str]:
    """`superlink up` on free ports."""
    file = write_profile(profile, folder, {})
    return [sys.executable, "-m", "superlink", "up", "--profile", str(file), "--state", str(folder)]


def children_of(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def test_a_port_in_use_is_named_before_anything_starts(profile: Profile, tmp_path: Path) -> None:
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        holder.listen()
        port = holder.getsockname()[1]
        file = find_profile("tiny")
        taken = load_profile(file, {**free_port_overrides(profile), "gateway.port": port})
        stack = LocalStack(taken, state_folder=tmp_path)
        with pytest.raises(StackError, match=rf"Port {port} .* in use; gateway wants it .*--set gateway\.port="):
            stack.start()
    assert not any(stack.pid(name) for name in stack.process_names)


@pytest.mark.parametrize("module", ["services.mllm.service", "services.detection.service", "orchestrator", "gateway"])
def test_a_process_says_itself_that_its_port_is_in_use(profile: Profile, tmp_path: Path, module: str) -> None:
    key = {
        "services.mllm.service": "mllm.address",
        "services.detection.service": "decoders.detection.address",
        "orchestrator": "orchestrator.address",
        "gateway": "gateway.port",
    }[module]
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        holder.listen()
        port = holder.getsockname()[1]
        value = port if key == "gateway.port" else f"127.0.0.1:{port}"
        result = run_process(module, write_profile(profile, tmp_path, {key: value}))
    assert result.returncode == 2
    assert str(port) in result.stderr
    assert "in use" in result.stderr
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize("name", ["mllm", "detection"])
def test_missing_weights_are_named_with_a_remedy(profile: Profile, tmp_path: Path, name: str) -> None:
    key = "mllm.weights" if name == "mllm" else f"decoders.{name}.weights"
    file = write_profile(profile, tmp_path, {key: str(tmp_path / "nowhere")})
    with pytest.raises(StackError, match=rf"{name}: no .*nowhere.*superlink doctor"):
        LocalStack(load_profile(file), ports="free", state_folder=tmp_path).start()
    result = run_process(f"services.{name}.service", file)
    assert result.returncode == 2
    assert "nowhere" in result.stderr
    assert "Traceback" not in result.stderr


def test_a_process_that_dies_at_start_is_reported_with_the_end_of_its_log(one_tool: Profile, tmp_path: Path) -> None:
    broken = tmp_path / "weights"
    broken.mkdir()
    (broken / "config.json").write_text("{}")
    file = write_profile(one_tool, tmp_path, {"decoders.detection.weights": str(broken)})
    stack = LocalStack(load_profile(file), ports="free", state_folder=tmp_path / "stack")
    with pytest.raises(StackError, match="detection ended with exit code 2"):
        stack.start()
    assert not any(stack.pid(name) for name in stack.process_names)


def test_a_bad_profile_key_is_answered_with_the_right_one_by_every_process(profile: Profile, tmp_path: Path) -> None:
    file = tmp_path / "profile.yaml"
    file.write_text(find_profile("tiny").read_text().replace("max_tiles:", "max_tils:"))
    modules = ("services.mllm.service", "services.detection.service", "orchestrator", "gateway")
    with ThreadPoolExecutor() as running:
        for result in running.map(lambda module: run_process(module, file), modules):
            assert result.returncode == 2
            assert "Did you mean 'max_tiles'?" in result.stderr


def test_a_bad_recipe_key_is_answered_with_the_right_one(tmp_path: Path) -> None:
    recipes = Path(__file__).resolve().parents[2] / "services" / "trainer" / "recipes"
    text = sorted(recipes.glob("*.yaml"))[0].read_text()
    file = tmp_path / "recipe.yaml"
    file.write_text(text.replace("\nseed:", "\nsed:"))
    result = run_process("superlink", None, "train", str(file))
    assert result.returncode == 2
    assert "Did you mean 'seed'?" in result.stderr


def test_a_stopping_gateway_lets_the_answer_in_flight_finish(mortal: LocalStack, grey: bytes) -> None:
    with Client(mortal.url, max_retries=0) as client:
        events = client.chat(grey, "What is here? Show me.", stream=True)
        next(events)
        os.kill(pid_of(mortal, "gateway"), signal.SIGTERM)
        assert isinstance(list(events)[-1], Finished)
    wait_until(lambda: not mortal.readiness()[0])
    mortal.wait_until_ready(BACK_WITHIN_S)


def test_healthz_answers_while_workers_are_away(mortal: LocalStack) -> None:
    mortal.kill("mllm")
    wait_until(lambda: httpx.get(f"{mortal.url}/readyz").status_code == 503)
    assert "mllm" in httpx.get(f"{mortal.url}/readyz").json()["detail"]
    assert httpx.get(f"{mortal.url}/healthz").status_code == 200
    mortal.wait_until_ready(BACK_WITHIN_S)


def write_profile(profile: Profile, folder: Path, overrides: dict[str, object]) -> Path:
    """The profile on free ports with some keys replaced, as a file."""
    import yaml

    file = folder / "changed.yaml"
    file.write_text(yaml.safe_dump(profile.model_dump(mode="json")))
    changed = load_profile(file, {**free_port_overrides(profile), **overrides})
    file.write_text(yaml.safe_dump(changed.model_dump(mode="json")))
    return file


def run_process(module: str, profile: Path | None, *arguments: str) -> subprocess.CompletedProcess[str]:
    options = ["--profile", str(profile)] if profile is not None else []
    command = [sys.executable, "-m", module, *options, *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
