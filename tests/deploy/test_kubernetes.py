"""The Kubernetes manifests: right by their schemas, whole among each other, and as closed as the restricted profile asks."""

import json
import os
import shutil
import subprocess

import click
import pytest
import yaml
from jsonschema import Draft202012Validator

from console.cli import leadwire
from tests.deploy import manifests
from tests.deploy.dockerfile import steps
from tests.deploy.manifests import KUSTOMIZATIONS, ROOT, SECRETS_FILE, containers, everything, generated, pods
from worker.settings import PREFIX, VARIABLES

SCHEMAS = manifests.schemas()
CREDENTIALS = {f"{PREFIX}MINDHUNTERS_TOKEN", f"{PREFIX}VAMBE_API_KEY"}


def one(kind, name):
    """Return the manifest of this kind and name."""
    (found,) = [it for it in everything() if (it["kind"], it["metadata"]["name"]) == (kind, name)]
    return found


def role(name):
    """Return the one container of a Deployment."""
    (container,) = one("Deployment", name)["spec"]["template"]["spec"]["containers"]
    return container


def secrets():
    """Return the example's Secrets: name to what they hold."""
    return {it["metadata"]["name"]: it["stringData"] for it in manifests.of_file(SECRETS_FILE)}


def environment(container):
    """Return what a container finds in its environment, given the example's Secrets and the generated ConfigMaps."""
    found = {}
    for source in container.get("envFrom", ()):
        if "configMapRef" in source:
            found |= generated()[source["configMapRef"]["name"]]
        else:
            found |= secrets()[source["secretRef"]["name"]]
    for variable in container.get("env", ()):
        reference = variable.get("valueFrom", {}).get("secretKeyRef")
        found[variable["name"]] = secrets()[reference["name"]][reference["key"]] if reference else variable["value"]
    return found


@pytest.mark.parametrize("file", manifests.files(), ids=lambda file: file.relative_to(ROOT).as_posix())
def test_manifests_are_right_by_their_schemas(file):
    """Every manifest keeps the schema of its kind, and says nothing the schema does not know."""
    for manifest in manifests.of_file(file):
        faults = Draft202012Validator(SCHEMAS[manifest["kind"]]).iter_errors(manifest)
        assert [] == [f"{manifest['kind']} {fault.json_path}: {fault.message[:200]}" for fault in faults]


