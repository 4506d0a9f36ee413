"""docker-compose.yml: valid for old and new engines, and as closed as it says it is."""

import json
import os
import re
import shutil
import subprocess
from pathlib import Path

import click
import pytest
import yaml
from jsonschema.validators import validator_for

from console.cli import leadwire
from tests.deploy import composition
from tests.deploy.composition import COMPOSE_FILE, EXAMPLES, OPERATOR_FILE, ROOT, MissingVariableError
from tests.deploy.dockerfile import image_environment, steps
from worker.settings import PREFIX, VARIABLES

OURS = ("check", "migrate", "ingress", "worker", "flower")
ONE_SHOT = ("check", "migrate")
STAYING = ("ingress", "worker", "flower", "redis", "postgres")
CREDENTIALS = {f"{PREFIX}MINDHUNTERS_TOKEN", f"{PREFIX}VAMBE_API_KEY"}
IN_CI = os.environ.get("CI") == "true"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Give a folder as the first steps of the documentation leave it."""
    return composition.with_examples(tmp_path_factory.mktemp("compose"))


@pytest.fixture(scope="module")
def services(folder):
    """Give the services with the examples' values put in."""
    return composition.services(composition.variables_of(folder / ".env"), folder)


def seconds(text):
    """Return a span such as `45s` or `1m`."""
    return int(text[:-1]) * {"s": 1, "m": 60}[text[-1]]


@pytest.mark.parametrize("file", [COMPOSE_FILE, OPERATOR_FILE], ids=lambda file: file.name)
def test_the_file_keeps_the_compose_specification(file):
    """The files are valid by the published schema of the Compose Specification."""
    schema = json.loads((Path(__file__).parent / "schemas" / "compose-spec.json").read_text())
    faults = validator_for(schema)(schema).iter_errors(yaml.safe_load(file.read_text()))
    assert [] == [f"{fault.json_path}: {fault.message}" for fault in faults]


def config(folder, *files):
    """Return what `docker-compose config` makes of the files; skip where the program is not to be had."""
    program = shutil.which("docker-compose")
    if program is None:
        if IN_CI:
            pytest.fail("docker-compose is not installed: apt-get install --no-install-recommends docker-compose")
        pytest.skip("docker-compose is not installed")
    names = [part for file in files for part in ("--file", file)]
    done = subprocess.run(
        [program, "--project-directory", folder, *names, "config"],
        env={"PATH": os.environ["PATH"], "HOME": str(folder)},
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )
    assert 0 == done.returncode, done.stderr
    return yaml.safe_load(done.stdout)


def test_docker_compose_reads_it_as_these_tests_do(folder, services):
    """Docker Compose accepts the file, and finds the commands, environments and health checks the other tests judge."""
    found = config(folder, COMPOSE_FILE)["services"]
    assert set(services) == set(found)
    for name, service in services.items():
        theirs = found[name]
        assert service["environment"] == theirs.get("environment", {}), name
        assert service["command"] == theirs["command"], name
        assert service.get("healthcheck", {}).get("test") == theirs.get("healthcheck", {}).get("test"), name


def test_the_operators_file_publishes_on_loopback_only(folder):
    """With the operator's file laid over, Flower and the operator port are published on 127.0.0.1, and nothing else is."""
    found = config(folder, COMPOSE_FILE, OPERATOR_FILE)["services"]
    published = {name: sorted(service["ports"]) for name, service in found.items() if service.get("ports")}
    assert {
        "ingress": ["127.0.0.1:8080:8080/tcp", "127.0.0.1:8081:8081/tcp"],
        "flower": ["127.0.0.1:5555:5555/tcp"],
    } == published
    assert {"back", "operator"} == set(found["flower"]["networks"])


def test_what_must_be_set_is_asked_for(folder):
    """Without a .env every secret is missed by name, with what to do; none has a value that would be used silently."""
    given = composition.variables_of(folder / ".env")
    asked = set(re.findall(r"\$\{(\w+):\?([^}]*)\}", COMPOSE_FILE.read_text()))
    assert {name for name, _ in asked} == set(given) - {f"{PREFIX}PUBLIC_URL"}
    for name, words in asked:
        assert "deploy/compose/example.env" in words
        with pytest.raises(MissingVariableError, match=name):
            composition.services({**given, name: ""}, folder)


