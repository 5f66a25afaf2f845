"""A profile says which models a deployment loads, where each process listens, and its limits."""

from __future__ import annotations

import ipaddress
import os
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, IPvAnyNetwork, PositiveFloat, PositiveInt, model_validator

from superlink.configuration import ConfigurationError, Section, load_yaml

# Resident memory of a process above which `superlink up` drains it and starts it anew; 0: no ceiling.
MemoryCeiling = Annotated[int, Field(ge=0)]


class ImageLimits(Section):
    """What every process accepts as an image; checked on the header, before anything is decoded."""

    max_image_bytes: PositiveInt = 10 * 1024 * 1024
    max_image_pixels: PositiveInt = 40_000_000
    max_image_side: PositiveInt = 16_384


class BatchLimits(Section):
    """When a worker's batcher closes a batch, and how much may wait."""

    max_batch_size: PositiveInt = 8
    max_batch_bytes: PositiveInt = 32 * 1024 * 1024
    # How long the first request of a batch may wait for company. 0: never wait, batch what is queued.
    max_wait_ms: float = Field(default=2.0, ge=0)
    max_queue_size: PositiveInt = 64
    # A request that has waited this long is refused, and may be repeated, rather than answered late.
    max_queue_s: PositiveFloat = 15.0


class WorkerSettings(Section):
    """One worker process: an MLLM or a decoder."""

    # host:port that the gRPC server binds, and that the orchestrator dials unless `replicas` says otherwise.
    address: str
    # Where the orchestrator finds the workers of this kind: host:port of each, or a name that resolves to all of them,
    # as that of a headless service does.
    replicas: tuple[Annotated[str, Field(pattern=r"^[^\s/]+:\d+$")], ...] = ()
    # Folder with config.json and *.safetensors.
    weights: Path
    # Prometheus metrics over HTTP; 0 turns them off.
    metrics_port: int = Field(default=0, ge=0, le=65535)
    # Threads of the model thread's torch operations.
    threads: PositiveInt = 2
    batch: BatchLimits = BatchLimits()
    # How long a stopping worker waits for requests in flight.
    drain_timeout_s: PositiveFloat = 20.0
    max_memory_bytes: MemoryCeiling = 0
    # Encoded-image features kept per worker, least recently used goes first.
    feature_cache_entries: int = Field(default=64, ge=0)


class MllmSettings(WorkerSettings):
    """The MLLM worker."""

    max_new_tokens: PositiveInt = 256
    # Tiles an image may be cut into (plus the thumbnail).
    max_tiles: PositiveInt = 1
    max_images: PositiveInt = 4


class OrchestratorSettings(Section):
    """The answer engine."""

    address: str = "127.0.0.1:50050"
    metrics_port: int = Field(default=0, ge=0, le=65535)
    # Observation rounds an answer may take.
    max_rounds: int = Field(default=2, ge=0, le=8)
    # Upper bound for one tool call within the request's deadline.
    tool_timeout_s: PositiveFloat = 20.0
    # What an overload may cost a request that is let in, in time spent waiting. Requests that would wait longer are
    # refused at once (429, `overloaded`).
    queue_budget_s: PositiveFloat = 2.0
    # Share of repetitions in the calls to workers, at most; 0: none.
    retry_share: float = Field(default=0.1, ge=0, le=1)
    drain_timeout_s: PositiveFloat = 20.0
    max_memory_bytes: MemoryCeiling = 0
    # Let decoders encode the image while the MLLM still writes. Shortens answers that use tools; where few do, or where
    # many tools are deployed, the features that nobody asks for cost more than that.
    prefetch: bool = True


class KeyLimits(Section):
    """How much one API key may ask for; 0 is no limit."""

    # In any sixty seconds. Redis remembers each of them, hence the bound.
    requests_per_minute: int = Field(default=60, ge=0, le=100_000)
    # At the same time.
    concurrent_requests: int = Field(default=4, ge=0)
    # From midnight to midnight, UTC.
    requests_per_day: int = Field(default=10_000, ge=0)

    def shared(self, share: float) -> KeyLimits:
        """A part of them, of what is used up by the day all; where there is a limit, one request is left."""
        parts = {
            name: max(1, int(value * share)) if value else 0
            for name, value in (
                ("requests_per_minute", self.requests_per_minute),
                ("concurrent_requests", self.concurrent_requests),
            )
        }
        return self.model_copy(update=parts)


