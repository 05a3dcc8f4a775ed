"""All tests run on the CPU, with eight faked devices."""

import functools
import os

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax
import pytest

jax.config.update("jax_num_cpu_devices", 8)


@pytest.fixture(scope="session")
def tiny_params():
    """Parameters of `tiny.TINY`."""
    from tiny import TINY, random_params

    return random_params(TINY)


@pytest.fixture(scope="session")
def lab(tmp_path_factory):
    """A start policy, a config and data for whole runs."""
    from tiny_run import open_lab

    return open_lab(tmp_path_factory.mktemp("lab"))


@pytest.fixture(scope="session")
def finished(lab):
    """A run of two iterations that nothing disturbed, made by the command line."""
    from tiny_run import Ran

    done = lab.isrdpo("run", lab.config, "run.name=finished")
    assert done.stdout == ""
    return Ran(lab.layout("finished"), done.stderr)


@pytest.fixture
def interpreted_splash(monkeypatch):
    """Splash attention runs on the CPU."""
    from isrdpo_jax.ops.splash import splash

    kernel = functools.partial(splash.make_splash_mha_single_device, interpret=True)
    monkeypatch.setattr(splash, "make_splash_mha_single_device", kernel)
