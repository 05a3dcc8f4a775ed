"""No process waits for ever for another one."""

from __future__ import annotations

import shutil

from tiny_run import Lab
from together import Together

ONCE = ("run.iterations=1", "evaluation.enabled=false")


def test_a_process_that_sleeps_for_ever_ends_the_others(lab: Lab):
    lab.run("slept", *ONCE, until="collect")
    shutil.rmtree(lab.layout("slept").iteration(1).root)
    sleep = """
import faulthandler, time
from isrdpo_jax.stages import collect
faulthandler.dump_traceback_later = lambda *_, **__: None
collect.collect = lambda *_, **__: time.sleep(1e6)
"""
    pair = Together(lab, "slept", *ONCE, "processes.stall_s=25", second=sleep)
    codes = pair.end()
    assert codes[0] == 1 and codes[1] != 0
    said = pair.said(0)
    assert "Timeout (0:00:25)!" in said and "(most recent call first)" in said
    assert 'isrdpo_jax/pipeline.py", line' in said, "the stack of the thread that waits"


def test_processes_that_were_not_started_alike_are_refused(lab: Lab):
    pair = Together(lab, "unlike", *ONCE, second_override="dpo.beta=0.2")
    assert pair.end() == (2, 2)
    for process in range(2):
        assert "process 1 was started with another config than process 0" in pair.said(process)
        assert "Traceback" not in pair.said(process)
    assert not pair.run.config.exists()
