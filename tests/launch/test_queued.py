"""launch/queued.sh against a stand-in of gcloud that takes the TPU away once."""

import re
import subprocess
from pathlib import Path

from tests.launch.clouds import GCLOUD, WHERE, asked, call


def test_a_queued_resource_that_was_preempted_is_made_anew_and_the_run_resumed(cloud):
    options = ("--type=v5litepod-16", "--spot", "--every=0")
    done = call("queued.sh", "watch", *WHERE, *options, "--", "train", "--workdir=gs://b/r")
    assert done.returncode == 0, done.stderr
    kinds = r"queued-resources (create|delete)|worker.sh.(setup|start|follow)"
    calls = [found for line in asked(cloud) if (found := re.search(kinds, line))]
    once = ["create", "setup", "start", "follow"]
    assert [one[1] or one[2] for one in calls] == [*once, "delete", *once]
    create = next(line for line in asked(cloud) if "queued-resources create" in line)
    for word in ("--node-id=srpo", "--runtime-version=v2-alpha-tpuv5-lite", "--spot", "--zone=z"):
        assert word in create.split()
    assert "the TPU is gone; a new one is asked for" in done.stderr


def test_a_watcher_gives_up_on_a_run_that_fails_by_itself(cloud):
    tool = cloud / "tools" / "gcloud"
    tool.write_text(GCLOUD.replace("echo SUSPENDED >state", "").replace("255", "1"))
    tool.write_text(tool.read_text().replace("&& exit 0", "&& exit 1"))
    options = ("--type=v5litepod-16", "--every=0", "--tries=2")
    done = call("queued.sh", "watch", *WHERE, *options, "--", "train")
    assert done.returncode == 1
    assert "failure 2 of 2" in done.stderr
    assert not [line for line in asked(cloud) if "queued-resources delete" in line]


def test_a_watcher_counts_failures_anew_on_a_new_machine(cloud):
    """A long run has failures between many preemptions."""
    answers = """
    echo >>follows
    case $(wc -l <follows) in
      1 | 3) exit 1 ;;
      2) echo SUSPENDED >state; exit 255 ;;
      *) exit 0 ;;
    esac
    """
    tool = cloud / "tools" / "gcloud"
    tool.write_text(
        GCLOUD.replace('*"worker.sh follow"*)', f'*"worker.sh follow"*){answers};;\n  never)')
    )
    options = ("--type=v5litepod-16", "--every=0", "--tries=2")
    done = call("queued.sh", "watch", *WHERE, *options, "--", "train")
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("failure 1 of 2") == 2


def test_a_tpu_that_is_being_taken_away_is_no_failure_of_the_command(cloud):
    """Its request still said ACTIVE, gcloud refused to connect, and the watch gave up on the command."""
    tool = """#!/usr/bin/env bash
    echo "$*" >>asked
    case "$*" in
      *"queued-resources create"*) echo ACTIVE >state ;;
      *"queued-resources delete"*) rm state ;;
      *"queued-resources describe"*) cat state 2>/dev/null || { echo NOT_FOUND >&2; exit 1; } ;;
      *"tpu-vm describe"*)
        [[ $(grep -c follow asked) -gt 0 ]] || exit 0
        echo SUSPENDED >state
        echo PREEMPTED
        ;;
      *"worker.sh follow"*) [[ $(grep -c follow asked) -gt 1 ]] && exit 0 || exit 1 ;;
    esac
    """
    (cloud / "tools" / "gcloud").write_text(tool)
    options = ("--type=v5p-256", "--every=0", "--tries=1")
    done = call("queued.sh", "watch", *WHERE, *options, "--", "train")
    assert done.returncode == 0, done.stderr
    assert "the TPU is PREEMPTED" in done.stderr
    assert "failure" not in done.stderr


def lost(cloud: Path, follow: str, describe: str = "cat state") -> subprocess.CompletedProcess[str]:
    """`watch` of a TPU that stays, with at most two losses in a row; how its output is followed."""
    (cloud / "state").write_text("ACTIVE\n")
    (cloud / "tools" / "gcloud").write_text(f"""#!/usr/bin/env bash
    echo "$*" >>asked
    case "$*" in
      *"queued-resources describe"*) {describe} ;;
      *"worker.sh follow"*) {follow} ;;
    esac
    """)
    options = ("--type=v5litepod-16", "--every=0", "--losses=2", "--tries=1")
    return call("queued.sh", "watch", *WHERE, *options, "--", "train")


def test_a_watcher_comes_back_after_every_lost_connection_that_had_held(cloud):
    """The run went on, and the third loss in its weeks ended who would have brought it back."""
    done = lost(cloud, "[[ $(grep -c follow asked) -lt 4 ]] || exit 0; sleep 1.1; exit 255")
    assert done.returncode == 0, done.stderr
    assert (
        done.stderr.count("the connection was lost, 1 of 2 times in a row; once more in 0 s") == 3
    )


def test_a_watcher_gives_up_where_no_connection_holds(cloud):
    done = lost(cloud, "exit 255")
    assert done.returncode == 255
    assert "the connection was lost, 2 times in a row: given up; the TPU is kept" in done.stderr


def test_nothing_is_installed_under_a_run_that_is_going_on(cloud):
    """The watch was ended and began anew: it put packages in place of those of the run."""
    case = 'exit 0 ;; *"worker.sh status"*) echo "host h: running: step 3"'
    done = lost(cloud, case)
    assert done.returncode == 0, done.stderr
    assert "a run is going on there: nothing is installed" in done.stderr
    assert not [line for line in asked(cloud) if "worker.sh setup" in line]
    done = lost(cloud, case.replace("running", "ended with status 1"))
    assert [line for line in asked(cloud) if "worker.sh setup" in line]


def test_a_cloud_that_does_not_answer_is_not_taken_for_a_tpu_that_is_gone(cloud):
    """It asked for another one, which was refused, and ended."""
    away = "if [[ $(grep -c resources.describe asked) == 2 ]]; then echo away >&2; exit 1; fi; cat state"
    done = lost(cloud, "[[ $(grep -c follow asked) -gt 1 ]] && exit 0; exit 255", away)
    assert done.returncode == 0, done.stderr
    assert "away" in done.stderr
    assert not [line for line in asked(cloud) if "queued-resources create" in line]
    done = lost(cloud, "exit 0", "echo away >&2; exit 1")
    assert (done.returncode, done.stderr) == (2, "away\nerror: the state of srpo cannot be asked\n")


def test_a_request_that_fails_says_why_and_is_made_again_after_growing_pauses(cloud):
    """Without capacity or quota it was made anew every half minute, and nobody saw the reason."""
    tool = """#!/usr/bin/env bash
    echo "$*" >>asked
    case "$*" in
      *"queued-resources create"*)
        [[ $(grep -c 'resources create' asked) -lt 3 ]] && echo FAILED >state || echo ACTIVE >state
        ;;
      *"queued-resources delete"*) rm state ;;
      *failedData*) echo "no more capacity" ;;
      *"queued-resources describe"*) cat state 2>/dev/null || { echo NOT_FOUND >&2; exit 1; } ;;
    esac
    """
    (cloud / "tools" / "gcloud").write_text(tool)
    options = ("--type=v5p-256", "--every=0", "--until=2026-11-30")
    done = call("queued.sh", "watch", *WHERE, *options, "--", "train")
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("the request failed (no more capacity); a new one is asked for") == 2
    assert "requests that failed in a row: 2; the next in 0 s" in done.stderr
    assert [line for line in asked(cloud) if line.endswith("worker.sh setup 2026-11-30 --zone=z")]
