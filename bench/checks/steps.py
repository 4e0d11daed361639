"""Whether a method has enough noisy steps at every update of a suite's budget."""

from __future__ import annotations

from bench.algorithm.rollout import noisy_steps, trained_steps
from bench.api import Method
from bench.core.errors import BenchError
from bench.flow import sigma_schedule
from bench.suite.methods import rollout_config
from bench.suite.schema import Suite


def check_steps(method: Method, suite: Suite) -> None:
    """Ask the method for its noisy and its trained steps at every update and seed, as the rollouts will.

    Raises a `BenchError` where a rollout would, with the number of the update. A method that keeps the interface's own
    choice of steps is asked once, since that does not depend on the update.
    """
    cls = type(method)
    constant = cls.stochastic is Method.stochastic and cls.train_steps is Method.train_steps
    sigmas = sigma_schedule(suite.budget.steps, suite.budget.shift)
    for seed in suite.seeds[:1] if constant else suite.seeds:
        config = rollout_config(suite, seed)
        for update in range(1 if constant else suite.budget.updates):
            try:
                trained_steps(method, sigmas, noisy_steps(method, sigmas, config, update), config, update)
            except BenchError:
                raise
            except Exception as cause:
                raise BenchError(
                    f"{cls.__name__} raises {type(cause).__name__} at update {update} of the budget ({cause}): fix "
                    "its hooks stochastic and train_steps."
                ) from cause
