"""A local Ray cluster of two workers makes the same bytes as one machine."""

import os
import pathlib

import pytest

pith = pytest.importorskip("pith", reason="the module in build/ is for another Python; run with PITH_PEERS=.venv's version")
ray = pytest.importorskip("ray")
import pith.ray

LM_S = pathlib.Path(os.environ["PITH_SOURCE_DIR"]) / "testdata/lm-s"


def test_two_tasks_make_the_same_bytes(tmp_path):
    options = dict(bits=3.0, calib=LM_S / "calib.txt", calib_sequences=8, fisher_sequences=4, sequence_length=128,
                   eval_chunks=0)
    pith.compress(LM_S, tmp_path / "alone.pith", cache=tmp_path / "cache", **options)
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
    try:
        pith.ray.compress(LM_S, tmp_path / "shared.pith", tasks=2, **options)
    finally:
        ray.shutdown()
    assert (tmp_path / "shared.pith").read_bytes() == (tmp_path / "alone.pith").read_bytes()
    assert not (tmp_path / "shared.pith.work").exists()
