"""How often XLA compiles: bounded by batch-size classes, not by trials or hyperparameters."""

import pytest
from helpers import compiled, study

from batchscale.workloads import coupling
from experiments import digits


@pytest.fixture(autouse=True)
def _as_if_others_had_come_first(square, tmp_path):
    """Small operations are compiled once a process, and whether examples mix once a workload."""
    study(square, batch_sizes=[16], max_steps=20).run(tmp_path / "first", progress=False)
    coupling._mixes.cache_clear()


@pytest.mark.slow
def test_the_digits_study_compiles_once_a_batch_size_class_and_eight_times_besides(tmp_path):
    some = digits.study("nesterov", trials=16)
    with compiled() as programs:
        some.run(tmp_path / "digits", progress=False)
    # A segment for every batch size, of which 512 and 1,024 share one (microbatches of 256);
    # the start; the draw of examples; an evaluation of each of the three splits; of how many the
    # goal's metric counts some; the loss of single examples, and whether it sees each by itself.
    assert len(programs) == len(some.resolved_batch_sizes()) - 1 + 8


def test_batch_sizes_of_one_class_share_a_program(square, tmp_path):
    # Microbatches of 8: the same program for all. Whether examples mix is found once a workload.
    for sizes, count in (([16], 9), ([16, 32, 64], 7)):
        some = study(square, batch_sizes=sizes, microbatch=8, max_steps=20, stop="budget")
        with compiled() as programs:
            some.run(tmp_path / str(len(sizes)), progress=False)
        assert len(programs) == count
