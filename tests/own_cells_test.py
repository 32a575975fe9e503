"""A cell and a task of the user's own, named on the command line of every experiment."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import own_cell
import pytest

import rnn_jax
from experiments import gradient_flow, memory
from experiments.cli.options import UsageError
from experiments.setup.cells import cell_arguments, cell_hparams, factory_named, make_cell
from experiments.setup.sweep import SweepConfig
from experiments.setup.tasks import task_named
from experiments.training.sweep_groups import groups_of
from rnn_jax.cells.registry import CELLS, takes

OWN = "own_cell:antisymmetric"
SWEEP = SweepConfig(
    cell=f"{OWN},elman,gru", cell_args="eps=0.01:0.1:3,gamma=0.1,0.2", gain="0.5,1", seeds=1
)


def test_a_number_of_ones_own_is_an_axis_like_any_other():
    own, elman, gru = groups_of(SWEEP)
    assert own.settings["cell"] == OWN
    assert "activation" not in own.settings
    assert set(own.hparams) == {"eps", "gamma", "input_std"}
    np.testing.assert_allclose(own.hparams["eps"], np.repeat([0.01, 0.055, 0.1], 2))
    np.testing.assert_allclose(own.hparams["gamma"], np.tile([0.1, 0.2], 3))
    # An axis that a cell does not have is left out for it.
    assert set(elman.hparams) == {"gain", "bias_std", "input_std"}
    assert set(gru.hparams) == {"gain", "input_std"}
    assert "cell_args" not in elman.settings


def test_numbers_of_a_cell_of_ours_are_axes_too():
    """Without a line anywhere but in the registry."""
    (group,) = groups_of(
        SweepConfig(cell="lru", cell_args="r_min=0.5,0.9,r_max=0.999", gain="0.5,1", seeds=1)
    )
    assert set(group.hparams) == {"r_min", "r_max", "input_std"}
    np.testing.assert_array_equal(np.unique(group.hparams["r_min"]), [0.5, 0.9])


def test_its_numbers_reach_the_cell_traced_or_not():
    factory = factory_named(OWN)
    arguments = cell_arguments(factory, "eps=0.3,depth=2")
    assert arguments == ({"depth": 2}, {"eps": [0.3]})
    cell = make_cell(factory, 4, {"eps": 0.3}, fixed=arguments.fixed)
    params = cell.init(jax.random.key(0), 2)
    assert params["eps"] == jnp.float32(0.3)
    traced = jax.jit(
        lambda eps: make_cell(factory, 4, {"eps": eps}).init(jax.random.key(0), 2)["eps"]
    )
    assert traced(0.7) == jnp.float32(0.7)


def test_memory_and_gradient_flow_take_it():
    config = memory.MemoryConfig(
        cell=OWN, cell_args="eps=0.2", task="own_cell:sum_of_two", length="9", hidden_size=6
    )
    (group,) = memory.groups_of(config)
    hparams, key = {"learning_rate": jnp.float32(0.1)}, jax.random.key(0)
    state = jax.jit(group.program.algorithm.init)(hparams, key)
    assert state.params.cell["eps"] == jnp.float32(0.2)
    flow = gradient_flow.FlowConfig(cell=OWN, cell_args="eps=0.2", hidden_size=6, length=5)
    network = gradient_flow.network_of(flow)
    assert network.params["eps"] == jnp.float32(0.2)
    assert network.xs.shape == (5, 16, 1)


def test_every_cell_of_the_registry_is_made_from_its_name():
    for name, factory in CELLS.items():
        hparams = dict.fromkeys(cell_hparams(factory), 0.5)
        cell = make_cell(factory_named(name), 3, hparams)
        assert isinstance(cell, rnn_jax.Cell)
        # Where W is square and drawn by a name, its scale is an axis.
        assert ("gain" in hparams) == takes(factory, "recurrent_init")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"cell": "rnn"}, "--cell=rnn: take one of elman, leaky, layer_norm, lstm, gru, antisym"),
        ({"cell": "no_module:cell"}, "--cell=no_module:cell: module no_module cannot be imported"),
        ({"cell": "own_cell:none"}, "--cell=own_cell:none: module own_cell has no function none"),
        ({"cell": "own_cell:no cell"}, "give module:function, such as my_module:my_cell"),
        ({"cell": "own_cell:without_size"}, "without_size(units) has no argument hidden_size"),
        ({"cell": "own_cell:no_cell"}, "returned int, but an rnn_jax.Cell is wanted"),
        ({"cell": OWN, "cell_args": "delta=1"}, "has no argument delta; it has eps, gamma, depth"),
        ({"cell": OWN, "cell_args": "0.1"}, "--cell_args=0.1: give name=value"),
        ({"cell": OWN, "cell_args": "eps=1,eps=2"}, "eps is there twice"),
        ({"cell": OWN, "cell_args": "eps=fast"}, "'fast' is not a finite number"),
        ({"cell": OWN, "cell_args": "eps=0.1,0.2"}, "eps has 2 values, but only a sweep"),
        ({"task": "adding_up"}, "--task=adding_up: take one of adding, copy_memory"),
        ({"task": "own_cell:antisymmetric"}, "it returned Cell, but a Task"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(changes, said):
    config = dataclasses.replace(memory.MemoryConfig(length="9", hidden_size=6), **changes)
    with pytest.raises(UsageError) as error:
        memory.run(config)
    assert said in str(error.value)
    assert "\n" not in str(error.value)


def test_an_argument_that_no_cell_of_a_sweep_has():
    with pytest.raises(UsageError, match="no cell of --cell has an argument epsilom"):
        groups_of(dataclasses.replace(SWEEP, cell_args="epsilom=1"))


def test_a_task_of_ones_own():
    assert task_named("own_cell:sum_of_two", 9, 4).name == "sum of two"
    assert own_cell.sum_of_two(9, 4).output_size == 1
