"""docs/deployment.md says only what is so: the files it copies, the commands it names, the numbers it repeats."""

import re

import pytest
import yaml

from console.cli import COMMANDS
from tests.deploy import manifests
from tests.deploy.composition import COMPOSE_FILE, EXAMPLE_RULES, EXAMPLES, ROOT
from worker.background import DEAF_SECONDS, REPORT_SECONDS
from worker.settings import PREFIX, VARIABLES

PAGE = (ROOT / "docs" / "deployment.md").read_text()


def test_the_copies_are_those_the_tests_make():
    """The first steps copy each example to the name the compose file reads, as the tests do."""
    copied = dict(re.findall(r"^\$ cp (?:-r )?(\S+) (\S+)", PAGE, re.MULTILINE))
    expected = {file.relative_to(ROOT).as_posix(): name for name, file in EXAMPLES.items()}
    expected[EXAMPLE_RULES.relative_to(ROOT).as_posix()] = "rules.d"
    assert expected.items() <= copied.items()
    assert [] == [place for place in copied if not (ROOT / place).exists()]


def test_every_path_named_exists():
    """Every path of the checkout that the page names is there."""
    named = set(re.findall(r"\bdeploy/[\w./-]+\w", PAGE)) | {
        f"deploy/kubernetes/{it}" for it in re.findall(r"components/[\w./]+\w", PAGE)
    }
    assert [] == sorted(place for place in named if "/mine" not in place and not (ROOT / place).exists())


def test_every_command_and_setting_named_exists():
    """Every `leadwire` command and every setting of the page is one of the program's, every service one of the file's."""
    assert set(re.findall(r"`leadwire ([a-z]+)", PAGE)) <= set(COMMANDS)
    known = {PREFIX + variable.name for variable in VARIABLES} | set(re.findall(r"\$\{(\w+)", COMPOSE_FILE.read_text()))
    assert set(re.findall(rf"\b{PREFIX}\w+", PAGE)) <= known
    services = set(yaml.safe_load(COMPOSE_FILE.read_text())["services"])
    assert set(re.findall(r"docker compose (?:exec|logs|restart|run --rm(?: --build)?) (\w+)", PAGE)) <= services


@pytest.mark.parametrize(
    ("words", "number"),
    [
        (r"taken none for (\d+) s", DEAF_SECONDS),
        (r"ask for (\d+) MiB", 192),
        (r"allow (\d+) MiB", 512),
    ],
)
def test_numbers_are_those_of_the_code(words, number):
    """Numbers the page repeats are those in force."""
    found = re.search(words, PAGE.replace("\n", " "))
    assert found
    assert number == int(found[1])
    assert "every five seconds" in PAGE.replace("\n", " ")
    assert 5 == REPORT_SECONDS


def test_resources_are_what_the_page_says():
    """The roles that stay have the memory the page names."""
    memory = {
        (it["resources"]["requests"]["memory"], it["resources"]["limits"]["memory"])
        for name, pod in manifests.pods()
        if name in {"leadwire-ingress", "leadwire-worker"}
        for it in manifests.containers(pod)
    }
    assert {("192Mi", "512Mi")} == memory
