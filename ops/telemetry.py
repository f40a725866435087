"""Structured logs and a metrics port, set up once by each process's `__main__`.

Logs are JSON lines on stderr (readable columns on a terminal) with constant event names; never user text.
"""

import sys
from typing import Any, cast

import structlog
from prometheus_client import start_http_server


def configure_logging(process: str, *, level: int = 20) -> None:
    """Bind the process's name to every log line; `level` as in `logging` (20 is INFO)."""
    renderer: Any = (
        structlog.dev.ConsoleRenderer(pad_event_to=30)
        if sys.stderr.isatty()
        else structlog.processors.JSONRenderer()
    )
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info,
            renderer,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
    )
    structlog.contextvars.bind_contextvars(process=process)


def logger(**ids: str) -> structlog.typing.FilteringBoundLogger:
    """A logger with `ids` bound to every line."""
    return cast(structlog.typing.FilteringBoundLogger, structlog.get_logger().bind(**ids))


def serve_metrics(port: int) -> None:
    """Prometheus metrics on the loopback interface; 0 turns them off."""
    if port:
        start_http_server(port, addr="127.0.0.1")
