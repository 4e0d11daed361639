"""Whether a method has enough noisy steps at every update of a suite's budget."""

from __future__ import annotations

from functools import partial

from torch import Tensor

from bench.algorithm.forward import checked_decay, noise_levels
from bench.algorithm.sampling import RolloutConfig
from bench.algorithm.steps import noisy_steps, step_weights, trainable_steps, trained_steps
from bench.api import AnyMethod, ForwardMethod, Method
from bench.core.errors import BenchError
from bench.flow import sigma_schedule
from bench.suite.methods import rollout_config
from bench.suite.schema import Suite


def check_steps(method: AnyMethod, suite: Suite) -> None:
    """Ask the method for its noisy and its trained steps and their weights at every update and seed, as rollouts will.

    A forward method is asked for its noise levels and for how its old policy follows.

    Raises a `BenchError` where a rollout would, with the number of the update. A method that keeps the interface's own
    choice of steps is asked once, since that does not depend on the update.
    """
    if isinstance(method, ForwardMethod):
        constant, hooks, ask = False, "noise_levels and old_decay", partial(_ask_forward, method)
    else:
        assert isinstance(method, Method)
        constant, hooks = _keeps_steps(method), "stochastic, train_steps and step_weights"
        ask = partial(_ask_steps, method, sigma_schedule(suite.budget.steps, suite.budget.shift))
    for seed in suite.seeds[:1] if constant else suite.seeds:
        config = rollout_config(suite, seed)
        for update in range(1 if constant else suite.budget.updates):
            try:
                ask(config, update)
            except BenchError:
                raise
            except Exception as cause:
                raise BenchError(
                    f"{type(method).__name__} raises {type(cause).__name__} at update {update} of the budget "
                    f"({cause}): fix its hooks {hooks}."
                ) from cause


def _keeps_steps(method: Method) -> bool:
    """Whether the method keeps the interface's own choice of steps, which does not depend on the update."""
    cls = type(method)
    return cls.stochastic is Method.stochastic and cls.train_steps is Method.train_steps


def _ask_steps(method: Method, sigmas: Tensor, config: RolloutConfig, update: int) -> None:
    noisy = noisy_steps(method, sigmas, config, update)
    trained_steps(method, sigmas, noisy, config, update)
    step_weights(method, sigmas, trainable_steps(noisy, config))


def _ask_forward(method: ForwardMethod, config: RolloutConfig, update: int) -> None:
    noise_levels(method, config, update)
    checked_decay(method, update)