def test_the_examples_hold_nothing_real():
    """Every secret of the examples says of itself that it is made up."""
    for file in EXAMPLES.values():
        assert "made up" in file.read_text()
        for name, value in composition.variables_of(file).items():
            if re.search(r"TOKEN|KEY|PASSWORD|SECRET", name):
                assert re.search(r"example.*not.a.real.one", value.replace("0", " ")), name


def test_the_examples_are_not_committed_by_accident():
    """The files the examples are copied to are kept out of version control."""
    ignored = (ROOT / ".gitignore").read_text().split()
    assert {f"/{name}" for name in EXAMPLES} <= set(ignored)


def test_only_the_public_port_is_published(services):
    """No service but the ingress publishes a port, and that one does so on loopback unless told otherwise."""
    assert {"ingress": ["127.0.0.1:8080:8080"]} == {
        name: one["ports"] for name, one in services.items() if "ports" in one
    }


def test_networks_let_nobody_go_further_than_needed(services):
    """Database and broker stand on a network without a way out; only workers reach the providers, only the ingress the front."""
    networks = yaml.safe_load(COMPOSE_FILE.read_text())["networks"]
    assert {"front": {}, "back": {"internal": True}, "providers": {}} == networks
    joined = {name: set(one.get("networks", ())) for name, one in services.items()}
    assert {
        "check": set(),
        "migrate": {"back"},
        "ingress": {"front", "back"},
        "worker": {"back", "providers"},
        "flower": {"back"},
        "redis": {"back"},
        "postgres": {"back"},
    } == joined
    assert "none" == services["check"]["network_mode"]


def test_each_role_gets_its_own_secrets_only(services):
    """Ingress and Flower have no provider credential, workers no webhook secret, Flower knows no ledger."""
    environments = {name: set(one["environment"]) for name, one in services.items()}
    assert {"worker"} == {name for name, there in environments.items() if there & CREDENTIALS}
    assert {"check", "ingress"} == {name for name, there in environments.items() if "CRM_SECRET" in there}
    assert {"check", "worker"} == {name for name, there in environments.items() if "SALES_AGENT" in there}
    ledger = f"{PREFIX}DATABASE_URL"
    assert {"migrate", "ingress", "worker"} == {name for name, there in environments.items() if ledger in there}
    assert {"ingress", "worker", "flower"} == {
        name for name, there in environments.items() if f"{PREFIX}BROKER_URL" in there
    }
    assert {"ingress", "flower"} == {name for name, there in environments.items() if f"{PREFIX}OPERATOR_TOKEN" in there}


def test_no_secret_stands_in_the_file():
    """Every password, token and key of the file comes from a variable."""
    written = yaml.safe_load(COMPOSE_FILE.read_text())["services"]
    for name, service in written.items():
        for key, value in service.get("environment", {}).items():
            if re.search(r"TOKEN|KEY|PASSWORD|AUTH$|DATABASE_URL|BROKER_URL", key):
                assert re.search(r"\$\{\w+:\?", value), (name, key)


def test_every_container_is_locked_down(services):
    """No root, no capabilities, no new privileges, a read-only file system, bounds for memory, processes and logs."""
    for name, service in services.items():
        user, group = service["user"].split(":")
        assert int(user) > 0, name
        assert int(group) > 0, name
        assert service["read_only"] is True, name
        assert ["ALL"] == service["cap_drop"], name
        assert ["no-new-privileges:true"] == service["security_opt"], name
        assert not {"privileged", "cap_add", "devices", "pid", "ipc"} & set(service), name
        assert re.fullmatch(r"\d+[mg]", service["mem_limit"]), name
        assert service["pids_limit"] > 0, name
        assert {"max-size", "max-file"} == set(service["logging"]["options"]), name
        assert not [volume for volume in service.get("volumes", ()) if "docker.sock" in volume], name


def test_the_user_is_that_of_the_image(services):
    """Our services run as the user the image is made for, so that its folders are theirs."""
    (user,) = [step.text for step in steps() if step.name == "USER"]
    assert {user} == {services[name]["user"] for name in OURS}


def test_who_stays_is_watched_and_who_ends_is_not_restarted(services):
    """Long-running services have a health check and come back; the two that run once do neither."""
    assert set(OURS) | set(STAYING) == set(services)
    for name in STAYING:
        assert "CMD" == services[name]["healthcheck"]["test"][0], name
        assert "unless-stopped" == services[name]["restart"], name
    for name in ONE_SHOT:
        assert "no" == services[name]["restart"]
        assert "healthcheck" not in services[name]


