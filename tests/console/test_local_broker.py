"""The broker that `leadwire up` starts."""

import stat
import subprocess
from pathlib import Path

import redis

from console import local_broker
from ingress.processes import dies_with_me
from worker.broker import wait_until_reachable


def test_the_server_found_listens_on_its_socket_alone(tmp_path):
    """The discovered server starts with our flags, answers on a private socket and opens no port."""
    socket = local_broker.socket_path(tmp_path)
    socket.parent.mkdir(exist_ok=True)
    process = subprocess.Popen(
        dies_with_me(local_broker.command(local_broker.find_server(), tmp_path, socket)), stdout=subprocess.DEVNULL
    )
    try:
        assert wait_until_reachable(local_broker.broker_url(socket), 10)
        assert 0o600 == stat.S_IMODE(socket.stat().st_mode)
        with redis.Redis(unix_socket_path=str(socket)) as client:
            assert "0" == client.config_get("port")["port"]
            assert "noeviction" == client.config_get("maxmemory-policy")["maxmemory-policy"]
    finally:
        process.terminate()
        process.wait()


def test_a_long_home_moves_the_socket_to_a_private_folder(tmp_path):
    """A path too long for a socket gives a short one in a folder nobody else may enter, the same every time."""
    home = tmp_path / ("x" * 120)
    path = local_broker.socket_path(home)
    assert len(bytes(path)) <= 100
    assert 0o700 == stat.S_IMODE(path.parent.stat().st_mode)
    assert path == local_broker.socket_path(home)
    Path(path.parent).rmdir()
