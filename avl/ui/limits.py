"""How much a visitor, and all of them together, may take of the server."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from avl.engine.request import GenerationRequest

MB = 1 << 20


@dataclass(frozen=True)
class Limits:
    """Numbers only; who holds to them says so in words.

    Attributes:
        waiting: runs that wait, of all visitors.
        waiting_per_visitor: runs that wait, of one visitor.
        picture_bytes: memory for the decoded pictures of runs that wait.
        tokens: tokens that one run may generate: those of all arms, rows, repeats and replays.
        run_seconds: most seconds of one run.
        stuck_seconds: seconds without progress after which the device counts as stuck.
        unread_seconds: seconds after which a run that nobody reads is ended, and its events are given up.
        file_bytes: one uploaded file.
        body_bytes: one request's body, other than an upload.
        upload_bytes: one upload, all its files.
        pending_bytes: bodies of all requests together.
        visitor_bytes: uploads of one visitor an hour.
        disk_bytes: uploads and drawn pictures on disk; the oldest are deleted.
        sessions: pages whose state is kept; the oldest are given up.
        kept_seconds: how long a run is kept after its end.
        runs_per_visitor: runs that are kept of one visitor; the oldest are given up.
        run_bytes: memory for the runs of all visitors that are over, and for those that are not.
        away_seconds: seconds after which a run that no page reads is ended: enough to load the page again.
    """

    waiting: int = 20
    waiting_per_visitor: int = 2
    picture_bytes: int = 512 * MB
    tokens: int = 1 << 17
    run_seconds: float = 1800
    stuck_seconds: float = 300
    unread_seconds: float = 30
    file_bytes: int = 8 * MB
    body_bytes: int = 12 * MB
    upload_bytes: int = 66 * MB
    pending_bytes: int = 256 * MB
    visitor_bytes: int = 512 * MB
    disk_bytes: int = 1024 * MB
    sessions: int = 1000
    kept_seconds: float = 3600
    runs_per_visitor: int = 24
    run_bytes: int = 512 * MB
    away_seconds: float = 10

    def check_work(self, request: GenerationRequest) -> None:
        """Refuse a run that generates too much.

        Raises:
            ValueError: it does; one sentence that says what to lower.
        """
        from avl.engine.sweep import SweepRequest  # here, because it imports what takes seconds

        arms = len(request.policies)
        passes = arms * (request.repeats + request.scores) * request.batch + request.forced_passes
        tokens = passes * request.max_new_tokens
        if tokens > self.tokens and isinstance(request, SweepRequest):
            raise ValueError(
                f"This sweep would generate {tokens:,} tokens, {self.tokens:,} is the most here: take fewer points ({arms - 1}), or lower "
                f"the batch ({request.batch}), the repeats ({request.repeats}) or the new tokens ({request.max_new_tokens})."
            )
        if tokens > self.tokens:
            raise ValueError(
                f"This run would generate {tokens:,} tokens, {self.tokens:,} is the most here: lower the batch ({request.batch}), "
                f"the repeats ({request.repeats}) or the new tokens ({request.max_new_tokens}), or compare fewer policies ({arms})."
            )
