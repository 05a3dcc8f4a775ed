"""`isrdpo doctor`: every finding says what is wrong and what to do, and nothing is found where all is well."""

import json
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from isrdpo_jax import doctor
from isrdpo_jax.data.video_writer import write_video
from isrdpo_jax.doctor import Finding, examine, run_bytes, summary
from isrdpo_jax.models.video_llava import abstract_params
from isrdpo_jax.schema import Config, LlamaConfig, ModelConfig, VisionConfig
from isrdpo_jax.weights.policy_folder import find_policy

CPU = {"platform": "cpu", "kind": "cpu", "count": 1}
TPU = {"platform": "tpu", "kind": "TPU v5 lite", "count": 4}


@pytest.fixture(autouse=True)
def plain_machine(monkeypatch):
    """No TPU, no GPU, nothing in the environment."""
    for name in ("JAX_PLATFORMS", "TPU_WORKER_HOSTNAMES", "TPU_SKIP_MDS_QUERY", "SLURM_NTASKS", "OMPI_COMM_WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(doctor, "_chips", lambda: [])
    monkeypatch.setattr(doctor, "find_spec", lambda name: None)


def chips(monkeypatch, tmp_path, mode=0o600):
    files = [tmp_path / "accel0", tmp_path / "accel1"]
    for file in files:
        file.touch(mode)
    monkeypatch.setattr(doctor, "_chips", lambda: files)


def own_videos(folder):
    frames = np.zeros((9, 16, 24, 3), np.uint8)
    for name in ("a.mp4", "b.mp4"):
        write_video(folder / name, frames, fps=8)
    rows = [{"video": name, "question": "Who?"} for name in ("a.mp4", "b.mp4", "a.mp4")]
    (folder / "qa.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = {"dataset": "video_qa", "path": str(folder / "qa.jsonl"), "dir": str(folder / "data")}
    return Config.model_validate({"run": {"dir": str(folder / "runs")}, "data": data})


def states(findings):
    return {(one.topic, one.state) for one in findings}


def the_one(findings):
    (one,) = findings
    assert isinstance(one, Finding) and one.what and (one.do or one.state == "ok")
    return one


def test_this_machine_is_fine(monkeypatch):
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    findings = examine()
    assert states(findings) == {("versions", "ok"), ("devices", "ok"), ("codecs", "ok")}
    assert summary(findings)["ok"] and json.dumps(summary(findings))
    assert "(cpu)" in next(one.what for one in findings if one.topic == "devices")


def test_a_version_outside_its_bounds(monkeypatch):
    monkeypatch.setattr(doctor, "_requirements", lambda: ["numpy>=99", "rich>=1", "no-such-package>=1"])
    found = the_one(doctor._versions())
    assert found.state == "mend" and "is not >=99" in found.what and "no-such-package is missing" in found.what
    assert "rich" not in found.what


def test_requirements_have_bounds():
    assert len([line for line in doctor._requirements() if "<" in line and ">=" in line]) > 20


@pytest.mark.parametrize(
    ("probe", "message"),
    [
        ("raise SystemExit('no TPU for you')", "no TPU for you"),
        ("import time; time.sleep(60)", "no device within 0.5 s"),
    ],
)
def test_no_device(monkeypatch, probe, message):
    monkeypatch.setattr(doctor, "_PROBE", probe)
    monkeypatch.setattr(doctor, "_PROBE_LIMIT_S", 0.5 if "sleep" in probe else 60.0)
    devices, problem = doctor._devices()
    found = the_one(doctor._device_findings(devices, problem))
    assert found.state == "mend" and message in found.what and "JAX_PLATFORMS" in found.do


def test_libtpu_without_a_tpu(monkeypatch):
    monkeypatch.setattr(doctor, "find_spec", lambda name: name == "libtpu" or None)
    found = the_one(doctor._accelerators(CPU))
    assert found.state == "hint" and "JAX_PLATFORMS=cpu" in found.do
    assert the_one(doctor._accelerators(None)).state == "mend"
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    assert list(doctor._accelerators(CPU)) == []


def test_a_tpu_without_its_library(monkeypatch, tmp_path):
    chips(monkeypatch, tmp_path)
    found = the_one(doctor._accelerators(CPU))
    assert found.state == "mend" and "2 chips" in found.what and "[tpu]" in found.do


def test_a_tpu_that_is_not_used(monkeypatch, tmp_path):
    chips(monkeypatch, tmp_path)
    monkeypatch.setattr(doctor, "find_spec", lambda name: name == "libtpu" or None)
    assert list(doctor._accelerators(TPU)) == []
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    assert the_one(doctor._accelerators(CPU)).do == "unset JAX_PLATFORMS"


def test_an_environment_for_compiling_on_a_machine_with_a_tpu(monkeypatch, tmp_path):
    chips(monkeypatch, tmp_path)
    monkeypatch.setattr(doctor, "find_spec", lambda name: name == "libtpu" or None)
    monkeypatch.setenv("TPU_SKIP_MDS_QUERY", "1")
    found = the_one(doctor._accelerators(TPU))
    assert found.state == "mend" and "unset" in found.do and "TPU_SKIP_MDS_QUERY" in found.do


def test_chips_of_others(monkeypatch, tmp_path):
    chips(monkeypatch, tmp_path)
    monkeypatch.setattr(doctor, "find_spec", lambda name: name == "libtpu" or None)
    monkeypatch.setattr(doctor.os, "access", lambda path, mode: False)
    assert "cannot be opened" in the_one(doctor._accelerators(TPU)).what


@pytest.mark.parametrize(
    ("name", "value", "count"),
    [("TPU_WORKER_HOSTNAMES", "a,b,c,d", 4), ("SLURM_NTASKS", "8", 8), ("OMPI_COMM_WORLD_SIZE", "2", 2)],
)
def test_one_of_several(monkeypatch, name, value, count):
    assert list(doctor._processes()) == []
    monkeypatch.setenv(name, value)
    found = the_one(doctor._processes())
    assert f"one of {count} processes" in found.what and "--processes auto" in found.do


def test_a_missing_decoder(monkeypatch):
    monkeypatch.setattr(doctor.av, "codecs_available", {"h264", "hevc", "vp9", "av1", "mpeg4"})
    assert the_one(doctor._codecs()).what == "no decoder for av1"  # FFmpeg's own needs a GPU


def test_a_folder_that_cannot_be_written(tmp_path, monkeypatch):
    def refuse(**_):
        raise PermissionError(13, "Permission denied")

    assert doctor._writable("run.dir", tmp_path / "new" / "runs").state == "ok" and not (tmp_path / "new").exists()
    assert doctor._writable("run.dir", Path("gs://bucket/runs")).state == "hint"
    monkeypatch.setattr(doctor.tempfile, "TemporaryFile", refuse)
    found = doctor._writable("run.dir", tmp_path / "new" / "runs")
    assert found.state == "mend" and f"{tmp_path} cannot be written (Permission denied)" in found.what


def test_a_mesh_for_other_devices():
    eight = Config.model_validate({"mesh": {"data": 2, "fsdp": -1, "tensor": 2}})
    assert list(doctor._mesh(eight, 8)) == []
    assert the_one(doctor._mesh(eight, 6)).state == "mend"
    exact = Config.model_validate({"mesh": {"data": 1, "fsdp": 2, "tensor": 1}})
    assert list(doctor._mesh(exact, 2)) == [] and the_one(doctor._mesh(exact, 4)).state == "mend"


def test_the_estimate_counts_policies_and_training_states():
    model = ModelConfig(
        vision=VisionConfig(
            image_size=32, patch_size=16, hidden_size=16, intermediate_size=32, num_layers=2, num_heads=2
        ),
        llama=LlamaConfig(hidden_size=32, intermediate_size=64, num_layers=2, num_heads=2, num_kv_heads=2),
    )
    params = abstract_params(model)
    every, trained = (sum(leaf.size * 4 for leaf in jax.tree.leaves(tree)) for tree in (params, params["llama"]))
    for keep, policies in ((0, 10), (2, 4), (20, 10)):
        config = Config.model_validate({"run": {"iterations": 9}, "checkpoint": {"keep_policies": keep}})
        assert run_bytes(config, model) == policies * every + 6 * trained


def test_too_little_room_is_summed_by_disk(tmp_path, monkeypatch):
    monkeypatch.setattr(doctor, "free_bytes", lambda path: 3 * 2**30)
    fits = the_one(doctor._room({tmp_path / "runs": 2**30, tmp_path / "data": 2 * 2**30}))
    assert fits.state == "ok" and "about 3.0 GiB needed, 3.0 GiB free" in fits.what
    assert the_one(doctor._room({tmp_path / "runs": 2**30, tmp_path / "data": 2 * 2**30 + 1})).state == "mend"


def test_a_config_with_own_videos(tmp_path):
    config = own_videos(tmp_path)
    needed = doctor._prepared_bytes(config, find_policy("shapes").config)
    assert needed == 2 * 8 * 16 * 24 * 3
    assert states(doctor._configured(config, CPU)) == {("folders", "ok"), ("disk", "ok")}


def test_a_config_without_policy_or_data(tmp_path):
    config = own_videos(tmp_path)
    nowhere = config.model_copy(update={"start": "nowhere"})
    assert ("start", "mend") in states(doctor._configured(nowhere, CPU))
    missing = config.model_copy(update={"data": config.data.model_copy(update={"path": "nowhere.jsonl"})})
    found = [one for one in doctor._configured(missing, CPU) if one.state == "mend"]
    assert "nowhere.jsonl" in the_one(found).what


def test_the_command_ends_with_2_if_something_must_be_mended(tmp_path):
    (tmp_path / "run.yaml").write_text("start: nowhere\n")

    def command(*arguments):
        asked = [sys.executable, "-m", "isrdpo_jax", "doctor", *arguments, "--json"]
        environment = {**doctor.os.environ, "JAX_PLATFORMS": "cpu"}
        return subprocess.run(asked, capture_output=True, text=True, env=environment, check=False)

    fine, bad = command(), command(str(tmp_path / "run.yaml"))
    assert (fine.returncode, json.loads(fine.stdout)["ok"]) == (0, True), fine.stderr
    assert (bad.returncode, json.loads(bad.stdout)["ok"]) == (2, False), bad.stderr
