"""The files people deploy: each passes the schema or the checker of the tool that reads it, as far as that is here."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from cluster.deployment import deployment_files

DEPLOY = Path(__file__).parents[2] / "cluster" / "deploy"
REPOSITORY = DEPLOY.parents[1]

_CONTAINER: dict[str, Any] = {
    "type": "object",
    "required": ["name", "image", "resources"],
    "additionalProperties": False,
    "properties": {
        "name": {"type": "string"},
        "image": {"type": "string"},
        "envFrom": {"type": "array", "items": {"required": ["secretRef"]}},
        "ports": {"type": "array", "items": {"required": ["containerPort", "name"]}},
        "resources": {
            "required": ["requests", "limits"],
            "additionalProperties": {"type": "object", "additionalProperties": {"type": "string"}},
        },
        "volumeMounts": {"type": "array", "items": {"required": ["name", "mountPath"]}},
    },
}
_TEMPLATE = {
    "type": "object",
    "required": ["spec"],
    "additionalProperties": False,
    "properties": {
        "spec": {
            "type": "object",
            "required": ["containers"],
            "additionalProperties": False,
            "properties": {
                "containers": {"type": "array", "minItems": 1, "items": _CONTAINER},
                "volumes": {"type": "array", "items": {"required": ["name"]}},
                "tolerations": {"type": "array"},
            },
        }
    },
}
_START = {"type": "object", "additionalProperties": {"type": "string"}}
CLUSTER = {
    "type": "object",
    "required": ["headGroupSpec", "rayVersion"],
    "additionalProperties": False,
    "properties": {
        "rayVersion": {"type": "string"},
        "enableInTreeAutoscaling": {"type": "boolean"},
        "autoscalerOptions": {"type": "object"},
        "authOptions": {"properties": {"mode": {"const": "token"}}, "required": ["mode"]},
        "headGroupSpec": {
            "required": ["rayStartParams", "template"],
            "additionalProperties": False,
            "properties": {"rayStartParams": _START, "template": _TEMPLATE},
        },
        "workerGroupSpecs": {
            "type": "array",
            "items": {
                "required": ["groupName", "maxReplicas", "minReplicas", "rayStartParams", "replicas", "template"],
                "additionalProperties": False,
                "properties": {
                    "groupName": {"type": "string"},
                    **{name: {"type": "integer", "minimum": 0} for name in ("replicas", "minReplicas", "maxReplicas")},
                    "rayStartParams": _START,
                    "template": _TEMPLATE,
                },
            },
        },
    },
}
"""The fields of KubeRay's RayCluster (ray.io/v1) that the files use, with their types; no other is allowed."""
JOB = {
    "type": "object",
    "required": ["entrypoint", "rayClusterSpec"],
    "additionalProperties": False,
    "properties": {
        "entrypoint": {"type": "string"},
        "submissionMode": {"enum": ["K8sJobMode", "HTTPMode", "InteractiveMode"]},
        "shutdownAfterJobFinishes": {"type": "boolean"},
        "ttlSecondsAfterFinished": {"type": "integer"},
        "backoffLimit": {"type": "integer"},
        "rayClusterSpec": CLUSTER,
    },
}


def document(name: str) -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load((DEPLOY / name).read_text())
    return found


@pytest.mark.parametrize(
    ("name", "kind", "schema"), [("raycluster.yaml", "RayCluster", CLUSTER), ("rayjob.yaml", "RayJob", JOB)]
)
def test_kuberay_objects_have_its_fields(name: str, kind: str, schema: dict[str, Any]) -> None:
    made = document(name)
    assert (made["apiVersion"], made["kind"]) == ("ray.io/v1", kind) and made["metadata"]["name"]
    jsonschema.validate(made["spec"], schema)
    cluster = made["spec"].get("rayClusterSpec", made["spec"])
    pinned = re.search(r"^ray==(\S+)$", (REPOSITORY / "constraints.txt").read_text(), re.M)
    assert pinned and cluster["rayVersion"] == pinned[1]
    for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"]):
        pod = group["template"]["spec"]
        volumes = {volume["name"] for volume in pod.get("volumes", ())}
        for container in pod["containers"]:
            assert {mount["name"] for mount in container["volumeMounts"]} <= volumes
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({**made["spec"], "replica": 1}, schema)


