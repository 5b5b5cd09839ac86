from pathlib import Path

import pytest

from fastmoco.configuration import load_config, quote_values
from fastmoco.data.settings import DataConfig
from fastmoco.errors import UsageError
from fastmoco.moco.build import build_model
from fastmoco.reproduce.definition import load_definition, sweep_names
from fastmoco.reproduce.orderings import check_claims
from fastmoco.reproduce.plan import check_measures, combinations, plan_runs, run_config, run_name
from fastmoco.reproduce.settings import Scale, SweepConfig
from fastmoco.reproduce.sweep_job import quote_run
from fastmoco.roofline import step_flops_per_image
from fastmoco.train.settings import TrainConfig
from tests.sweeps import DEFINITION, write_definition


@pytest.mark.parametrize("name", sweep_names())
def test_every_sweep_is_planned_at_both_scales(name):
    """All claims, plots and published values."""
    whole = load_definition(name)
    points = {
        run_name(combination) for scale in Scale for combination in combinations(whole.at(scale))
    }
    assert set(whole.published.values) <= points
    for scale in Scale:
        check_measures(whole.at(scale))
        check_claims(whole.at(scale))


@pytest.mark.parametrize(
    "scale", [Scale.small, pytest.param(Scale.full, marks=pytest.mark.full)], ids=str
)
@pytest.mark.parametrize("name", sweep_names())
def test_every_run_of_a_sweep_composes(name, scale):
    """All overrides of all runs, and of their evaluations."""
    seen = set()
    for run in plan_runs(load_definition(name).at(scale), Path("runs"), [0], []):
        if not set(run.overrides) <= seen:  # composing takes a while
            run_config(run, DataConfig())
        seen |= set(run.overrides)


def test_a_plan_is_the_cross_product_without_what_is_skipped(tmp_path):
    definition = load_definition(str(write_definition(tmp_path))).at(Scale.full)
    runs = plan_runs(definition, tmp_path, [0, 3], ["moco.dim=8", "train.epochs=9"])
    assert [run.label for run in runs] == [
        "0,linear,seed=0",
        "0.90,linear,seed=0",
        "0.90,mlp,seed=0",
        "0,linear,seed=3",
        "0.90,linear,seed=3",
        "0.90,mlp,seed=3",
    ]
    cfg = run_config(runs[-1], DataConfig())
    assert (cfg.moco.momentum, cfg.moco.head, cfg.moco.dim, cfg.seed) == (0.9, "mlp", 8, 3)
    assert cfg.train.epochs == 9  # the user's wins over the definition's
    assert cfg.run_dir == tmp_path / "0.90,mlp,seed=3"


def test_the_sweep_of_fast_moco_spends_as_many_operations_on_each_run():
    runs = plan_runs(load_definition("fast_moco").at(Scale.small), Path("runs"), [0], [])
    spent = {}
    for run in runs[1:3]:
        cfg = run_config(run, DataConfig())
        flops = step_flops_per_image(build_model(cfg.model, cfg.moco), cfg.pipeline.view_size, 8)
        spent[cfg.moco.mechanism.value] = cfg.train.epochs * flops
    assert spent["fast_moco"] == pytest.approx(spent["moco"], rel=0.005)


SMALL = """
small:
  experiment: demo
  settings: [moco.dim=4]
  points: {momentum: ["0.90"]}
  axes: {head: {both: [moco.dim=2], mlp: [moco.head=mlp]}}
  combined: [{points: {momentum: "0.90", head: mlp}, settings: [moco.queue_size=7]}]
  skip: []
  measure: [knn]
  orderings: ["0.90,mlp > 0.90,both"]
"""


def test_the_small_scale_replaces_what_it_names(tmp_path):
    whole = load_definition(str(write_definition(tmp_path, DEFINITION + SMALL)))
    small = whole.at(Scale.small)
    both, mlp = (run_config(run, DataConfig()) for run in plan_runs(small, tmp_path, [0], []))
    assert (both.moco.dim, mlp.moco.dim) == (2, 4)  # an axis wins over settings
    assert both.model.width == 16  # of the preset demo
    assert (both.moco.queue_size, mlp.moco.queue_size) == (64, 7)
    assert both.train.epochs == 2  # of both scales
    assert (small.measure, small.published.orderings) == (["knn"], ["0.90,mlp > 0.90,both"])
    assert len(plan_runs(whole.at(Scale.full), tmp_path, [0], [])) == 3


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("moco.momentum=0.9", "moco.momentun=0.9", "run 0.90,linear: unknown option moco.momentun"),
        ("about: Two axes", "abuot: x", "abuot"),
        ('"0.90":', '"0/9":', "point '0/9' of axis momentum"),
        ("head: mlp}", "head: mpl}", "skip names head: mpl, which is no point"),
        ("> 0.90,linear >", "> 0.9,linear >", "did you mean 0.90,linear?"),
        ("[knn, linear]", "[knn, liner]", "liner"),
        ("lines: head,", "lines: heat,", "the axes are momentum, head"),
        ("y: linear_top1", "y: linear_top", "names the unknown measure linear_top; did"),
        ("axes:", "axes: {}\nother:", "other"),
        (
            "lines: head, x: momentum}",
            "x: parameters}",
            "a plot of bars has parameters as x, which is not an axis",
        ),
        (
            "x: momentum, lines: head",
            "x: head, x_scale: log",
            "point linear of axis head is not a nu",
        ),
    ],
)
def test_a_wrong_definition_gets_one_line(tmp_path, old, new, message):
    path = write_definition(tmp_path, DEFINITION.replace(old, new, 1))

    def check_all():
        definition = load_definition(str(path)).at(Scale.full)
        check_claims(definition)
        for run in plan_runs(definition, tmp_path, [0], []):
            run_config(run, DataConfig())

    with pytest.raises(UsageError) as caught:
        check_all()
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_an_unknown_sweep_gets_the_nearest_name():
    with pytest.raises(UsageError, match="unknown sweep momentun; did you mean momentum"):
        load_definition("momentun")


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("moco.head=mlp", "moco.head is set by axis head of this sweep"),
        ("seed=3", "seed is set by the sweep"),
        ("run_dir=x", "run_dir is set by the sweep"),
    ],
)
def test_options_that_the_sweep_sets_are_refused(tmp_path, option, message):
    definition = load_definition(str(write_definition(tmp_path))).at(Scale.full)
    with pytest.raises(UsageError, match=message):
        plan_runs(definition, tmp_path, [0], [option])


def test_names_of_runs_and_bare_lists_of_seeds_are_read():
    given = quote_run(["run=0.07,mlp,seed=1", "seeds=0,1"])
    cfg = load_config(SweepConfig, quote_values(SweepConfig, given))
    assert (cfg.run, cfg.seeds) == ("0.07,mlp,seed=1", [0, 1])
    assert load_config(SweepConfig, quote_run(["seeds=[2]"])).seeds == [2]
    assert not set(SweepConfig.__slots__) & set(TrainConfig.__slots__)