def test_things_start_in_order(services):
    """Rules are checked, then tables made, then work begins; and nothing begins before its server answers."""
    waits = {
        name: {on: how["condition"] for on, how in one.get("depends_on", {}).items()} for name, one in services.items()
    }
    done, healthy = "service_completed_successfully", "service_healthy"
    ready = {"migrate": done, "postgres": healthy, "redis": healthy}
    assert {
        "check": {},
        "migrate": {"check": done, "postgres": healthy},
        "ingress": ready,
        "worker": ready,
        "flower": {"redis": healthy},
        "redis": {},
        "postgres": {},
    } == waits


def test_there_is_time_to_stop(services):
    """Ingress, worker and Flower get 30 seconds or more to end; a worker more than a running call takes."""
    grace = {name: seconds(services[name]["stop_grace_period"]) for name in ("ingress", "worker", "flower")}
    assert all(one >= 30 for one in grace.values())
    assert grace["worker"] > 30 + 5


def test_workers_can_be_many(services):
    """The worker has a number of replicas and nothing that ties it to one: no name, no port, no volume it writes."""
    worker = services["worker"]
    assert worker["deploy"]["replicas"] >= 2
    assert not {"container_name", "ports", "hostname"} & set(worker)
    assert ["./rules.d:/etc/leadwire/rules:ro"] == worker["volumes"]


def test_rules_are_read_only_and_found(services):
    """Whoever needs the rules gets the folder read-only, where LEADWIRE_RULES says."""
    for name in ("check", "ingress", "worker"):
        assert ["./rules.d:/etc/leadwire/rules:ro"] == services[name]["volumes"]
        assert "/etc/leadwire/rules" == services[name]["environment"][f"{PREFIX}RULES"]


def test_the_broker_keeps_nothing_and_forgets_nothing(services):
    """Redis saves nothing to disk, has a bound for its memory, below that of its container, and refuses instead of evicting."""
    command = services["redis"]["command"]
    options = dict(zip(command[1::2], command[2::2], strict=True))
    assert ("", "no", "noeviction") == (options["--save"], options["--appendonly"], options["--maxmemory-policy"])
    assert int(options["--maxmemory"].removesuffix("mb")) < int(services["redis"]["mem_limit"].removesuffix("m"))
    assert options["--requirepass"]
    assert not [one for one in services["redis"].get("volumes", ()) if one]


def test_what_must_last_is_on_volumes(services):
    """The database and Flower's memory are on named volumes, which are declared."""
    declared = set(yaml.safe_load(COMPOSE_FILE.read_text())["volumes"])
    assert {"postgres", "flower"} == declared
    assert ["postgres:/var/lib/postgresql/data"] == services["postgres"]["volumes"]
    assert ["flower:/var/lib/leadwire"] == services["flower"]["volumes"]
    assert "scram-sha-256" in services["postgres"]["environment"]["POSTGRES_INITDB_ARGS"]


def test_images_are_pinned(services):
    """Servers come in an exact version, never `latest`."""
    for name in ("redis", "postgres"):
        assert re.fullmatch(r"[\w/]+:\d+\.\d+(\.\d+)?(-\w+)?", services[name]["image"]), name


def test_every_setting_and_command_exists(services):
    """Every LEADWIRE_ variable is one the program reads, and every command line is one it takes."""
    known = {PREFIX + one.name for one in VARIABLES}
    assert {name for name in image_environment() if name.startswith(PREFIX)} <= known
    for name in OURS:
        service = services[name]
        assert {key for key in service["environment"] if key.startswith(PREFIX)} <= known, name
        lines = [service["command"]]
        if "healthcheck" in service:
            _, program, *line = service["healthcheck"]["test"]
            assert "leadwire" == program
            lines.append(line)
        for line in lines:
            takes(line)


def takes(line):
    """Fail unless `leadwire` takes this command line."""
    name, *rest = line
    with click.Context(leadwire, **leadwire.context_settings) as context:
        command = leadwire.get_command(context, name)
        assert command is not None, line
        command.make_context(name, list(rest), parent=context)


def test_the_worker_tells_where_its_health_check_looks(services):
    """The file the worker keeps is the file its health check reads, on a file system that can be written."""
    worker = services["worker"]
    path = worker["command"][worker["command"].index("--health-file") + 1]
    assert path == worker["healthcheck"]["test"][-1]
    assert any(path.startswith(one.split(":")[0] + "/") for one in worker["tmpfs"])
