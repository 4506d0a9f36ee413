"""What docker-compose.yml describes, as processes of this machine: the same commands, environments, order and health checks.

Nothing of this process's environment reaches them but PATH. What a container has to itself is replaced by what this machine
has: host names by the loopback address, ports by free ones, volumes and temporary file systems by folders.
"""

import os
import re
import subprocess
import sys
import time
from pathlib import Path

from ingress.processes import dies_with_me
from tests.deploy import composition
from tests.deploy.dockerfile import image_environment
from tests.servers.needs import free_ports, program
from tests.servers.postgres import PostgresServer, programs

OURS = ("check", "migrate", "ingress", "worker", "flower")
READY_SECONDS = 60.0
#: Debian's packages of the programs that come with the images of the servers.
PACKAGE_OF = {"redis-server": "redis-server", "redis-cli": "redis-tools", "pg_isready": "postgresql-client"}


def seconds(text):
    """Return a span such as `45s` or `1m`."""
    return int(text[:-1]) * {"s": 1, "m": 60}[text[-1]]


class Container:
    """One container: a process with folders of its own."""

    def __init__(self, stack, service, number):
        self.name = f"{service}-{number}"
        self.service = stack.services[service]
        self.folder = stack.folder / self.name
        self.log = self.folder / "log"
        for name in ("tmp", "home"):
            (self.folder / name).mkdir(parents=True)
        self._stack = stack
        self._entrypoint = ["leadwire"] if service in OURS else []
        self.environment = {
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            **(image_environment() if service in OURS else {}),
            **self.service["environment"],
            **(stack.ports if service in OURS else {}),
        }
        self.environment = {name: self._here(value) for name, value in self.environment.items()}
        self.process = None

    def _here(self, text):
        """Return a text with what a container has to itself replaced by what there is here."""
        text = re.sub(r"^/tmp/", f"{self.folder}/tmp/", text)
        for there, here in [*self._stack.replaced, ("/var/lib/leadwire", f"{self.folder}/home")]:
            text = text.replace(there, here)
        return text

    def _line(self, command):
        name, *words = command
        if name == "leadwire":
            found = Path(sys.executable).with_name(name)
        else:
            found = program(PACKAGE_OF[name], name, str(programs() / name))
        more = ["--bind", "127.0.0.1"] if name == "redis-server" else []
        return [str(found), *(self._here(word) for word in words), *more]

    def start(self):
        """Start its command."""
        with self.log.open("ab") as output:
            self.process = subprocess.Popen(
                dies_with_me(self._line([*self._entrypoint, *self.service["command"]])),
                env=self.environment,
                cwd=self.folder / "home",
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
            )

    def ended(self, patience_seconds=READY_SECONDS):
        """Wait until it has ended by itself and return its exit code."""
        return self.process.wait(patience_seconds)

    def run(self, *command):
        """Run a command inside it."""
        return subprocess.run(
            self._line(command),
            env=self.environment,
            cwd=self.folder / "home",
            capture_output=True,
            text=True,
            check=False,
            timeout=seconds(self.service["healthcheck"]["timeout"]),
        )

    def health(self):
        """Run its health check, as the file has it."""
        kind, *command = self.service["healthcheck"]["test"]
        assert "CMD" == kind
        return self.run(*command)

    def wait_until_healthy(self):
        """Wait until its health check passes."""
        give_up_at = time.monotonic() + READY_SECONDS
        while True:
            assert self.process is None or self.process.poll() is None, self.log.read_text()[-3000:]
            said = self.health()
            if said.returncode == 0:
                return
            assert time.monotonic() < give_up_at, f"{self.name}: {said.stderr}\n{self.log.read_text()[-3000:]}"
            time.sleep(0.2)

    def stop(self):
        """Do what the engine does: SIGTERM, the grace period, SIGKILL. Return the exit code."""
        self.process.terminate()
        try:
            return self.process.wait(seconds(self.service.get("stop_grace_period", "10s")))
        except subprocess.TimeoutExpired:
            self.process.kill()
            return self.process.wait()


class Stack:
    """All services of docker-compose.yml, with the examples' values but for the providers, which are the sandbox."""

    def __init__(self, folder, providers):
        self.folder = folder
        project = folder / "project"
        project.mkdir()
        composition.with_examples(project)
        self.variables = {**composition.variables_of(project / ".env"), **providers}
        self.services = composition.services(self.variables, project)
        self.redis_port, web, operator, flower = free_ports(4)
        self.ports = {
            "LEADWIRE_PORT": str(web),
            "LEADWIRE_OPERATOR_PORT": str(operator),
            "LEADWIRE_FLOWER_PORT": str(flower),
        }
        self.postgres = PostgresServer(**self._server_settings())
        self.containers = {}
        self.replaced = [("/etc/leadwire/rules", str(project / "rules.d")), ("0.0.0.0", "127.0.0.1")]

    def _server_settings(self):
        """Return what the command of `postgres` sets."""
        _, *words = self.services["postgres"]["command"]
        assert {"-c"} == set(words[::2])
        return dict(word.split("=", 1) for word in words[1::2])

    def start(self):
        """Start every service when what it depends on is as it says."""
        waiting = dict(self.services)
        while waiting:
            name = next(
                one for one, service in waiting.items() if not set(service.get("depends_on", ())) & set(waiting)
            )
            service = waiting.pop(name)
            for other, how in service.get("depends_on", {}).items():
                self._wait(other, how["condition"])
            self._start(name, service)

    def _start(self, name, service):
        if name == "postgres":
            self._start_postgres(service)
            return
        if name == "redis":
            self.replaced += [("@redis:6379", f"@127.0.0.1:{self.redis_port}"), ("6379", str(self.redis_port))]
        number = service.get("deploy", {}).get("replicas", 1)
        self.containers[name] = [Container(self, name, one) for one in range(1, number + 1)]
        for container in self.containers[name]:
            container.start()

    def _start_postgres(self, service):
        """Start the server and do what the image does at its first start: the user, its password, the database."""
        self.postgres.start()
        environment = service["environment"]
        with self.postgres.connect() as connection:
            connection.execute(
                f"ALTER ROLE {environment['POSTGRES_USER']} PASSWORD '{environment['POSTGRES_PASSWORD']}'"
            )
            database = f"postgresql://{environment['POSTGRES_USER']}:{environment['POSTGRES_PASSWORD']}@127.0.0.1"
            connection.execute(f"CREATE DATABASE {environment['POSTGRES_DB']}")
        self.database_url = f"{database}:{self.postgres.port}/{environment['POSTGRES_DB']}"
        self.replaced += [("@postgres:5432", f"@127.0.0.1:{self.postgres.port}"), ("=5432", f"={self.postgres.port}")]
        self.containers["postgres"] = [Container(self, "postgres", 1)]

    def _wait(self, name, condition):
        for container in self.containers[name]:
            if condition == "service_healthy":
                container.wait_until_healthy()
            else:
                assert "service_completed_successfully" == condition
                assert 0 == container.ended(), container.log.read_text()

    def one(self, name):
        """Return the first container of a service."""
        return self.containers[name][0]

    def url(self, role="PORT"):
        """Return where a port of ours is."""
        return f"http://127.0.0.1:{self.ports[f'LEADWIRE_{role}']}"

    def close(self):
        """End whatever still runs."""
        for container in reversed([one for several in self.containers.values() for one in several]):
            if container.process is not None and container.process.poll() is None:
                container.stop()
        self.postgres.close()