class KeySettings(Section):
    """API keys, which `superlink keys` creates."""

    # Whether requests need one.
    required: bool = False
    # Of keys that have no limits of their own.
    limits: KeyLimits = KeyLimits()
    # Answer whoever reaches a gateway that needs no keys and listens on more than this machine.
    allow_anyone: bool = False


class ImageUrlSettings(Section):
    """Images that are given by http and https addresses."""

    # Whether they are fetched.
    enabled: bool = False
    # Ports that may be asked.
    ports: tuple[Annotated[int, Field(ge=1, le=65535)], ...] = (80, 443)
    # Private networks that may be asked all the same: an image store of one's own.
    allowed_networks: tuple[IPvAnyNetwork, ...] = ()
    max_redirects: int = Field(default=3, ge=0, le=10)
    # For one image, from the look-up of its name to its last byte.
    timeout_s: PositiveFloat = 10.0


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach a server that listens on ``host``."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


class GatewaySettings(Section):
    """The REST edge."""

    host: str = "127.0.0.1"
    port: int = Field(default=8080, ge=1, le=65535)
    # Bodies above this are refused before they are read.
    max_body_bytes: PositiveInt = 16 * 1024 * 1024
    max_memory_bytes: MemoryCeiling = 0
    # Deadline of a request when the client names none.
    request_timeout_s: PositiveFloat = 60.0
    max_prompt_characters: PositiveInt = 4000
    max_phrases: PositiveInt = 100
    # Names under which agents reach /mcp, besides ``host`` and this machine's own: superlink.example.org. Under others
    # it refuses them, so that no web page reaches it through its visitor's browser (DNS rebinding).
    mcp_hosts: tuple[str, ...] = ()
    # Holds API keys, their limits, and the answers to requests with an idempotency key: redis://host:6379/0. The
    # environment's SUPERLINK_REDIS_URL comes first, so that a password need not stand in a file. Where neither names
    # one, `superlink up` starts its own.
    redis_url: str = ""
    keys: KeySettings = KeySettings()
    image_urls: ImageUrlSettings = ImageUrlSettings()
    # How long an answer is kept for requests that repeat its idempotency key.
    idempotency_keep_s: PositiveInt = 24 * 3600
    # Larger answers are not kept.
    idempotency_max_answer_bytes: PositiveInt = 8 * 1024 * 1024

    @property
    def host_in_url(self) -> str:
        """``host`` as addresses have it: IPv6 stands in brackets."""
        return f"[{self.host}]" if ":" in self.host else self.host

    @property
    def url(self) -> str:
        """Where the gateway listens: ``http://127.0.0.1:8080``."""
        return f"http://{self.host_in_url}:{self.port}"

    @model_validator(mode="after")
    def _not_open_to_the_network(self) -> GatewaySettings:
        if not (self.keys.required or self.keys.allow_anyone or is_loopback(self.host)):
            raise ValueError(
                f"the gateway would listen on {self.host} and answer whoever reaches it. Set gateway.keys.required, "
                "or listen on 127.0.0.1. To let anyone in all the same, set gateway.keys.allow_anyone"
            )
        return self


# Of files, in the state folder of a deployment on one machine.
ARTIFACTS = "artifacts"


class ArtifactSettings(Section):
    """Files of clients and of batches: where they are kept, how many, and for how long."""

    # A folder, or any address that fsspec knows: s3://bucket/folder. Empty: runs/stack/NAME/artifacts, or
    # where `superlink up` keeps its state.
    url: str = ""
    max_file_bytes: PositiveInt = 512 * 1024 * 1024
    # Of one API key, or of all clients together where none is needed.
    max_owner_bytes: PositiveInt = 10 * 1024 * 1024 * 1024
    # Clients may ask for less.
    keep_s: PositiveInt = 30 * 24 * 3600
    # From the first byte of an upload to the last.
    upload_timeout_s: PositiveFloat = 600.0


class WebhookSettings(Section):
    """Messages to clients whose batch is over."""

    # Signs them; `whsec_` and base64, as Standard Webhooks have it. The environment's SUPERLINK_WEBHOOK_SECRET comes
    # first. Empty: none are sent, and batches that ask for one are refused.
    secret: str = ""
    # Ports that may be gone to.
    ports: tuple[Annotated[int, Field(ge=1, le=65535)], ...] = (80, 443)
    # Private networks that may be gone to all the same.
    allowed_networks: tuple[IPvAnyNetwork, ...] = ()
    # For one attempt.
    timeout_s: PositiveFloat = 10.0
    # Before each attempt after the first; after the last one it is given up.
    retry_after_s: tuple[PositiveFloat, ...] = (5, 30, 120, 600, 3600, 4 * 3600, 12 * 3600)


