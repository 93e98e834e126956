"""launch/slurm.sh and the job that it submits, against stand-ins of SLURM's tools."""

import pytest

from tests.launch.clouds import asked, call


def test_slurm_requeues_a_job_that_has_saved_at_the_end_of_its_time(cloud, monkeypatch):
    program = (
        "trap 'touch saved; exit 130' TERM; echo \"$SRPO_DISTRIBUTED $JAX_PLATFORMS\" >>starts;"
        " [[ -e saved ]] && exit; while :; do sleep 0.02; done"
    )
    monkeypatch.delenv("JAX_PLATFORMS", raising=False)
    options = ("--name=srpo", "--nodes=2", "--gpus=4", "--time=1:00:00", "--exclusive")
    done = call("slurm.sh", "submit", *options, "--", "bash", "-c", program)
    assert done.returncode == 0, done.stderr
    assert (cloud / "starts").read_text() == "cluster cuda,cpu\n" * 2
    lines = asked(cloud)
    assert lines[0].startswith(
        "--job-name=srpo --nodes=2 --gpus-per-node=4 --ntasks-per-node=4 --requeue"
    )
    assert "--signal=B:USR2@300 --time=1:00:00 --exclusive" in lines[0]
    assert [line.split()[0] for line in lines[1:]] == ["srun", "scancel", "scontrol", "srun"]
    # What is cancelled gets the same signal, and would be brought back without this word.
    assert lines[3] == "scontrol requeue incomplete 7"
    (cloud / "saved").unlink()
    (cloud / "warned").unlink()
    (cloud / "starts").unlink()
    assert call("slurm.sh", "resume", "--name=srpo").returncode == 0
    assert (cloud / "starts").read_text() == "cluster cuda,cpu\n" * 2


@pytest.mark.parametrize(
    ("warned", "codes", "status", "kinds"),
    [
        ("", "130 0", 0, "srun scontrol srun"),  # asked by SLURM itself, before its grace is over
        ("", "143 0", 0, "srun scontrol srun"),
        ("", "1 7 0", 0, "srun srun srun"),
        ("", "1 1 0", 1, "srun srun"),
        ("", "2 0", 2, "srun"),
        ("USR1", "130 0", 130, "srun scancel"),  # launch/slurm.sh stop
    ],
)
def test_what_becomes_of_a_slurm_job_by_the_status_of_its_command(
    warned, codes, status, kinds, cloud, monkeypatch
):
    monkeypatch.setenv("SIGNAL", warned)
    if not warned:
        (cloud / "warned").touch()
    wait = "trap : TERM; sleep 30 & wait $!; kill $!" if warned else ":"
    program = f"echo >>starts; {wait}; set {codes}; shift $(($(wc -l <starts) - 1)); exit $1"
    tries = str(2 if status == 1 else 3)
    command = ("bash", "-c", program)
    done = call("slurm.sh", "submit", "--name=srpo", f"--tries={tries}", "--", *command)
    assert done.returncode == status, done.stderr
    assert " ".join(line.split()[0] for line in asked(cloud)[1:]) == kinds
