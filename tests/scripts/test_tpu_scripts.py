"""tpu_scripts against a `gcloud` that records and plays: what is called exactly, and what happens when things fail."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from fake_cloud import Cloud, make_checkout, open_cloud, until

ZONE = "--zone=us-central1-a"
NEW = ("create", "pod", "--zone", "us-central1-a", "--type", "v5litepod-8")
SCRIPTS = ("create", "setup", "run", "watch", "status", "delete")
WORKER = "bash isrdpo_jax/tpu_scripts/worker.sh"


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("checkout")
    make_checkout(root, "run: {name: run}\n")
    return root


@pytest.fixture
def cloud(checkout: Path, tmp_path: Path) -> Iterator[Cloud]:
    made = open_cloud(tmp_path, checkout)
    yield made
    made.kill_workers()


@pytest.fixture
def pod(cloud: Cloud) -> Cloud:
    """A cloud with a pod of one worker that is set up; its calls are forgotten."""
    cloud.ok(*NEW, "--spot")
    cloud.ok("setup", "pod", "--poll", "0.05")
    cloud.calls()
    return cloud


def sealed(cloud: Cloud, name: str = "run") -> list[str]:
    """The steps of a run in the bucket that have a manifest; each must have its file."""
    folder = cloud.bucket(f"box/runs/{name}")
    steps = sorted(path.name.removesuffix(".manifest.json") for path in folder.glob("*.manifest.json"))
    assert all((folder / step).exists() for step in steps)
    return steps


# ---- create ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "call"),
    [
        (
            ("--type", "v5litepod-16", "--spot"),
            f"queued-resources create pod --node-id=pod {ZONE} --accelerator-type=v5litepod-16"
            " --runtime-version=v2-alpha-tpuv5-lite --spot",
        ),
        (
            ("--type=v5p-16", "--project=me"),
            f"queued-resources create pod --node-id=pod {ZONE} --project=me --accelerator-type=v5p-16"
            " --runtime-version=v2-alpha-tpuv5",
        ),
        (
            ("--type", "v6e-256", "--now"),
            f"tpu-vm create pod {ZONE} --accelerator-type=v6e-256 --version=v2-alpha-tpuv6e",
        ),
        (
            ("--type", "v4-8", "--now", "--spot"),
            f"tpu-vm create pod {ZONE} --accelerator-type=v4-8 --version=tpu-ubuntu2204-base --spot",
        ),
        (
            ("--type", "v9x-8", "--runtime", "v2-other", "--now"),
            f"tpu-vm create pod {ZONE} --accelerator-type=v9x-8 --version=v2-other",
        ),
    ],
)
def test_create_asks_for_exactly_this(cloud, words, call):
    dry = cloud.ok("create", "pod", ZONE, *words, "--dry-run")
    assert dry.stdout == f"gcloud compute tpus {call}\n"
    assert cloud.calls() == []
    assert not (cloud.root / "laptop" / ".cache").exists(), "a dry run remembers nothing"
    cloud.ok("create", "pod", ZONE, *words)
    assert cloud.calls() == [call.split()]


@pytest.mark.parametrize(
    ("error", "code", "advice"),
    [
        (
            "Quota limit 'TPUV5sLitepodPerProjectPerZoneForTPUAPI' has been exceeded. Limit: 0",
            2,
            "quota for v5litepod-8",
        ),
        ('There is no more capacity in the zone "us-central1-a"; you can try in another zone', 75, "no room"),
        ("PERMISSION_DENIED: Permission 'tpu.nodes.create' denied", 2, "gcloud auth login"),
        ("INVALID_ARGUMENT: Cloud TPU received a bad request", 2, "accelerator-types list"),
        ("INTERNAL: try again", 1, "INTERNAL: try again"),
    ],
)
def test_create_tells_what_a_refusal_means(cloud, error, code, advice):
    cloud.play(create=[error])
    done = cloud.script(*NEW)
    assert (done.returncode, error in done.stderr) == (code, True)
    assert advice in done.stderr


def test_create_does_not_make_a_second_pod_of_one_name(cloud):
    cloud.ok(*NEW)
    done = cloud.script(*NEW)
    assert done.returncode == 2 and "delete.sh pod" in done.stderr


# ---- arguments -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (("create", "pod", ZONE), "--type is needed"),
        (("create", "pod", "--type", "v6e-8"), "--zone is needed"),
        (("create", "Pod_1", ZONE, "--type", "v6e-8"), "'Pod_1' is not a name"),
        (("create", "pod", "--zone", "us-central1", "--type", "v6e-8"), "'us-central1' is not a zone"),
        (("create", "pod", ZONE, "--type", "v5e-16"), "--type v5litepod-16"),
        (("create", "pod", ZONE, "--type", "4x4"), "'4x4' is not an accelerator type"),
        (("create", "pod", ZONE, "--type", "v9x-8"), "name it with --runtime"),
        (("create", "pod", ZONE, "--type", "--spot"), "--type needs a value"),
        (("create", "pod", "other", ZONE, "--type", "v6e-8"), "'other' is one word too many"),
        (("setup", "pod", ZONE, "--mount", "disk"), "--mount needs gs://BUCKET"),
        (("setup", "pod", ZONE, "--commit", "nowhere"), "there is no commit"),
        (("run", "pod", ZONE), "name a config"),
        (("run", "pod", ZONE, "configs/none.yaml"), "'configs/none.yaml' is not a file of the repository"),
        (("run", "pod", ZONE, "configs/a.yaml", "beta"), "'beta' is not KEY=VALUE"),
        (("run", "pod", ZONE, "--bucket", "b/c", "configs/a.yaml"), "'b/c' is not gs://BUCKET/FOLDER"),
        (("run", "pod", ZONE, "--sync-every", "soon", "configs/a.yaml"), "needs a number of seconds, got 'soon'"),
        (("watch", "pod", ZONE), "create.sh has not been called for pod"),
        (("status",), "name the VM"),
        (("delete", "pod", ZONE, "--force"), "unknown option --force"),
    ],
)
def test_arguments_that_cannot_be_used_are_refused(cloud, words, complaint):
    done = cloud.script(*words)
    assert done.returncode == 2
    assert complaint in done.stderr and f"usage: {words[0]}.sh NAME" in done.stderr
    assert cloud.calls() == []


@pytest.mark.parametrize("name", SCRIPTS)
def test_help_names_every_option(cloud, name):
    usage = cloud.ok(name, "--help").stdout
    text = (cloud.root / "repository" / "tpu_scripts" / f"{name}.sh").read_text()
    own = set(re.findall(r"^ +(--[a-z-]+)\)", text, re.MULTILINE))
    assert all(option in usage for option in own | {"--zone", "--project", "--state", "--dry-run"})


@pytest.mark.parametrize("name", SCRIPTS)
def test_a_dry_run_prints_what_a_run_calls_and_calls_nothing(pod, name):
    words = {
        "create": NEW[1:],
        "run": ("pod", "configs/a.yaml", "dpo.beta=0.2"),
        "delete": ("pod", "--yes"),
    }.get(name, ("pod",))
    if name == "watch":
        pod.ok("run", "pod", "configs/a.yaml")
        until(lambda: pod.state() == "exited 0")
        pod.calls()
    dry = pod.ok(name, *words, "--dry-run").stdout
    assert pod.calls() == []
    printed = [shlex.split(line) for line in dry.splitlines() if not line.startswith("#")]
    assert printed and all(line[0] in ("gcloud", "git") for line in printed)
    if name == "create":
        pod.pod(vm=None, request=None)
        (pod.home()).rename(pod.root / "gone")
    if name == "watch":  # prints a whole round: poll, make again, set up, run
        return
    pod.ok(name, *words)
    called = [["gcloud", "compute", "tpus", *words] for words in pod.calls()]
    if name == "delete":  # the VM goes with its request, so that it need not be deleted
        assert called == printed[:-1]
    else:
        assert called == [line for line in printed if line[0] == "gcloud"]


def test_gcloud_that_is_not_installed_is_named(cloud):
    (cloud.root / "bin" / "gcloud").unlink()
    tools = ("bash", "dirname", "env", "git", "mkdir", "cat")
    for tool in tools:
        where = subprocess.run(["which", tool], capture_output=True, text=True, check=True).stdout.strip()
        (cloud.root / "bin" / tool).symlink_to(where)
    cloud.environment["PATH"] = str(cloud.root / "bin")
    done = cloud.script("status", "pod", ZONE)
    assert done.returncode == 2 and "gcloud is not installed" in done.stderr


# ---- setup -----------------------------------------------------------------------------------------------------------


def test_setup_waits_in_the_queue_and_installs_the_commit_on_all_workers(cloud):
    cloud.pod(workers=2)
    cloud.ok(*NEW)
    cloud.calls()
    cloud.pod(vm=None, request="WAITING_FOR_RESOURCES")
    cloud.play(describe=["MISSING", "CREATING", "READY"])
    done = cloud.ok("setup", "pod", "--poll", "0.05")
    assert "pod is WAITING_FOR_RESOURCES; waiting" in done.stderr and "pod is CREATING" in done.stderr
    assert cloud.verbs() == [
        "tpu-vm describe",
        "queued-resources describe",
        "tpu-vm describe",
        "tpu-vm describe",
        "tpu-vm scp",
        "tpu-vm ssh setup",
    ]
    for worker in range(2):
        assert (cloud.home(worker) / "isrdpo_jax" / ".venv" / "bin" / "isrdpo").exists()
        assert cloud.state(worker) == "idle"
    assert not list(cloud.root.glob("*.tar.gz"))


def test_setup_fails_where_one_worker_cannot_be_reached(cloud):
    cloud.pod(workers=2)
    cloud.ok(*NEW)
    cloud.play(ssh_down=[1])
    done = cloud.script("setup", "pod")
    assert done.returncode == 255 and "not all workers are set up" in done.stderr
    cloud.play(ssh_down=[])
    cloud.ok("setup", "pod")


@pytest.mark.parametrize(("state", "code"), [("PREEMPTED", 75), ("TERMINATED", 75), ("STOPPED", 2)])
def test_setup_does_not_wait_for_a_vm_that_will_not_come(cloud, state, code):
    cloud.ok(*NEW)
    cloud.pod(vm=state)
    done = cloud.script("setup", "pod")
    assert done.returncode == code and f"pod is {state}" in done.stderr


def test_setup_leaves_a_running_run_alone(pod):
    pod.ends("sleep")
    pod.ok("run", "pod", "configs/a.yaml")
    done = pod.script("setup", "pod")
    assert done.returncode == 2 and "a run is on this VM; stop it" in done.stderr


def test_setup_mounts_a_bucket_that_all_workers_share(cloud):
    cloud.pod(workers=2)
    cloud.ok(*NEW)
    cloud.ok("setup", "pod", "--mount", "gs://shared-bucket/some/folder")
    options = "--implicit-dirs --rename-dir-limit=1000000 --metadata-cache-ttl-secs=0 --only-dir=some/folder"
    mount = f"{options} shared-bucket shared"
    assert (cloud.root / "cloud" / "mounts").read_text().splitlines() == [mount, mount]


# ---- run -------------------------------------------------------------------------------------------------------------


def test_run_passes_config_and_overrides_as_they_are_written(pod):
    overrides = ["run.name=a-b", "data.path=/my videos/it's=1.jsonl", "mesh={fsdp: 4, tensor: 1}", 'start=$HOME"`x`*']
    pod.ok("run", "pod", "configs/a.yaml", *overrides)
    assert pod.verbs() == ["tpu-vm describe", "tpu-vm ssh start"]
    until(lambda: pod.state() == "exited 0")
    assert f"arguments {json.dumps(['configs/a.yaml', *overrides])} JAX_PLATFORMS tpu,cpu" in pod.log()
    assert "step 0 is done" in pod.log()


def test_run_calls_exactly_this(pod):
    pod.ok("run", "pod", "--bucket", "gs://box/", "--data", "gs://sets/one", "--dry-run", "configs/a.yaml", "a.b=c d")
    pod.bucket("sets/one/world").mkdir(parents=True)
    (pod.bucket("sets/one/world") / "part").write_text("records")
    pod.ok("run", "pod", "--bucket", "gs://box/", "--data", "gs://sets/one", "configs/a.yaml", "a.b=c d")
    places = "--logs gs://box/logs/pod --runs gs://box/runs --data gs://sets/one"
    start = f"{WORKER} start --sync-every 600 {places} configs/a.yaml 'a.b=c d'"
    assert pod.calls() == [
        ["tpu-vm", "describe", "pod", ZONE, "--format=value(networkEndpoints[].ipAddress)"],
        ["tpu-vm", "ssh", "pod", ZONE, "--worker=all", f"--command={start}"],
    ]
    until(lambda: pod.state() == "exited 0")
    assert (pod.home() / "isrdpo_jax" / "data" / "world" / "part").read_text() == "records"
    assert sealed(pod) == ["step_0"]
    assert "isrdpo ended with 0" in pod.bucket("box/logs/pod/t1v-w-0.log").read_text()


def test_a_run_on_another_disk_of_the_only_worker_is_copied_too(pod):
    told = pod.ok("run", "pod", "--bucket", "gs://box", "--dry-run", "configs/a.yaml", "run.dir=/mnt/disk/runs")
    assert "--runs gs://box/runs" in told.stdout + told.stderr


def test_a_second_run_on_the_same_vm_is_refused(pod):
    pod.ends("sleep")
    pod.ok("run", "pod", "configs/a.yaml")
    until(lambda: "sleeping" in pod.log())
    done = pod.script("run", "pod", "configs/a.yaml", "run.name=other")
    assert done.returncode == 2 and "a run is on this VM already" in done.stderr
    assert pod.state() == "running"
    pod.ok("run", "pod", "--stop")
    assert pod.state() == "exited 75", "it was asked to save, not killed"
    pod.ok("run", "pod", "configs/a.yaml")
    until(lambda: pod.state() == "exited 0")


def test_a_config_that_cannot_be_used_is_refused_before_anything_starts(pod):
    done = pod.script("run", "pod", "configs/a.yaml", "dpo.beta=-1")
    assert done.returncode == 2 and "must be greater than 0" in done.stderr
    assert "Traceback" not in done.stderr
    assert pod.state() == "idle"


def test_a_run_of_several_workers_needs_a_place_that_all_of_them_see(cloud):
    cloud.pod(workers=2)
    cloud.ok(*NEW)
    cloud.ok("setup", "pod")
    done = cloud.script("run", "pod", "configs/a.yaml")
    assert done.returncode == 2 and "2 workers, which write one run together" in done.stderr
    cloud.ok("setup", "pod", "--mount", "gs://shared-bucket")
    cloud.ok("run", "pod", "--bucket", "gs://box", "configs/a.yaml", "run.name=x")
    until(lambda: cloud.state(0) == cloud.state(1) == "exited 0")
    assert (cloud.root / "cloud" / "shared" / "runs" / "x").is_dir()
    assert not cloud.bucket("box/runs").exists(), "what is on the shared file system is not copied"
    logs = [log.read_text() for log in cloud.bucket("box/logs/pod").iterdir()]
    assert len(logs) == 2 and all('"--processes", "auto"' in log for log in logs), "they join into one run"


def test_run_says_which_way_out_when_a_worker_was_not_reached(cloud):
    cloud.pod(workers=2)
    cloud.ok(*NEW)
    cloud.ok("setup", "pod")
    cloud.play(ssh_down=[1])
    done = cloud.script("run", "pod", "configs/a.yaml", "run.dir=/mnt/nfs")
    assert done.returncode == 255 and "run.sh pod --stop" in done.stderr


# ---- the copy in the bucket ------------------------------------------------------------------------------------------


def test_the_run_is_copied_while_it_goes_on_and_what_it_removes_goes(pod):
    pod.ends("sleep")
    pod.ok("run", "pod", "--bucket", "gs://box", "--sync-every", "1", "configs/a.yaml")
    until(lambda: pod.bucket("box/runs/run/step_0.manifest.json").exists())
    run = pod.home() / "isrdpo_jax" / "runs" / "run"
    for name in ("lock", ".a.0123456789abcdef.tmp"):
        (run / name).write_text("not to be copied")
    (run / "step_0.manifest.json").unlink()
    (run / "step_0").unlink()
    (run / "other").write_text("to be copied")
    until(lambda: pod.bucket("box/runs/run/other").exists() and not pod.bucket("box/runs/run/step_0").exists())
    assert {path.name for path in pod.bucket("box/runs/run").iterdir()} == {"other"}
    assert "sleeping" in pod.bucket("box/logs/pod/t1v-w-0.log").read_text()


def test_a_manifest_is_never_in_the_bucket_without_its_files(pod):
    """The VM may be taken away between any two transfers; so each of them is made to be the last one."""
    for broken, present in ((0, []), (1, []), (2, ["step_0"])):
        pod.play(**{"storage rsync": [None] * broken + ["INTERNAL: the network is gone"]})
        pod.ok("run", "pod", "--bucket", "gs://box", "configs/a.yaml", f"run.name=r{broken}")
        until(lambda: pod.state().startswith("exited"))
        assert pod.state() == "exited 1", "a run whose last copy failed is not done"
        assert sealed(pod, f"r{broken}") == present


def test_a_new_run_is_not_begun_over_one_that_cannot_be_read(pod):
    pod.play(**{"storage ls": ["PERMISSION_DENIED: storage.objects.list"]})
    pod.ok("run", "pod", "--bucket", "gs://box", "configs/a.yaml")
    until(lambda: pod.state() == "exited 1")
    assert "PERMISSION_DENIED" in pod.log() and "nothing was started" in pod.log()
    assert "step 0" not in pod.log()


# ---- watch -----------------------------------------------------------------------------------------------------------


def watch(cloud: Cloud) -> subprocess.CompletedProcess[str]:
    return cloud.script("watch", "pod", "--poll", "0.1")


def test_watch_makes_a_preempted_vm_again_and_resumes_from_the_bucket(pod):
    pod.ends("sleep")
    pod.ok("run", "pod", "--bucket", "gs://box", "--sync-every", "1", "configs/a.yaml", "data.path=a b")
    until(lambda: sealed(pod) == ["step_0"])
    pod.preempt()
    pod.calls()
    done = watch(pod)
    assert done.returncode == 0, done.stderr
    verbs = pod.verbs()
    polls = ["tpu-vm describe", "tpu-vm ssh state"]
    assert verbs[:13] == [
        "tpu-vm describe",  # PREEMPTED
        "queued-resources describe",
        "queued-resources delete",
        "tpu-vm describe",
        "queued-resources create",
        *polls,  # READY, and nothing runs
        "tpu-vm describe",
        "tpu-vm scp",
        "tpu-vm ssh setup",
        "tpu-vm describe",
        "tpu-vm ssh start",
        "tpu-vm describe",
    ]
    assert set(verbs[13:]) == set(polls), "and then it only looks"
    assert sealed(pod) == ["step_0", "step_1"], "the second VM went on where the first one was"
    assert 'arguments ["configs/a.yaml", "data.path=a b"]' in pod.log()
    assert "the run is done" in done.stderr


def test_watch_runs_again_what_stopped_and_ends_when_it_is_done(pod):
    pod.ends(75, 75, 75, 0)
    pod.ok("run", "pod", "configs/a.yaml")
    done = watch(pod)
    assert done.returncode == 0, done.stderr
    assert pod.log().count("isrdpo ended with 75") == 3 and "fault" not in done.stderr
    assert "tpu-vm ssh setup" not in pod.verbs()


def test_watch_ends_when_the_user_is_needed(pod):
    pod.ends(2)
    pod.ok("run", "pod", "configs/a.yaml")
    done = watch(pod)
    assert done.returncode == 2
    assert "isrdpo ended with 2" in done.stdout and "configuration or data must be changed" in done.stderr


def test_watch_gives_up_after_three_faults(pod):
    pod.ends(1, 137, 1, 0)
    pod.ok("run", "pod", "configs/a.yaml")
    done = watch(pod)
    assert done.returncode == 1 and "fault 3 of 3" in done.stderr
    assert "isrdpo ended with 137" in pod.log()


def test_watch_runs_again_what_was_killed_without_a_word(pod):
    pod.ends("sleep", 0)
    pod.ok("run", "pod", "configs/a.yaml")
    until(lambda: "sleeping" in pod.log())
    group = (pod.home() / "isrdpo_run" / "pid").read_text().strip()
    subprocess.run(["kill", "-KILL", "--", f"-{group}"], check=True)
    until(lambda: pod.state() == "lost")
    done = watch(pod)
    assert done.returncode == 0 and "fault 1 of 3" in done.stderr


def test_watch_waits_while_there_is_no_room_but_not_for_quota(pod):
    pod.ok("run", "pod", "configs/a.yaml")
    pod.preempt()
    pod.play(create=["There is no more capacity in the zone", "There is no more capacity in the zone", None])
    done = watch(pod)
    assert done.returncode == 0 and done.stderr.count("there is no room") == 2
    pod.preempt()
    pod.play(create=["Quota limit 'X' has been exceeded. Limit: 0"])
    done = watch(pod)
    assert done.returncode == 2 and "pod cannot be made again" in done.stderr


def test_watch_restarts_all_workers_when_one_has_failed(cloud):
    cloud.pod(workers=2)
    cloud.ok(*NEW)
    cloud.ok("setup", "pod", "--mount", "gs://shared-bucket")
    cloud.ends("sleep", 0, worker=0)
    cloud.ends(1, 0, worker=1)
    cloud.ok("run", "pod", "configs/a.yaml")
    until(lambda: cloud.state(1) == "exited 1" and "sleeping" in cloud.log(0))
    done = watch(cloud)
    assert done.returncode == 0, done.stderr
    assert "isrdpo ended with 75" in cloud.log(0), "the one that waited for its peer was stopped"
    assert cloud.log(0).count("isrdpo run") == cloud.log(1).count("isrdpo run") == 2


def test_watch_lets_a_worker_that_does_not_answer_answer_later(pod):
    pod.ends(0)
    pod.ok("run", "pod", "configs/a.yaml")
    until(lambda: pod.state() == "exited 0")
    pod.play(**{"tpu-vm describe": ["UNAVAILABLE: try again", None], "tpu-vm ssh": ["ssh: connection lost", None]})
    done = watch(pod)
    assert done.returncode == 0 and "UNAVAILABLE" in done.stderr
    pod.play(ssh_down=[0])
    assert watch(pod).returncode == 2, "but not for ever"


def test_watch_sets_new_vms_up_with_the_commit_of_the_first(pod):
    remembered = (pod.root / "laptop" / ".cache" / "isrdpo" / "tpu" / "pod" / "setup").read_text().split("\0")
    git = ["git", "-C", str(pod.root / "repository")]
    head = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True, check=True).stdout.strip()
    assert remembered[-3:] == ["--commit", head, ""]


def test_a_stopped_vm_is_its_users_matter(pod):
    pod.ok("run", "pod", "configs/a.yaml")
    pod.pod(vm="STOPPED")
    done = watch(pod)
    assert done.returncode == 2 and "tpu-vm start pod --zone=us-central1-a" in done.stderr


# ---- status and delete -----------------------------------------------------------------------------------------------


def test_status_shows_vm_workers_and_run(pod):
    pod.ok("run", "pod", "configs/a.yaml")
    until(lambda: pod.state() == "exited 0")
    shown = pod.ok("status", "pod").stdout
    assert shown.startswith("pod: READY\n== t1v-w-0 exited 0\n")
    assert "step 0 is done" in shown and "runs/run: 1 steps" in shown
    pod.pod(vm=None, request="WAITING_FOR_RESOURCES")
    assert pod.ok("status", "pod").stdout == "pod: WAITING_FOR_RESOURCES\n"


@pytest.mark.parametrize(("answer", "code"), [("n\n", 2), ("", 2), ("y\n", 0)])
def test_delete_asks(pod, answer, code):
    done = pod.script("delete", "pod", answer=answer)
    assert done.returncode == code
    assert ("queued-resources delete" in pod.verbs()) == (code == 0)


def test_delete_takes_the_request_with_its_vm_and_a_vm_without_one(cloud):
    cloud.ok(*NEW)
    cloud.ok("delete", "pod", "--yes")
    cloud.ok(*NEW, "--now")
    cloud.calls()
    cloud.ok("delete", "pod", "--yes")
    assert cloud.calls()[-1] == ["tpu-vm", "delete", "pod", ZONE, "--quiet"]
    assert cloud.pod()["vm"] is None
    cloud.ok("delete", "pod", "--yes", ZONE)  # nothing left: not an error


def test_watch_does_not_make_again_what_its_user_deletes(pod):
    pod.ends("sleep")
    pod.ok("run", "pod", "configs/a.yaml")
    watching = subprocess.Popen(
        [pod.root / "repository" / "tpu_scripts" / "watch.sh", "pod", "--poll", "0.2"],
        env=pod.environment,
        stderr=subprocess.PIPE,
        text=True,
    )
    until(lambda: "tpu-vm ssh state" in pod.verbs())
    pod.ok("delete", "pod", "--yes")
    _, errors = watching.communicate(timeout=20)
    assert watching.returncode == 75 and "was deleted by delete.sh" in errors
    assert "queued-resources create" not in pod.verbs()
