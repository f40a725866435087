"""A real PostgreSQL for tests: a private cluster on a free port, owned by an unprivileged user."""

import os
import pwd
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import create_engine, text

_NEWEST_FIRST = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), reverse=True)


def binaries() -> Path | None:
    """The newest folder with the server's programs; Debian keeps them off the PATH."""
    if _NEWEST_FIRST:
        return _NEWEST_FIRST[0].parent
    found = shutil.which("initdb")
    return Path(found).resolve().parent if found else None


def _unprivileged() -> str | None:
    """Whom to run as: PostgreSQL refuses root. None: we are nobody special already."""
    if os.geteuid() != 0:
        return None
    known = {entry.pw_name for entry in pwd.getpwall()}
    return "postgres" if "postgres" in known else "nobody"


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[str]:
    """SQLAlchemy URL of a server without databases of ours."""
    folder = binaries()
    if folder is None:
        pytest.skip("PostgreSQL tests need its server (Debian: apt-get install postgresql)")
    user = _unprivileged()
    home = Path(tempfile.mkdtemp(prefix="ratchet-postgres-"))
    if user is not None:
        shutil.chown(home, user)
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    initdb = [
        folder / "initdb",
        "-D",
        home / "data",
        "-U",
        "ratchet",
        "-A",
        "trust",
        "-E",
        "UTF8",
        "--no-sync",
    ]
    subprocess.run(initdb, user=user, cwd="/", check=True, capture_output=True)
    options = ["-c", f"unix_socket_directories={home}", "-c", "listen_addresses=127.0.0.1"]
    with (home / "log").open("wb") as log:
        command = [folder / "postgres", "-D", home / "data", "-p", str(port), *options]
        server = subprocess.Popen(command, user=user, cwd="/", stdout=log, stderr=log)
    try:
        url = f"postgresql+psycopg://ratchet@127.0.0.1:{port}"
        _wait_for(
            [folder / "pg_isready", "-h", "127.0.0.1", "-p", str(port), "-t", "1"], server, home / "log"
        )
        yield url
    finally:
        server.send_signal(signal.SIGINT)  # fast shutdown: does not wait for clients
        server.wait(timeout=30)
        shutil.rmtree(home, ignore_errors=True)


@pytest.fixture
def postgres_url(postgres_server: str) -> Iterator[str]:
    """An empty database of its own."""
    name = f"test_{time.monotonic_ns()}"
    admin = create_engine(f"{postgres_server}/postgres", isolation_level="AUTOCOMMIT")
    with admin.connect() as c:
        c.execute(text(f"CREATE DATABASE {name}"))
    yield f"{postgres_server}/{name}"
    with admin.connect() as c:
        c.execute(text(f"DROP DATABASE {name} WITH (FORCE)"))
    admin.dispose()


def _wait_for(ready: list[str | Path], server: "subprocess.Popen[bytes]", log: Path) -> None:
    for _ in range(100):
        if subprocess.run(ready, capture_output=True).returncode == 0:
            return
        if server.poll() is not None:
            break
        time.sleep(0.1)
    pytest.fail(f"PostgreSQL did not start:\n{log.read_text()[-2000:]}")
