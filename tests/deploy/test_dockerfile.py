"""The image: what goes in, who runs it, and that the program it holds works far from its source tree."""

import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from tests.deploy.dockerfile import ROOT, Step, admitted, steps

PACKAGES = ("rules", "worker", "ingress", "console")
LAST = max(step.stage for step in steps())


def of(name: str, stage: int | None = None) -> list[Step]:
    """Return the instructions of one name, of one stage or of all."""
    return [step for step in steps() if step.name == name and stage in {None, step.stage}]


def tracked() -> list[str]:
    """Return the files of the checkout that are no leftovers."""
    skipped = {"__pycache__", ".venv", ".git", "build", "node_modules"}
    return [
        path.relative_to(ROOT).as_posix()
        for folder in (*PACKAGES, "tests", "deploy", "docs", ".")
        for path in ((ROOT / folder).rglob("*") if folder != "." else ROOT.glob("*"))
        if path.is_file() and not skipped & set(path.parts) and not path.name.endswith(".pyc")
    ]


def test_the_base_is_pinned_and_the_same_in_both_stages():
    """Both stages stand on one slim Python image of an exact version and an exact Debian, of a version the project allows."""
    (argument,) = [step for step in of("ARG") if step.stage < 0]
    found = re.fullmatch(r"PYTHON_IMAGE=python:3\.(\d+)\.\d+-slim-\w+", argument.text)
    assert found
    assert int(found[1]) >= 11
    assert ["${PYTHON_IMAGE} AS build", "${PYTHON_IMAGE}"] == [step.text for step in of("FROM")]


def test_every_path_that_is_copied_is_there():
    """What COPY names exists and .dockerignore lets it in; between stages only the finished environment goes."""
    for step in of("COPY"):
        *places, _ = step.words
        if "from" in step.flags:
            assert ("build", ["/opt/leadwire"]) == (step.flags["from"], places)
            continue
        for place in places:
            assert (ROOT / place).exists(), place
            assert admitted(place), place


def test_nothing_else_goes_into_the_build():
    """Of the checkout only the packages and what the build reads is let in: no test, no example, no secret, no history."""
    allowed = {"pyproject.toml", "README.md", "LICENSE"}
    let_in = [path for path in tracked() if admitted(path)]
    assert [] == [path for path in let_in if path not in allowed and path.split("/")[0] not in PACKAGES]
    assert {path for path in tracked() if path.split("/")[0] in PACKAGES} <= set(let_in)
    refused = (".env", "sources.env", "rules.env", "rules.d/mine.yaml", ".git/config", ".leadwire/ledger.sqlite3")
    refused += (
        "worker/.env",
        "ingress/__pycache__/x.pyc",
        "worker/ledger.sqlite3-wal",
        "Dockerfile",
        ".venv/bin/python",
    )
    assert [] == [path for path in refused if admitted(path)]


def test_the_last_stage_builds_nothing_and_runs_without_root():
    """The final stage installs nothing, drops pip, and ends as a user with a number, not root, with `leadwire` as program."""
    runs = " ".join(step.text for step in of("RUN", LAST))
    assert not re.search(r"\b(apt-get|apk|pip (install|download|wheel)|gcc|curl|wget)\b", runs)
    assert "pip uninstall --yes" in runs
    final = [step for step in steps() if step.stage == LAST]
    (user,) = of("USER", LAST)
    assert re.fullmatch(r"[1-9]\d{3,}:[1-9]\d{3,}", user.text)
    assert not [step for step in final[final.index(user) :] if step.name in {"RUN", "COPY", "ADD"}]
    assert ['["leadwire"]'] == [step.text for step in of("ENTRYPOINT", LAST)]
    assert [] == of("HEALTHCHECK", LAST)
    assert [] == of("ADD")


def test_no_secret_is_set_in_the_image():
    """No instruction sets anything that is called a token, key, password or secret."""
    set_here = [step.text for step in steps() if step.name in {"ARG", "ENV"}]
    assert [] == [text for text in set_here if re.search(r"token|key|password|secret", text, re.IGNORECASE)]


def test_labels_say_what_the_image_is():
    """The image carries the labels by which registries and people tell it."""
    (labels,) = of("LABEL", LAST)
    assert {"title", "description", "licenses", "version", "revision"} == set(
        re.findall(r"org\.opencontainers\.image\.(\w+)=", labels.text)
    )


def test_what_is_fetched_is_hashed_and_locked():
    """Everything from outside comes by the lock's hashes; what is installed then comes from those wheels alone."""
    runs = [step.text for step in of("RUN", 0)]
    fetching = [text for text in runs if "pip download" in text]
    assert 1 == len(fetching)
    assert all(flag in fetching[0] for flag in ("--require-hashes", "--no-deps", "--only-binary=:all:"))
    others = re.findall(r"pip (?:--\S+ )?(?:install|wheel)[^&]*", " ".join(runs))
    assert 2 == len(others)
    assert all("--no-index" in one and "--find-links=/wheels" in one for one in others)