@pytest.mark.parametrize("name", ["raycluster.yaml", "rayjob.yaml"])
def test_pods_pass_kubernetes_own_schema(name: str) -> None:
    kubernetes = pytest.importorskip("kubernetes_validate", reason="kubernetes-validate is not installed")
    spec = document(name)["spec"]
    cluster = spec.get("rayClusterSpec", spec)
    for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"]):
        pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "x"}, **group["template"]}
        kubernetes.validate(pod, kubernetes.latest_version(), strict=True)


def test_the_autoscalers_file_passes_rays_own_schema() -> None:
    import ray.autoscaler

    schema = json.loads((Path(ray.autoscaler.__file__).parent / "ray-schema.json").read_text())
    made = document("autoscaler.yaml")
    jsonschema.validate(made, schema)
    assert made["head_node_type"] in made["available_node_types"]
    for commands in (made["head_start_ray_commands"], made["worker_start_ray_commands"]):
        assert "RAY_AUTH_MODE=token" in commands[-1]
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({**made, "max_worker": 1}, schema)


def test_the_slurm_script_parses_and_says_how_it_is_used() -> None:
    done = subprocess.run(["bash", "-n", str(DEPLOY / "slurm.sh")], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    used = subprocess.run(["bash", str(DEPLOY / "slurm.sh")], capture_output=True, text=True, check=False)
    assert used.returncode == 2 and "usage: sbatch slurm.sh STUDY" in used.stderr
    checker = shutil.which("shellcheck")
    if checker is not None:
        subprocess.run([checker, str(DEPLOY / "slurm.sh")], check=True)


SLURM = {
    "scontrol": "printf 'one\\ntwo\\n'",
    "srun": """
while [[ ${1-} == --* ]]; do shift; done
echo "$*" >>"$CALLS"
case "$1" in
  hostname) echo 10.0.0.1 ;;
  ray) exec sleep 30 >/dev/null 2>&1 ;;
  infini-study)  # until the workers, which come up beside it, were called
    for _ in $(seq 300); do grep -q -- --address= "$CALLS" && break; /bin/sleep 0.1; done
    exit 3 ;;
esac
""",
    "sleep": 'if [ "$1" = 15 ]; then exit 0; fi; exec /bin/sleep "$@"',
}


def test_the_slurm_script_starts_head_and_workers_and_ends_with_the_studys_exit_code(tmp_path: Path) -> None:
    """With commands in the place of Slurm's own that note how they are called."""
    for name, body in SLURM.items():
        (tmp_path / name).write_text(f"#!/usr/bin/env bash\n{body}\n")
        (tmp_path / name).chmod(0o755)
    slurm = {"SLURM_JOB_NODELIST": "n[1-2]", "SLURM_JOB_ID": "7", "SLURM_CPUS_PER_TASK": "8", "SLURM_GPUS_ON_NODE": "4"}
    env = {"PATH": f"{tmp_path}:/usr/bin:/bin", "HOME": str(tmp_path), "CALLS": str(tmp_path / "calls"), **slurm}
    script = ["bash", str(DEPLOY / "slurm.sh"), "study.yaml", "--root", "/shared"]
    done = subprocess.run(script, env=env, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 3, done.stderr
    calls = (tmp_path / "calls").read_text().splitlines()
    (head,) = [call for call in calls if "--head" in call]
    (worker,) = [call for call in calls if call.startswith("ray start --address=10.0.0.1:20007")]
    assert "--num-cpus=8 --num-gpus=4" in head and "--num-cpus=8 --num-gpus=4" in worker
    assert "infini-study run study.yaml --address 10.0.0.1:20007 --no-progress --root /shared" in calls
    assert not (tmp_path / ".infini-study" / "7").exists(), "the token goes with the job"


@pytest.mark.parametrize("name", ["Dockerfile", "Dockerfile.cuda"])
def test_the_images_are_made_from_a_checkout_and_do_not_run_as_root(name: str) -> None:
    text = (DEPLOY / name).read_text()
    words = {line.split()[0] for line in re.sub(r"\\\n", " ", text).splitlines() if line and not line.startswith("#")}
    assert words == {"FROM", "ENV", "WORKDIR", "COPY", "RUN", "USER", "CMD"}
    assert re.search(r"^USER (?!root)", text, re.M) and "-c constraints.txt" in text and "RAY_AUTH_MODE=token" in text
    checker = shutil.which("hadolint")
    if checker is not None:
        subprocess.run([checker, str(DEPLOY / name)], check=True)


def test_the_files_are_written_from_the_package() -> None:
    assert set(deployment_files()) == {
        "Dockerfile",
        "Dockerfile.cuda",
        "autoscaler.yaml",
        "raycluster.yaml",
        "rayjob.yaml",
        "slurm.sh",
    }
