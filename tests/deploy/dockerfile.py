"""The Dockerfile and .dockerignore as an engine reads them, as far as ours go."""

import re
import shlex
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Step:
    """One instruction: its stage (a number, from 0; -1 before the first), its name and the rest of it, on one line."""

    stage: int
    name: str
    text: str

    @property
    def flags(self) -> dict[str, str]:
        """The flags in front, such as `from` of COPY."""
        return dict(re.findall(r"--(\w+)=(\S+)", self.text))

    @property
    def words(self) -> list[str]:
        """The words after the flags."""
        return [word for word in shlex.split(self.text) if not word.startswith("--")]


def steps() -> list[Step]:
    """Return the instructions in order."""
    text = (ROOT / "Dockerfile").read_text()
    text = re.sub(r"^\s*#.*\n", "", text, flags=re.MULTILINE).replace("\\\n", " ")
    found, stage = [], -1
    for line in filter(None, (line.strip() for line in text.splitlines())):
        name, rest = line.split(None, 1)
        stage += name == "FROM"
        found.append(Step(stage, name, re.sub(r"\s+", " ", rest)))
    return found


def image_environment() -> dict[str, str]:
    """Return what the final stage sets with ENV, PATH left out: it is the image's own."""
    last = max(step.stage for step in steps())
    pairs = [shlex.split(step.text) for step in steps() if step.name == "ENV" and step.stage == last]
    return {key: value for line in pairs for key, value in (pair.split("=", 1) for pair in line) if key != "PATH"}


def admitted(path: str) -> bool:
    """Say whether .dockerignore lets a path of the checkout into the build: the last pattern that fits decides."""
    lines = [line.strip() for line in (ROOT / ".dockerignore").read_text().splitlines()]
    verdict = True
    for line in lines:
        if line and not line.startswith("#"):
            pattern, lets_in = line.lstrip("!"), line.startswith("!")
            if any(_fits(one, pattern) for one in _with_parents(path)):
                verdict = lets_in
    return verdict


def _with_parents(path: str) -> list[str]:
    parts = path.split("/")
    return ["/".join(parts[:number]) for number in range(1, len(parts) + 1)]


def _fits(path: str, pattern: str) -> bool:
    if pattern.startswith("**/"):
        return fnmatchcase(path.rsplit("/", 1)[-1], pattern[3:])
    return path.count("/") == pattern.count("/") and fnmatchcase(path, pattern)