def test_the_lock_holds_what_the_image_installs():
    """Every distribution that is installed here because Leadwire or its extra `postgres` asks for it is in the lock, hashed."""
    lock = (ROOT / "worker" / "requirements.lock").read_text()
    entries = dict(re.findall(r"^([\w.\-]+)==\S+((?:.*\\\n[^\n]*)+)", lock, re.MULTILINE))
    asked = re.findall(r'^ {2}"([\w.\-]+)', _section("dependencies = [") + _section("postgres = ["), re.MULTILINE)
    missing = [name for name in asked if "sha256:" not in entries.get(name.lower(), "")]
    assert [] == missing


def _section(heading: str) -> str:
    text = (ROOT / "pyproject.toml").read_text().split(heading, 1)[1]
    return "\n  " + text.split("]\n", 1)[0].lstrip()


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """Give a folder with the program installed as the Dockerfile does it: copied, made a wheel, installed from the wheel."""
    folder = tmp_path_factory.mktemp("image")
    source = folder / "build"
    source.mkdir()
    for step in of("COPY", 0):
        *places, target = step.words
        for place in places:
            there = source / target if len(places) == 1 and not target.endswith("/") else source / target / place
            there.parent.mkdir(parents=True, exist_ok=True)
            if (ROOT / place).is_dir():
                shutil.copytree(ROOT / place, there, ignore=_left_out, dirs_exist_ok=True)
            else:
                shutil.copyfile(ROOT / place, there)
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet"]
    # The engine builds apart from everything; here, without a network, the locked setuptools of this environment serves.
    wheel = [*pip, "wheel", "--no-deps", "--no-index", "--no-build-isolation", "--wheel-dir", folder / "wheels", "."]
    subprocess.run(wheel, cwd=source, check=True)
    (made,) = (folder / "wheels").glob("leadwire-*.whl")
    subprocess.run([*pip, "install", "--no-deps", "--no-index", "--target", folder / "site", made], check=True)
    return folder / "site"


def _left_out(folder: str, names: list[str]) -> list[str]:
    place = Path(folder).relative_to(ROOT).as_posix()
    return [name for name in names if not admitted(f"{place}/{name}")]


def leadwire(site: Path, folder: Path, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run the installed program from a folder outside the checkout."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("LEADWIRE_")}
    return subprocess.run(
        [sys.executable, "-P", "-c", "import sys; from console.cli import main; main(sys.argv[1:])", *arguments],
        env={**environment, "PYTHONPATH": str(site), "LEADWIRE_HOME": str(folder / "home"), **variables},
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )


def test_the_wheel_holds_every_file_of_the_packages(site):
    """Nothing that stands in the packages is forgotten: presets, samples, examples, migrations; only the lock stays outside."""
    (wheel,) = (site.parent / "wheels").glob("leadwire-*.whl")
    inside = set(zipfile.ZipFile(wheel).namelist())
    wanted = {path for path in tracked() if path.split("/")[0] in PACKAGES}
    assert {"worker/requirements.lock"} == wanted - inside


def test_the_installed_program_works_outside_the_checkout(site, tmp_path):
    """Installed from its wheel, `leadwire` shows its help, makes a ledger and accepts a source that extends a preset."""
    helped = leadwire(site, tmp_path, "--help")
    assert "Commands" in helped.stdout, helped.stderr
    migrated = leadwire(site, tmp_path, "migrate")
    assert (0, "") == (migrated.returncode, migrated.stderr)
    (tmp_path / "rules.yaml").write_text(
        "version: 1\nsources:\n  crm: {extend: generic, secrets: [{env: CRM_SECRET}]}\n"
    )
    checked = leadwire(site, tmp_path, "check", "rules.yaml", CRM_SECRET="fake-secret-for-tests")
    assert 0 == checked.returncode, checked.stdout + checked.stderr
    sent = leadwire(site, tmp_path, "send", "--help")
    assert 0 == sent.returncode


def test_the_program_under_test_is_the_installed_one(site, tmp_path):
    """What the tests above run is the wheel's content and not the checkout's."""
    code = "import console, ingress, worker, rules; print(console.__file__, ingress.__file__, worker.__file__, rules.__file__)"
    said = subprocess.run(
        [sys.executable, "-P", "-c", code],
        env={**os.environ, "PYTHONPATH": str(site)},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert 4 == len(said.split())
    assert all(Path(one).is_relative_to(site) for one in said.split())
