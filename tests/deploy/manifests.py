"""The Kubernetes manifests as an overlay puts them together, as far as these tests need it: files, and generated ConfigMaps."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parents[2] / "deploy" / "kubernetes"
SCHEMAS = Path(__file__).parent / "schemas"
KUSTOMIZATIONS = sorted(ROOT.rglob("kustomization.yaml"))
SECRETS_FILE = ROOT / "example" / "secrets.example.yaml"

Manifest = dict[str, Any]


def of_file(file: Path) -> list[Manifest]:
    """Return the documents of one file."""
    return [document for document in yaml.safe_load_all(file.read_text()) if document]


def files() -> list[Path]:
    """Return every manifest file: all but kustomizations and rules."""
    return [
        file for file in sorted(ROOT.rglob("*.yaml")) if file.name != "kustomization.yaml" and "rules" not in file.parts
    ]


def everything() -> list[Manifest]:
    """Return all manifests of all files."""
    return [manifest for file in files() for manifest in of_file(file)]


def generated() -> dict[str, dict[str, str]]:
    """Return the ConfigMaps that kustomize makes, by name: the base's with the example's laid over."""
    maps: dict[str, dict[str, str]] = {}
    for folder in ("base", "example"):
        for one in yaml.safe_load((ROOT / folder / "kustomization.yaml").read_text()).get("configMapGenerator", ()):
            data = maps.setdefault(one["name"], {})
            data |= dict(literal.split("=", 1) for literal in one.get("literals", ()))
            data |= {Path(file).name: (ROOT / folder / file).read_text() for file in one.get("files", ())}
    return maps


def pods() -> Iterator[tuple[str, Manifest]]:
    """Give the pod template of every workload, by the workload's name."""
    for manifest in everything():
        if manifest["kind"] in {"Deployment", "Job"}:
            yield manifest["metadata"]["name"], manifest["spec"]["template"]


def containers(pod: Manifest) -> list[Manifest]:
    """Return all containers of a pod template, those that run first included."""
    return [*pod["spec"].get("initContainers", ()), *pod["spec"]["containers"]]


def schemas() -> dict[str, Manifest]:
    """Return a JSON Schema for every kind that is known."""
    found: dict[str, Manifest] = {}
    for file in SCHEMAS.glob("*.json"):
        document = json.loads(file.read_text())
        for kind, name in document.get("kinds", {}).items():
            found[kind] = {"$ref": f"#/$defs/{name}", "$defs": document["$defs"]}
    return found
