"""Options of the service."""

from dataclasses import dataclass, field

from unimetric.config_values import require, require_finite


@dataclass(frozen=True)
class ServiceConfig:
    """The address and the limits of the search service.

    Args:
        host: Address to listen on. With the default only this machine reaches the service.
        port: Port; 0 takes a free one.
        allowed_hosts: Further names that the service answers to.
        writable: Let clients with the token of UNIMETRIC_TOKEN add and delete items.
        read_token: Answer only clients with the token of UNIMETRIC_READ_TOKEN. That of UNIMETRIC_TOKEN permits reading
            too.
        originals: Show the picture of an opened item from its own file. The file has to be on this machine and
            unchanged; otherwise, and with false, the stored picture of 256 pixels is shown.
        group_copies: Give one answer for all copies of a picture. By default as recorded in the database.
        max_upload_bytes: Bytes of an image's file, at most.
        max_pixels: Pixels of an image, at most. Larger ones are refused before they are decoded.
        request_seconds: Seconds for an upload to arrive, and again for its answer. The client has the same time to read
            it.
        queue_size: Requests that are worked on at a time. Further ones are refused with 503 and Retry-After.
        max_connections: Connections that are open at a time. Beyond it, those that wait for their clients are closed.
        batch_size: Images per forward pass, at most.
    """

    host: str = "127.0.0.1"
    port: int = 8765
    allowed_hosts: list[str] = field(default_factory=list)
    writable: bool = False
    read_token: bool = False
    originals: bool = True
    group_copies: bool | None = None
    max_upload_bytes: int = 10_000_000
    max_pixels: int = 50_000_000
    request_seconds: float = 30.0
    queue_size: int = 64
    max_connections: int = 512
    batch_size: int = 16

    def __post_init__(self) -> None:
        require(0 <= self.port <= 65535, "port", self.port, "use 0 to 65535")
        require(self.host != "", "host", self.host, "use 127.0.0.1, or 0.0.0.0 for every address of this machine")
        for option in ("max_upload_bytes", "max_pixels", "queue_size", "max_connections", "batch_size"):
            require(getattr(self, option) >= 1, option, getattr(self, option), "use 1 or more")
        require_finite("request_seconds", self.request_seconds)
        require(self.request_seconds > 0, "request_seconds", self.request_seconds, "use more than 0")