class BatchSettings(Section):
    """Batches of requests, which workers send to the gateway line by line."""

    # Whether there are any; needs a Redis.
    enabled: bool = False
    # Of the worker's metrics over HTTP; 0 turns them off.
    metrics_port: int = Field(default=0, ge=0, le=65535)
    # Shards that a worker process works on at the same time, and lines that it asks of each.
    concurrency: PositiveInt = 1
    lines_at_a_time: PositiveInt = 2
    # A gateway lets lines of batches in while fewer requests than this are in flight there, live ones included (and
    # one line in any case): what live requests need is never taken.
    max_requests_in_flight: PositiveInt = 4
    # The part of its key's requests a minute and at the same time that a batch may use.
    share_of_limits: float = Field(default=0.5, gt=0, le=1)
    max_lines: PositiveInt = 1_000_000
    # A shard is cut at so many lines, or bytes.
    max_shard_lines: PositiveInt = 20
    max_shard_bytes: PositiveInt = 4 * 1024 * 1024
    # A line with which a worker died so often is given up.
    max_deliveries: PositiveInt = 3
    # Where workers find the gateway; empty: where this profile has it.
    gateway_url: str = ""
    # How long a stopping worker waits for the lines that it asked.
    drain_timeout_s: PositiveFloat = 20.0
    # Of one of the processes that work on shards: above it, it is started anew between two.
    max_memory_bytes: MemoryCeiling = 0
    webhooks: WebhookSettings = WebhookSettings()


class TelemetrySettings(Section):
    """Traces of requests."""

    # A collector that takes OTLP over gRPC: http://127.0.0.1:4317, or https. Empty: no traces are sent. The
    # environment's OTEL_EXPORTER_OTLP_ENDPOINT comes first.
    otlp_endpoint: str = ""


class Profile(Section):
    """Everything that the processes of one deployment must agree on."""

    name: str
    images: ImageLimits = ImageLimits()
    artifacts: ArtifactSettings = ArtifactSettings()
    batches: BatchSettings = BatchSettings()
    telemetry: TelemetrySettings = TelemetrySettings()
    gateway: GatewaySettings = GatewaySettings()
    orchestrator: OrchestratorSettings = OrchestratorSettings()
    mllm: MllmSettings
    # Decoder workers by name; the name is also the room under services/.
    decoders: dict[str, WorkerSettings]


def load_profile(path: Path, overrides: dict[str, Any] | None = None) -> Profile:
    """Read a profile. Raises ConfigurationError with a text that names the key.

    ``overrides`` maps dotted keys to values: ``{"gateway.port": 9000}``. Relative weight folders stay relative;
    ``weights_folder`` resolves them.
    """
    return load_yaml(path, Profile, overrides)


def weights_folder(worker: WorkerSettings) -> Path:
    """The absolute folder of a worker's weights; relative ones are taken from ``superlink_home()``."""
    return worker.weights if worker.weights.is_absolute() else superlink_home() / worker.weights


def find_profile(name: str) -> Path:
    """The file of the profile called ``name``, or ``name`` itself when it is a path to a YAML file.

    Looked for in ``$SUPERLINK_HOME/infra/profiles`` and then in ``infra/profiles`` beside the installed package.
    Raises ConfigurationError naming the known profiles.
    """
    direct = Path(name)
    if direct.suffix in {".yaml", ".yml"}:
        return direct
    folder = superlink_home() / "infra" / "profiles"
    candidate = folder / f"{name}.yaml"
    if candidate.is_file():
        return candidate
    known = ", ".join(sorted(file.stem for file in folder.glob("*.yaml"))) or "none"
    raise ConfigurationError(f"No profile {name!r} in {folder}. Known profiles: {known}.")


def state_folder_of(profile: Profile) -> Path:
    """Where a deployment on this machine keeps what must outlive it, unless it is told to keep it elsewhere."""
    return superlink_home() / "runs" / "stack" / profile.name


def superlink_home() -> Path:
    """The folder that holds ``infra/`` and ``weights/``: ``$SUPERLINK_HOME``, or the repository of this package."""
    configured = os.environ.get("SUPERLINK_HOME")
    return Path(configured) if configured else Path(__file__).resolve().parent.parent
