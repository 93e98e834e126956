"""launch/gke.sh: the JobSet that it writes, and a stand-in of its controller."""

import re
import shlex

import pytest
import yaml

from tests.launch.clouds import PROGRAM, asked, call

POOL = ("--cluster=c", "--location=l")


def jobset(*more: str) -> dict:
    what = ("--name=srpo", "--image=i", "--chip=v5e", "--topology=4x4", "--manifest")
    done = call("gke.sh", "submit", *what, *more, "--", "python", "-c", 'print("a\\b  c")\n')
    assert done.returncode == 0, done.stderr
    return yaml.safe_load(done.stdout)


def test_a_jobset_has_a_pod_for_each_host_of_each_slice():
    plain = jobset("--slices=2")
    (job,) = plain["spec"]["replicatedJobs"]
    spec = job["template"]["spec"]
    assert (job["replicas"], spec["parallelism"], spec["completions"]) == (2, 4, 4)
    pod = spec["template"]["spec"]
    assert pod["nodeSelector"] == {
        "cloud.google.com/gke-tpu-accelerator": "tpu-v5-lite-podslice",
        "cloud.google.com/gke-tpu-topology": "4x4",
    }
    assert pod["containers"][0]["command"] == ["python", "-c", 'print("a\\b  c")\n']
    assert "tolerations" not in pod
    spot = jobset("--spot", "--service-account=me", "--secret=keys")["spec"]["replicatedJobs"][0]
    pod = spot["template"]["spec"]["template"]["spec"]
    assert pod["nodeSelector"]["cloud.google.com/gke-spot"] == "true"
    assert pod["tolerations"][0]["key"] == "cloud.google.com/gke-spot"
    assert pod["serviceAccountName"] == "me"
    assert pod["containers"][0]["envFrom"] == [{"secretRef": {"name": "keys"}}]


def test_the_jobs_of_a_jobset_are_what_kubernetes_knows():
    """By Kubernetes' own schemas, unknown fields refused; they have none of the JobSet around them."""
    schemas = pytest.importorskip("kubernetes_validate")
    for more in ((), ("--spot", "--service-account=me", "--secret=keys", "--slices=2")):
        (job,) = jobset(*more)["spec"]["replicatedJobs"]
        whole = {"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": "srpo"}}
        whole["spec"] = job["template"]["spec"]
        # Before 1.29 the schema wants what Kubernetes itself does not, conditions beside exit codes.
        for version in ("1.29", schemas.latest_version()):
            schemas.validate(whole, version, strict=True)
    whole["spec"]["template"]["spec"]["hostNetworks"] = True
    with pytest.raises(schemas.ValidationError, match="hostNetworks"):
        schemas.validate(whole, version, strict=True)


def test_rules_of_a_jobset_have_the_names_that_its_schema_asks_for():
    (rule,) = jobset()["spec"]["failurePolicy"]["rules"]
    assert re.fullmatch(r"[A-Za-z]([A-Za-z0-9_,:]*[A-Za-z0-9_])?", rule["name"])


def test_node_pools_are_slices_whose_pods_reach_the_bucket():
    what = ("--cluster=c", "--location=us-west4", "--zone=us-west4-a", "--chip=v5e", "--dry-run")
    done = call("gke.sh", "create", *what, "--topology=4x4", "--slices=2", "--spot")
    pools = [shlex.split(line) for line in done.stdout.splitlines()]
    assert [words[4] for words in pools] == ["srpo-v5e-4x4-0", "srpo-v5e-4x4-1"]
    for word in ("--num-nodes=4", "--tpu-topology=4x4", "--node-locations=us-west4-a", "--spot"):
        assert word in pools[0]
    assert "--scopes=cloud-platform" in pools[0]
    done = call("gke.sh", "create", *what, "--topology=2x2")
    assert "--machine-type=ct5lp-hightpu-4t --num-nodes=1" in done.stdout
    assert "--tpu-topology" not in done.stdout  # of one host, the machine's type says it


def test_a_node_pool_that_cannot_be_deleted_leaves_the_others_to_be(cloud):
    """They went on, and were paid for."""
    (cloud / "tools" / "gcloud").write_text("""#!/usr/bin/env bash
    echo "$*" >>asked
    [[ $* != *4x4-0* ]] || { echo "not found" >&2; exit 1; }
    """)
    done = call("gke.sh", "delete", *POOL, "--chip=v5e", "--topology=4x4", "--slices=2")
    assert (done.returncode, len(asked(cloud))) == (1, 2)


def test_xpk_is_told_what_the_jobset_would_say():
    what = ("--name=srpo", "--image=i", "--cluster=c", "--type=v5litepod-16", "--zone=z", "--xpk")
    done = call("gke.sh", "resume", *what, "--grace=90", "--dry-run", "--", "train", "--seed=1")
    delete, create = map(shlex.split, done.stdout.splitlines())
    assert shlex.join(delete) == "xpk workload delete --cluster c --workload srpo --zone=z"
    for word in ("--restart-on-exit-codes=1", "--termination-grace-period-seconds=90", "--zone=z"):
        assert word in create
    env = "SRPO_DISTRIBUTED=cluster JAX_PLATFORMS=tpu,cpu"
    assert create[-1] == f"--command=exec env {env} train --seed=1"


def test_gke_starts_preempted_pods_again(cloud):
    what = ("--name=srpo", "--image=i", "--chip=v6e", "--topology=2x2")
    done = call("gke.sh", "submit", *what, "--", "bash", "-c", PROGRAM)
    assert done.returncode == 0, done.stderr
    assert (cloud / "starts").read_text() == "start cluster\n" * 2
    done = call("gke.sh", "submit", *what, "--", "bash", "-c", "echo >>mistakes; exit 2")
    assert len((cloud / "mistakes").read_text()) == 1
    call("gke.sh", "resume", *what, "--", "bash", "-c", PROGRAM)
    call("gke.sh", "stop", "--name=srpo")
    assert [line.split()[0] for line in asked(cloud)] == [
        *["apply"] * 2,
        "delete",
        "apply",
        "delete",
    ]
