"""The paper's 35 workloads: what its archive's description says, and studies made of it."""

import numpy as np
import pytest

import batchscale as bs
from batchscale import workloads
from batchscale.workloads import paper

# Of the archive's description: the number of batch sizes, the smallest and the largest.
STUDIES = {
    ("cifar_10", "resnet_8", "nesterov"): (13, 2, 8192),
    ("cifar_10", "resnet_8", "sgd"): (13, 2, 8192),
    ("common_crawl", "transformer_base", "nesterov"): (6, 32, 16_384),
    ("fashion_mnist", "simple_cnn_base", "nesterov"): (9, 2, 55_000),
    ("imagenet", "resnet_50", "nesterov"): (11, 64, 65_536),
    ("imagenet", "vgg_11", "nesterov"): (11, 32, 65_536),
    ("imagenet_half_classes", "resnet_50", "nesterov"): (10, 64, 32_768),
    ("imagenet_half_images", "resnet_50", "nesterov"): (10, 64, 32_768),
    ("lm1b", "lstm", "nesterov"): (7, 16, 32_768),
    ("lm1b", "transformer_base", "nesterov"): (12, 16, 32_768),
    ("lm1b", "transformer_narrow_and_shallow", "nesterov"): (12, 16, 32_768),
    ("lm1b", "transformer_shallow", "momentum"): (6, 32, 32_768),
    ("lm1b", "transformer_shallow", "nesterov"): (12, 16, 32_768),
    ("lm1b", "transformer_shallow", "sgd"): (5, 32, 8192),
    ("lm1b", "transformer_wide", "nesterov"): (12, 16, 32_768),
    **{
        ("mnist", f"fc_{widths}", "sgd"): (17, 1, 55_000)
        for widths in ("1024", "1024_1024", *(f"{w}_{w}_{w}" for w in (64, 128, 256, 512)))
    },
    ("mnist", "fc_1024_1024_1024", "sgd"): (17, 1, 55_000),
    ("mnist", "fc_2048_2048_2048", "sgd"): (17, 1, 55_000),
    ("mnist", "simple_cnn_base", "momentum"): (17, 1, 55_000),
    ("mnist", "simple_cnn_base", "nesterov"): (10, 1, 55_000),
    ("mnist", "simple_cnn_base", "sgd"): (17, 1, 55_000),
    ("mnist", "simple_cnn_narrow", "sgd"): (17, 1, 55_000),
    ("mnist", "simple_cnn_wide", "sgd"): (16, 1, 32_768),
    ("mnist_13750", "simple_cnn_base", "nesterov"): (15, 1, 13_750),
    ("mnist_27500", "simple_cnn_base", "nesterov"): (16, 1, 27_500),
    ("mnist_55000", "simple_cnn_base", "nesterov"): (17, 1, 55_000),
    ("mnist_6875", "simple_cnn_base", "nesterov"): (14, 1, 6_875),
    ("open_images_v4", "resnet_50", "nesterov"): (10, 64, 32_768),
    ("solution_quality/fashion_mnist", "simple_cnn_base", "nesterov"): (10, 1, 55_000),
    ("solution_quality/mnist", "simple_cnn_base", "nesterov"): (10, 1, 55_000),
}


def test_there_are_35_with_the_batch_sizes_of_the_archive():
    found = {
        (p.data_set, p.model, p.optimizer): (
            len(p.batch_sizes),
            p.batch_sizes[0],
            max(p.batch_sizes),
        )
        for p in paper.ALL
    }
    assert len(STUDIES) == len(paper.ALL) == 35
    assert found == STUDIES
    assert all(list(p.batch_sizes) == sorted({*p.batch_sizes}) for p in paper.ALL)
    # 100 trials everywhere, but for three.
    few = {(p.model, p.optimizer) for p in paper.ALL if p.trials == 50}
    base, shallow = "transformer_base", "transformer_shallow"
    assert few == {("lstm", "nesterov"), (base, "nesterov"), (shallow, "sgd")}


def test_the_space_of_resnet_50_is_that_of_the_archives_example():
    space = workloads.protocol("imagenet/resnet_50", "nesterov").space.at(256, 600_000)
    assert space == bs.SearchSpace(
        learning_rate=bs.LogUniform(1e-4, 10),
        momentum=bs.ReverseLogUniform(0.9, 0.9999),
        learning_rate_decay_steps=bs.Uniform(300_000, 600_000),
        end_learning_rate_factor=bs.LogUniform(1e-4, 0.1),
        label_smoothing=bs.Choice([0, 0.01, 0.1]),
    )


@pytest.mark.parametrize(
    "one",
    [p for p in paper.ALL if p.train_examples is not None and p.data_set != "lm1b"],
    ids=lambda p: f"{p.data_set}/{p.model} {p.optimizer}",
)
def test_what_is_small_makes_a_study(one):
    name = f"{one.data_set}/{one.model}"
    study = bs.Study.of_paper(name, one.optimizer, max_steps=1000)
    assert study.definition().batch_sizes == list(one.batch_sizes)
    assert study.workload.train_examples == one.train_examples


def test_what_is_large_makes_a_study_before_its_data_are_here():
    study = bs.Study.of_paper("lm1b/transformer_shallow", "sgd", max_steps=1000)
    assert study.workload.train_examples == 30_301_028


def test_each_part_of_the_papers_study_can_be_replaced():
    name, space = "mnist/fc_1024", bs.SearchSpace(learning_rate=bs.LogUniform(0.1, 1))
    study = bs.Study.of_paper(name, "sgd", max_steps=50, trials=7, space=space, batch_sizes=[4, 8])
    assert (study.trials, study.space, study.batch_sizes) == (7, space, [4, 8])
    assert study.goal == bs.Goal("validation/error", 0.03)
    with pytest.raises(ValueError, match="max_steps, max_epochs: got None and None"):
        bs.Study.of_paper(name, "sgd")
    with pytest.raises(TypeError, match="'steps'"):
        bs.Study.of_paper(name, "sgd", steps=50)


def test_what_is_not_the_papers_is_refused():
    with pytest.raises(ValueError, match="the paper measured 'lm1b/transformer_shallow' with mom"):
        workloads.protocol("lm1b/transformer_shallow", "adam")
    with pytest.raises(ValueError, match="'mnist/lstm', which is none of the paper's"):
        workloads.protocol("mnist/lstm", "sgd")


def test_a_protocol_goes_by_either_name():
    ours, theirs = (workloads.protocol(f"{n}/resnet_8", "sgd") for n in ("cifar10", "cifar_10"))
    assert ours == theirs
    assert workloads.protocol("mnist_55000/simple_cnn_base", "nesterov").goal.value == 0.02
    table = workloads.protocols()
    assert np.isnan(table.set_index("workload").loc["imagenet/vgg_11", "train_examples"])
