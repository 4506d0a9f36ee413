"""A private RabbitMQ node of Debian's rabbitmq-server, with an epmd of its own, on free ports of 127.0.0.1.

Everything it writes is in one folder, its cookie too, so that it works beside the system's node and for any user. The start
script becomes the Erlang machine itself (RABBITMQ_ALLOW_INPUT), so that the kernel's help reaches it: node and epmd die with
this process. A line gets a virtual host; `rabbitmqctl eval` makes one in half a second.
"""

import os
import shutil
import socket
import subprocess
import time
from pathlib import Path

from ingress.processes import dies_with_me
from tests.servers import certificates
from tests.servers.needs import free_ports, program

SCRIPTS = "/usr/lib/rabbitmq/bin"


class RabbitMQ:
    """One node; `start` comes back when it answers, with what it held before on disk."""

    package = "rabbitmq-server"

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.port, self.tls_port, epmd_port, dist_port = free_ports(4)
        self.certificate = certificates.make(folder)
        for name in ("home", "data", "log"):
            (folder / name).mkdir()
        (folder / "plugins").write_text("[].\n")
        (folder / "environment").touch()
        (folder / "rabbitmq.conf").write_text(
            f"listeners.tcp.1 = 127.0.0.1:{self.port}\n"
            f"listeners.ssl.1 = 127.0.0.1:{self.tls_port}\n"
            f"ssl_options.cacertfile = {self.certificate.authority}\n"
            f"ssl_options.certfile = {self.certificate.certificate}\n"
            f"ssl_options.keyfile = {self.certificate.key}\n"
            "log.console.level = warning\n"
        )
        self.environment = {
            "PATH": os.environ["PATH"],
            "HOME": str(folder / "home"),
            "LANG": "C.UTF-8",
            "ERL_EPMD_PORT": str(epmd_port),
            "ERL_EPMD_ADDRESS": "127.0.0.1",
            "RABBITMQ_NODENAME": f"leadwire-{self.port}@localhost",
            "RABBITMQ_DIST_PORT": str(dist_port),
            "RABBITMQ_BASE": str(folder),
            "RABBITMQ_MNESIA_BASE": str(folder / "data"),
            "RABBITMQ_LOG_BASE": str(folder / "log"),
            "RABBITMQ_LOGS": "-",
            "RABBITMQ_ENABLED_PLUGINS_FILE": str(folder / "plugins"),
            "RABBITMQ_PLUGINS_EXPAND_DIR": str(folder / "expanded"),
            "RABBITMQ_CONFIG_FILE": str(folder / "rabbitmq.conf"),
            "RABBITMQ_CONF_ENV_FILE": str(folder / "environment"),
        }
        self.epmd_port = epmd_port
        self.process: subprocess.Popen[bytes] | None = None
        self.epmd: subprocess.Popen[bytes] | None = None
        self._given = 0

    def start(self) -> None:
        """Start the node, and epmd with the first."""
        server = program(self.package, f"{SCRIPTS}/rabbitmq-server")
        if self.epmd is None:
            epmd = program("erlang-base", "epmd")
            self.epmd = self._popen([str(epmd), "-port", str(self.epmd_port), "-address", "127.0.0.1"], {})
            self._until_open(self.epmd_port, 10)
        as_it_is = {"RABBITMQ_ALLOW_INPUT": "1", "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": "-noinput"}
        self.process = self._popen([str(server)], as_it_is)
        self._until_open(self.port, 60)

    def _popen(self, command: list[str], more: dict[str, str]) -> subprocess.Popen[bytes]:
        with (self.folder / "output.log").open("ab") as output:
            return subprocess.Popen(
                dies_with_me(command),
                env=self.environment | more,
                cwd=self.folder,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
            )

    def _until_open(self, port: int, seconds: float) -> None:
        give_up_at = time.monotonic() + seconds
        while True:
            try:
                socket.create_connection(("127.0.0.1", port), timeout=1).close()
            except OSError:
                if time.monotonic() > give_up_at:
                    self.stop()
                    raise RuntimeError((self.folder / "output.log").read_text()[-4000:]) from None
                time.sleep(0.05)
            else:
                return

    def kill(self) -> None:
        """Kill the node with SIGKILL."""
        assert self.process is not None
        self.process.kill()
        self.process.wait()

    def stop(self) -> None:
        """End node and epmd; nothing of theirs is needed again."""
        for process in (self.process, self.epmd):
            if process is not None:
                process.kill()
                process.wait()

    def ctl(self, *words: str) -> str:
        """Run `rabbitmqctl` and return what it printed."""
        done = subprocess.run(
            [f"{SCRIPTS}/rabbitmqctl", *words],
            env=self.environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )
        assert 0 == done.returncode, done.stdout + done.stderr
        return done.stdout

    def start_empty(self) -> None:
        """Start the node as if it had never run, but with the virtual hosts that were given, empty."""
        shutil.rmtree(self.folder / "data")
        (self.folder / "data").mkdir()
        self.start()
        self._make(*(f"line{number}" for number in range(1, self._given + 1)))

    def alarm(self, *, on: bool) -> None:
        """Raise the memory alarm, as a server does that runs short, or clear it."""
        fault = "{resource_limit, memory, node()}"
        self.ctl("eval", f"rabbit_alarm:set_alarm({{{fault}, []}})." if on else f"rabbit_alarm:clear_alarm({fault}).")

    def new_url(self) -> str:
        """Return the URL of a virtual host that nobody was given before."""
        self._given += 1
        self._make(f"line{self._given}")
        return self.url(f"line{self._given}")

    def tls_url(self) -> str:
        """Return the URL of one more virtual host over TLS; only the test's authority signed the certificate."""
        plain = self.new_url()
        return plain.replace("amqp://", "amqps://").replace(f":{self.port}/", f":{self.tls_port}/")

    def _make(self, *names: str) -> None:
        listed = ", ".join(f'<<"{name}">>' for name in names)
        everything = '<<".*">>, <<".*">>, <<".*">>'
        self.ctl(
            "eval",
            '[begin rabbit_vhost:add(Name, <<"tests">>), rabbit_auth_backend_internal:set_permissions('
            f'<<"guest">>, Name, {everything}, <<"tests">>) end || Name <- [{listed}]].',
        )

    def url(self, virtual_host: str) -> str:
        """Return the URL of a virtual host."""
        return f"amqp://guest:guest@127.0.0.1:{self.port}/{virtual_host}"
