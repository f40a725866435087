"""`ratchet gateway` and `ratchet keys create|list|revoke`."""

import argparse
import errno
import signal
import socket
import sys
from datetime import UTC, datetime
from pathlib import Path

from feedback.config import Deployment, Review, read, section
from feedback.errors import ConfigError
from ops.errors import OpsError
from serving.auth import Keys, Role
from serving.config import Gateway
from serving.errors import ServingError, StartError


def main(argv: list[str], config: Path | None) -> int:
    """Run one verb; 0 when it worked, 2 when it cannot, with one line on stderr."""
    arguments = _arguments(argv)
    try:
        sections = read(config)
        deployment = section(sections, "deployment", Deployment)
        gateway = section(sections, "gateway", Gateway)
        if arguments.verb == "gateway":
            return serve(deployment, gateway, section(sections, "review", Review))
        return _keys(arguments, Keys(deployment.state))
    except (ConfigError, OpsError, ServingError) as e:
        print(f"ratchet {arguments.verb}: {e}", file=sys.stderr)
        return 2


def serve(deployment: Deployment, gateway: Gateway, review: Review) -> int:
    """Serve until SIGTERM or SIGINT, then drain."""
    listening = listen(gateway.host, gateway.port)

    import uvicorn

    from feedback.embedded import EmbeddedLog
    from feedback.keyring import KeyRing
    from feedback.privacy import secret
    from feedback.review_queue import ReviewQueue
    from ops.registry import Registry
    from ops.telemetry import configure_logging
    from serving.app import build

    configure_logging("gateway")
    keys, registry, ring = Keys(deployment.state), Registry(deployment.state), KeyRing(deployment.state)
    log = EmbeddedLog(deployment.log_path)
    queue = ReviewQueue(deployment.state, review)
    app = build(
        gateway,
        log=log,
        registry=registry,
        keys=keys,
        ring=ring,
        queue=queue,
        secret=secret(deployment.data_dir / "secret"),
    )
    _greet(keys, f"http://{gateway.host}:{listening.getsockname()[1]}")
    server = uvicorn.Server(
        uvicorn.Config(
            app,
            loop="uvloop",
            http="httptools",
            lifespan="on",
            log_level="warning",
            access_log=False,
            proxy_headers=False,
            server_header=False,
            timeout_graceful_shutdown=max(1, round(gateway.drain_s)),
        )
    )
    for ending in (signal.SIGTERM, signal.SIGINT):  # uvicorn raises what it caught again once it has drained
        signal.signal(ending, lambda *_: None)
    try:
        server.run(sockets=[listening])
    finally:
        log.close()
        registry.close()
        keys.close()
        ring.close()
        queue.close()
    return 0


def listen(host: str, port: int) -> socket.socket:
    """A bound socket. Raises: StartError saying what stands in the way."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listening = socket.socket(family, socket.SOCK_STREAM)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listening.bind((host, port))
    except OSError as e:
        listening.close()
        if e.errno == errno.EADDRINUSE:
            raise StartError(
                f"port {port} on {host} is in use: set [gateway] port, or stop what listens there"
            ) from e
        raise StartError(f"cannot listen on {host}:{port}: {e.strerror or e}") from e
    return listening


def _greet(keys: Keys, url: str) -> None:
    """Say where the gateway is; on the first start also make a key, which is shown this once."""
    if keys.list():
        print(f"chat page: {url}/", flush=True)
        return
    made = keys.create("admin", Role.ADMIN, datetime.now(UTC))
    print(f"API key (shown only now): {made}\nchat page: {url}/#key={made}", flush=True)


def _keys(arguments: argparse.Namespace, keys: Keys) -> int:
    now = datetime.now(UTC)
    if arguments.action == "create":
        print(keys.create(arguments.owner, Role[arguments.role.upper()], now))
    elif arguments.action == "revoke":
        key = keys.revoke(arguments.prefix, now)
        print(f"revoked {key.prefix}… of {key.owner}")
    else:
        for key in keys.list():
            state = "active" if key.revoked_at is None else f"revoked {key.revoked_at:%Y-%m-%d %H:%M}"
            print(f"{key.prefix}…  {key.role:<8}  {key.owner:<24}  {key.created_at:%Y-%m-%d %H:%M}  {state}")
    return 0


def _arguments(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="ratchet", description="The gateway and its API keys.")
    verbs = parser.add_subparsers(dest="verb", required=True)
    verbs.add_parser("gateway", help="serve the API and the chat page")
    actions = verbs.add_parser("keys", help="API keys").add_subparsers(dest="action", required=True)
    create = actions.add_parser("create", help="make a key and print it, this once")
    create.add_argument("owner", help="whose key; several keys may have one owner")
    create.add_argument("--role", choices=[r.name.lower() for r in Role], default="chat")
    actions.add_parser("list", help="every key, without its secret")
    revoke = actions.add_parser("revoke", help="end a key; running gateways notice within a second")
    revoke.add_argument("prefix", help="the key's first characters, as `keys list` shows them")
    return parser.parse_args(argv)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:], None))