@pytest.mark.parametrize(
    ("kind", "wrong"),
    [
        (
            "Deployment",
            {"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "x"}, "spec": {"replica": 2}},
        ),
        (
            "ScaledObject",
            {"apiVersion": "keda.sh/v1alpha1", "kind": "ScaledObject", "metadata": {}, "spec": {"triggers": []}},
        ),
        (
            "ServiceMonitor",
            {"apiVersion": "monitoring.coreos.com/v1", "kind": "ServiceMonitor", "metadata": {}, "spec": {}},
        ),
    ],
)
def test_the_schemas_refuse(kind, wrong):
    """A misspelt or missing key is found: the check above is one."""
    assert list(Draft202012Validator(SCHEMAS[kind]).iter_errors(wrong))


@pytest.mark.parametrize("file", KUSTOMIZATIONS, ids=lambda file: file.relative_to(ROOT).as_posix())
def test_kustomizations_name_what_is_there(file):
    """What a kustomization lists exists, and no manifest beside it is forgotten, but the Secrets with made-up values."""
    document = yaml.safe_load(file.read_text())
    listed = [*document.get("resources", ()), *document.get("components", ())]
    listed += [rules for made in document.get("configMapGenerator", ()) for rules in made.get("files", ())]
    assert [] == [name for name in listed if not (file.parent / name).exists()]
    beside = {path.name for path in file.parent.glob("*.yaml")} - {file.name, SECRETS_FILE.name}
    assert set() == beside - set(listed)


@pytest.mark.parametrize("folder", ["example", "base"])
def test_kustomize_puts_it_together(folder, tmp_path):
    """`kubectl kustomize` renders base and example, every manifest right by its schema; the scaler owns the replicas."""
    program = shutil.which("kubectl")
    if program is None:
        pytest.skip("kubectl, which holds kustomize, is not installed")
    done = subprocess.run(
        [program, "kustomize", ROOT / folder],
        env={"PATH": os.environ["PATH"], "HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert 0 == done.returncode, done.stderr
    rendered = [it for it in yaml.safe_load_all(done.stdout) if it]
    for manifest in rendered:
        faults = Draft202012Validator(SCHEMAS[manifest["kind"]]).iter_errors(manifest)
        assert [] == [f"{manifest['kind']} {fault.json_path}: {fault.message[:200]}" for fault in faults]
    (worker,) = [it for it in rendered if (it["kind"], it["metadata"]["name"]) == ("Deployment", "leadwire-worker")]
    assert ("replicas" in worker["spec"]) is (folder == "base")
    maps = {it["metadata"]["name"] for it in rendered if it["kind"] == "ConfigMap"}
    asked = {
        volume["configMap"]["name"] for volume in worker["spec"]["template"]["spec"]["volumes"] if "configMap" in volume
    }
    assert (asked <= maps) is (folder == "example")


def test_every_pod_keeps_the_restricted_profile():
    """Every container runs without root, privileges, capabilities, a writable root or a token of the cluster."""
    (image_user,) = [step.text for step in steps() if step.name == "USER"]
    for name, pod in pods():
        spec = pod["spec"]
        general = spec["securityContext"]
        assert spec["automountServiceAccountToken"] is False, name
        assert general["runAsNonRoot"] is True, name
        assert image_user == f"{general['runAsUser']}:{general['runAsGroup']}"
        assert {"type": "RuntimeDefault"} == general["seccompProfile"]
        assert not {"hostNetwork", "hostPID", "hostIPC", "hostPath"} & set(json.dumps(spec).replace('"', " ").split())
        for container in containers(pod):
            own = container["securityContext"]
            assert (False, True, {"drop": ["ALL"]}) == (
                own["allowPrivilegeEscalation"],
                own["readOnlyRootFilesystem"],
                own["capabilities"],
            ), container["name"]


def test_no_service_of_the_cluster_becomes_a_setting():
    """Pods do not get variables made from Services: leadwire-flower would set LEADWIRE_FLOWER_PORT to `tcp://...`."""
    assert {False} == {pod["spec"]["enableServiceLinks"] for _, pod in pods()}


def test_resources_are_bounded():
    """Every container says what it needs and how much memory it may take, and every scratch volume has a size."""
    for _, pod in pods():
        for container in containers(pod):
            assert {"cpu", "memory"} == set(container["resources"]["requests"]), container["name"]
            assert "memory" in container["resources"]["limits"], container["name"]
        for volume in pod["spec"]["volumes"]:
            assert "emptyDir" not in volume or volume["emptyDir"]["sizeLimit"]


def test_every_volume_is_declared_and_home_can_be_written():
    """What is mounted is declared, and LEADWIRE_HOME lies on a volume that can be written."""
    for _, pod in pods():
        declared = {volume["name"] for volume in pod["spec"]["volumes"]}
        for container in containers(pod):
            mounts = container["volumeMounts"]
            assert {mount["name"] for mount in mounts} <= declared
            home = environment(container)[f"{PREFIX}HOME"]
            assert [it for it in mounts if f"{home}/".startswith(f"{it['mountPath']}/") and not it.get("readOnly")]


def test_every_setting_command_and_reference_exists():
    """Command lines are ones the program takes, LEADWIRE_ variables ones it reads, references lead to the example's Secrets."""
    known = {PREFIX + variable.name for variable in VARIABLES}
    for _, pod in pods():
        for container in containers(pod):
            assert {key for key in environment(container) if key.startswith(PREFIX)} <= known
            lines = [container["args"]]
            for probe in ("startupProbe", "livenessProbe", "readinessProbe"):
                if command := container.get(probe, {}).get("exec", {}).get("command"):
                    assert "leadwire" == command[0]
                    lines.append(command[1:])
            for name, *rest in lines:
                with click.Context(leadwire, **leadwire.context_settings) as context:
                    found = leadwire.get_command(context, name)
                    assert found is not None
                    found.make_context(name, rest, parent=context)


def test_each_role_gets_its_own_secrets_only():
    """Provider credentials reach the workers alone, webhook secrets the ingress alone, and Flower knows no ledger."""
    ingress, worker, flower = (
        set(environment(role(name))) for name in ("leadwire-ingress", "leadwire-worker", "leadwire-flower")
    )
    assert worker >= CREDENTIALS
    assert not (ingress | flower) & CREDENTIALS
    assert ("CRM_SECRET" in ingress, "CRM_SECRET" in worker | flower) == (True, False)
    assert ("SALES_AGENT" in worker, "SALES_AGENT" in ingress | flower) == (True, False)
    assert f"{PREFIX}DATABASE_URL" not in flower
    assert f"{PREFIX}OPERATOR_TOKEN" in ingress & flower
    assert not [it for it in everything() if it["kind"] == "Secret" and it not in manifests.of_file(SECRETS_FILE)]


def test_secrets_of_the_example_are_made_up():
    """Every secret of the example says of itself that it is none."""
    for name, held in secrets().items():
        if name != "leadwire-rule-variables":
            assert [] == [key for key, value in held.items() if "example" not in value], name


def test_roles_are_probed_for_what_they_are():
    """Ingress and Flower are asked over HTTP, workers by their file; no liveness probe asks for ledger or broker."""
    ingress, worker, flower = (role(name) for name in ("leadwire-ingress", "leadwire-worker", "leadwire-flower"))
    assert ("/healthz", "/readyz") == tuple(
        ingress[it]["httpGet"]["path"] for it in ("livenessProbe", "readinessProbe")
    )
    assert {"/healthcheck"} == {flower[it]["httpGet"]["path"] for it in ("livenessProbe", "readinessProbe")}
    file = worker["args"][worker["args"].index("--health-file") + 1]
    for probe, lenient in (("startupProbe", True), ("livenessProbe", True), ("readinessProbe", False)):
        command = worker[probe]["exec"]["command"]
        assert (file, lenient) == (command[-1], "--alive" in command)
        assert worker[probe]["timeoutSeconds"] >= 5


def test_ports_and_selectors_meet():
    """Every Service and budget selects the pods of one Deployment, and every port it names is one of theirs."""
    labels = {name: pod["metadata"]["labels"] for name, pod in pods()}
    for manifest in everything():
        if manifest["kind"] not in {"Service", "PodDisruptionBudget"}:
            continue
        spec = manifest["spec"]
        selector = spec["selector"] if manifest["kind"] == "Service" else spec["selector"]["matchLabels"]
        (selected,) = [name for name, there in labels.items() if selector.items() <= there.items()]
        ports = {port["name"] for port in role(selected).get("ports", ())}
        assert {port["targetPort"] for port in spec.get("ports", ())} <= ports
    for name, pod in pods():
        selector = one("Deployment", name)["spec"]["selector"]["matchLabels"] if name != "leadwire-migrate" else {}
        assert selector.items() <= pod["metadata"]["labels"].items()
    (path,) = one("Ingress", "leadwire")["spec"]["rules"][0]["http"]["paths"]
    service = one("Service", path["backend"]["service"]["name"])
    assert path["backend"]["service"]["port"]["name"] in {port["name"] for port in service["spec"]["ports"]}
    assert "/webhooks/" == path["path"]


def test_nothing_is_reached_from_outside_but_webhooks():
    """No Service has an address outside the cluster, and the one Ingress leads to the webhooks alone."""
    assert {"ClusterIP"} == {it["spec"]["type"] for it in everything() if it["kind"] == "Service"}
    (ingress,) = [it for it in everything() if it["kind"] == "Ingress"]
    assert ingress["spec"]["tls"]


def test_network_policies_deny_what_they_do_not_name():
    """One policy closes every pod in both directions; the others open what each role needs."""
    policies = {it["metadata"]["name"]: it["spec"] for it in everything() if it["kind"] == "NetworkPolicy"}
    closed = policies.pop("leadwire-nothing-else")
    assert {"app.kubernetes.io/name": "leadwire"} == closed["podSelector"]["matchLabels"]
    assert ["Ingress", "Egress"] == closed["policyTypes"]
    assert "ingress" not in closed
    reach = {
        name: sorted({port["port"] for rule in spec.get("egress", ()) for port in rule["ports"]})
        for name, spec in policies.items()
        if "egress" in spec
    }
    assert {"leadwire-ledger": [5432], "leadwire-broker": [5671, 5672, 6379], "leadwire-providers": [443]} == reach
    assert "worker" == policies["leadwire-providers"]["podSelector"]["matchLabels"]["app.kubernetes.io/component"]


def test_there_is_time_to_stop_and_to_start_over():
    """Workers get more than a call's 30 s to end, ingresses more than their pause; a voluntary eviction takes one at a time."""
    grace = {name: pod["spec"].get("terminationGracePeriodSeconds") for name, pod in pods()}
    assert grace["leadwire-worker"] > 30 + 5
    pause = role("leadwire-ingress")["lifecycle"]["preStop"]["exec"]["command"]
    assert "sleep" == pause[0]
    assert grace["leadwire-ingress"] >= 30 + int(pause[1])
    assert {1} == {it["spec"]["maxUnavailable"] for it in everything() if it["kind"] == "PodDisruptionBudget"}
    assert one("Deployment", "leadwire-ingress")["spec"]["replicas"] >= 2
    assert "Recreate" == one("Deployment", "leadwire-flower")["spec"]["strategy"]["type"]


@pytest.mark.parametrize("folder", ["keda", "autoscaling"])
def test_scalers_own_the_number_of_workers(folder):
    """A scaler leads to the worker's Deployment, never to none, and its component takes the fixed number away."""
    document = yaml.safe_load((ROOT / "components" / folder / "kustomization.yaml").read_text())
    (patch,) = document["patches"]
    assert [{"op": "remove", "path": "/spec/replicas"}] == yaml.safe_load(patch["patch"])
    (scaler,) = [
        it
        for it in manifests.of_file(ROOT / "components" / folder / "scaling.yaml")
        if it["kind"] in {"ScaledObject", "HorizontalPodAutoscaler"}
    ]
    assert "leadwire-worker" == scaler["spec"]["scaleTargetRef"]["name"] == patch["target"]["name"]
    assert scaler["spec"].get("minReplicaCount", scaler["spec"].get("minReplicas")) >= 1


def test_the_trigger_finds_its_connection():
    """The scaler reads its own Secret, under a user of its own, and no other."""
    (trigger,) = one("ScaledObject", "leadwire-worker")["spec"]["triggers"]
    authentication = one("TriggerAuthentication", trigger["authenticationRef"]["name"])
    (reference,) = authentication["spec"]["secretTargetRef"]
    assert "connection" == reference["parameter"]
    url = secrets()[reference["name"]][reference["key"]]
    assert url.startswith("postgresql://leadwire_scaler:")
    assert url != secrets()["leadwire-ledger"]["url"]


def test_metrics_are_scraped_behind_the_token():
    """The ServiceMonitor leads to the operator port's Service and brings the operator token."""
    spec = one("ServiceMonitor", "leadwire")["spec"]
    (endpoint,) = spec["endpoints"]
    service = one("Service", "leadwire-operator")
    selected = [
        it["metadata"]["name"]
        for it in everything()
        if it["kind"] == "Service" and spec["selector"]["matchLabels"].items() <= it["metadata"]["labels"].items()
    ]
    assert ["leadwire-operator"] == selected
    assert endpoint["port"] in {port["name"] for port in service["spec"]["ports"]}
    credentials = endpoint["authorization"]["credentials"]
    assert credentials["key"] in secrets()[credentials["name"]]
