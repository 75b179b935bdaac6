"""One registry: the name of a training method -> the law it samples and the estimator it uses.

The same names choose a method on the command line (``--method``), in ``training.fit`` and for a figure's
colours.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from jaxtyping import Float
from torch import Tensor

from hitchhiker import estimators, indicators
from hitchhiker.relaxations.arrival_time import EATPoisson
from hitchhiker.relaxations.common import RelaxedPoisson
from hitchhiker.relaxations.gumbel_softmax import GSMPoisson


@dataclass(frozen=True)
class Method:
    """How a gradient through counts is made.

    Attributes
    ----------
    name : as on the command line.
    law : (log_rate, temperature) -> the law that is sampled.
    estimator : one of :mod:`hitchhiker.estimators`, called as ``estimator(f, law, num_samples)``.
    uses_temperature : whether τ matters; the others sample the true Poisson law.
    max_temperature : the largest τ that the method allows, or None.
    baseline : of the score function; "moving_average" keeps a memory between steps.
    captures : whether a step of it is device work only, so that a CUDA graph can replay it.  GSM looks at the largest
        rate, moment matching at the temperature, a moving average at its count: they run step by step.
    """

    name: str
    law: Callable[[Tensor, Tensor | float], RelaxedPoisson]
    estimator: Callable[..., Tensor]
    uses_temperature: bool = True
    max_temperature: float | None = None
    baseline: str | None = None
    captures: bool = True

    def surrogate(
        self,
        f: Callable[[Tensor], Tensor],
        log_rate: Float[Tensor, "*batch latents"],
        temperature: Tensor | float,
        num_samples: int,
        baseline: estimators.MovingAverage | None = None,
    ) -> Float[Tensor, "*batch"]:
        """Surrogate of E f(z), z with these log-rates: its value estimates it, its gradient is the
        method's."""
        law = self.law(log_rate, temperature if self.uses_temperature else 0.0)
        if self.estimator is not estimators.score_function:
            return self.estimator(f, law, num_samples)
        return estimators.score_function(f, law, num_samples, baseline=baseline or self.baseline)


def _eat(indicator: str) -> Callable[[Tensor, Tensor | float], RelaxedPoisson]:
    return lambda log_rate, temperature: EATPoisson(
        log_rate=log_rate, temperature=temperature, indicator=indicator, validate_args=False
    )


def _gsm(log_rate: Tensor, temperature: Tensor | float) -> RelaxedPoisson:
    return GSMPoisson(log_rate=log_rate, temperature=temperature, validate_args=False)


def _midpoint(f, q, num_samples):
    return estimators.straight_through(f, q, num_samples, correction="midpoint")


def _others() -> list[Method]:
    poisson = _eat("cubic")  # at temperature 0 only its rate is looked at
    return [
        Method("gsm", _gsm, estimators.pathwise, captures=False),
        Method("exact", poisson, estimators.exact, uses_temperature=False),
        Method("difference", poisson, estimators.difference, uses_temperature=False),
        Method("straight-through", poisson, estimators.straight_through, uses_temperature=False),
        Method("straight-through:midpoint", poisson, _midpoint, uses_temperature=False),
        Method("relax", poisson, estimators.relax, captures=False),
        Method("moment-matched", poisson, estimators.moment_matched, max_temperature=1.0, captures=False),
        *(
            Method(
                "score:" + str(baseline).lower().replace("_", "-"),
                poisson,
                estimators.score_function,
                uses_temperature=False,
                baseline=baseline,
                captures=baseline != "moving_average",
            )
            for baseline in estimators.BASELINES
        ),
    ]


def known_methods() -> list[str]:
    """Names of all methods: EAT with each registered indicator, then the others.

    >>> "eat-cubic" in known_methods() and "exact" in known_methods()
    True
    """
    return [f"eat-{name}" for name in indicators.REGISTRY] + [m.name for m in _others()] + ["score"]


def get_method(name: str | Method) -> Method:
    """The method of that name; ``"score"`` is ``"score:moving-average"``, the paper's choice (section G.1).

    ``"difference:n"`` is ``"difference"`` for n random latents a step, for decoders that are not linear.

    Raises ``ValueError`` with the known names.

    >>> get_method("gsm").uses_temperature, get_method("score").baseline
    (True, 'moving_average')
    """
    if isinstance(name, Method):
        return name
    if name.startswith("eat-") and name[4:] in indicators.REGISTRY:
        return Method(name, _eat(name[4:]), estimators.pathwise)
    if name.startswith("difference:") and name[11:].isdigit() and int(name[11:]) > 0:
        some = partial(estimators.difference, coordinates=int(name[11:]))
        return Method(name, _eat("cubic"), some, uses_temperature=False, captures=False)
    wanted = "score:moving-average" if name == "score" else name
    for method in _others():
        if method.name == wanted:
            return method
    raise ValueError(f"method must be one of {', '.join(known_methods())}, got {name!r}")
