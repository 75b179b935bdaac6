"""book/handout.md, the main formulae on one sheet: the text is _ext/handout.md, the formulae come from the module.

    python book/_ext/handout.py            # the page as Markdown
    python book/_ext/handout.py --write    # book/handout.md, after a change of the text or of the module

What sympy can derive is derived when the page is made and printed by ``sympy.latex``; tests/test_handout.py checks the
rest against the module.
"""

from __future__ import annotations

import functools
import re
import sys
from pathlib import Path
from typing import Any

import sympy as sp
from sympy.functions.combinatorial.numbers import stirling

from hitchhiker import indicators, symbolic, truncation
from hitchhiker.symbolic import lam, tau, u

BOOK = Path(__file__).resolve().parents[1]
PAGE = BOOK / "handout.md"
TEMPLATE = BOOK / "_ext" / "handout.md"
NOTE = "<!-- made by `python book/_ext/handout.py --write` from _ext/handout.md: change it there -->\n"
Expression = Any  # sympy ships no types

A, B, J2, N, S, V, k = sp.symbols("A B J_2 N S V k", positive=True)
beta = sp.Symbol("beta", real=True)
N2 = sp.Symbol("N'", positive=True)  # a second count, independent of the first


# ---------------------------------------------------------------- derived here


def poisson_mean(polynomial: Expression) -> Expression:
    """E of a polynomial in the independent counts ``N`` and ``N'``: E N^k is a Touchard polynomial in λ.

    >>> poisson_mean(N**2), poisson_mean((N - N2) ** 2)
    (lambda**2 + lambda, 2*lambda)
    """
    moment = lambda n: sum(stirling(n, j) * lam**j for j in range(n + 1))  # noqa: E731
    terms = sp.Poly(sp.expand(polynomial), N, N2).terms()
    return sp.expand(sum(c * moment(i) * moment(j) for (i, j), c in terms))


def square_errors() -> dict[str, tuple[Expression, Expression]]:
    """Bias and variance of one sample of each estimator of d/dλ E N².

    Exact for integer samples; to leading order for the two soft ones, of which the variance times τ is given.
    """
    exact = sp.diff(poisson_mean(N**2), lam)

    def hard(estimate: Expression) -> tuple[Expression, Expression]:
        mean = poisson_mean(estimate)
        return sp.expand(mean - exact), sp.expand(poisson_mean(estimate**2) - mean**2)

    score = N / lam - 1
    # cold EAT: one arrival in the window, at s uniform on [-1, 1], and the slope 2(N + f) f'/(τλ)
    f = symbolic.expression("cubic")
    noise = poisson_mean(sp.integrate(sp.expand((2 * (N + f) * sp.diff(f, u)) ** 2), (u, -1, 1))) / lam
    eat_bias = sp.diff(lam**2 + lam * symbolic.variance_factor("cubic"), lam) - exact
    # cold GSM: the two best scores are of counts N and N', the weight between them is y = σ(x), and σ' dx = dy
    y = sp.Symbol("y")
    z, spread = N2 + (N - N2) * y, (N - N2) ** 2
    tie = sp.integrate(sp.expand((2 * z * spread) ** 2 * y * (1 - y)), (y, 0, 1)) / 2
    gsm_noise = poisson_mean(tie) / lam**2
    # ∫_0^∞ of z² + z'² - N² - N'² = -2(N - N')² y(1 - y) over x, halved: each unordered pair is counted twice
    gsm_bias = sp.diff(-tau * poisson_mean(spread) * sp.integrate(1, (y, sp.Rational(1, 2), 1)), lam)
    return {
        "pathwise": (sp.expand(eat_bias), sp.expand(noise)),
        "gsm": (gsm_bias, sp.expand(gsm_noise)),
        "score": hard(N**2 * score),
        "baseline": hard((N**2 - poisson_mean(N**2)) * score),
        "difference": hard((N + 1) ** 2 - N**2),
        "straight": hard(2 * N),
        "midpoint": hard(2 * N + 1),
    }


def poisson_kl() -> Expression:
    """E of the log-ratio of two Poisson pmfs, which is linear in the count: nats."""
    ratio = sp.Symbol("q")  # ln(λ/r), so that it stays one logarithm
    return poisson_mean(N * ratio - lam + symbolic.r).subs(ratio, sp.log(lam / symbolic.r))


def best_temperature() -> Expression:
    """The cube of the τ at which β²τ² + V/(Sτ) is least."""
    slope = sp.diff(beta**2 * tau**2 + V / (S * tau), tau)
    (cube,) = sp.solve(sp.expand(slope * tau**2).subs(tau**3, k), k)
    return cube


def cumulant() -> Expression:
    """Campbell's theorem for a soft count, as an integral that is not yet done."""
    return lam * tau * sp.Integral(sp.Function("f")(u) ** k, (u, -sp.oo, 1 / tau))


def sigmoid_factors() -> tuple[Expression, Expression]:
    """c and v of the sigmoid in the paper's form, 1 + τ ln(1 + e^{-1/τ}) and c - τσ(1/τ)."""
    mean = 1 + tau * sp.log(1 + sp.exp(-1 / tau))
    return mean, sp.Symbol("c") + symbolic.variance_factor("sigmoid") - symbolic.mean_factor("sigmoid")


# ---------------------------------------------------------------- the page


def tex(expression: Expression) -> str:
    return sp.latex(expression, ln_notation=True).replace(r"\limits", "")


def indicator_rows() -> str:
    """One row an indicator: f, A, B, J₂ and κ₄/λ."""
    rows = []
    for name, soft in indicators.REGISTRY.items():
        cells = [sp.sympify(soft.formula), symbolic.deficit(name), symbolic.roughness(name)]
        if soft.is_compact:
            cells += [symbolic.outer_roughness(name), symbolic.cumulant_factor(name, 4)]
        shown = [f"${tex(sp.together(c) if c.has(sp.pi) else c)}$" for c in cells]
        rows.append(f"| {name} | " + " | ".join(shown + ["–"] * (5 - len(shown))) + " |")
    return "\n".join(rows)


def readme_example() -> str:
    """The README's eight lines: a test runs them there."""
    text = (BOOK.parent / "README.md").read_text(encoding="utf-8")
    found = re.search(r"```python\n(.*?)```", text, re.S)
    assert found
    return found[1].strip()


@functools.cache
def values() -> dict[str, str]:
    """What stands in place of each ``<<name>>`` of the text."""
    mean, spread = sigmoid_factors()
    found = {
        "cumulant": tex(cumulant()),
        "sigmoid_mean": tex(mean),
        "sigmoid_variance": tex(spread),
        "cubic_hot": tex(symbolic.mean_factor("cubic", "hot")),
        "gradient_variance": tex((B + tau**2 * J2) / (tau * lam)),
        "best_temperature": tex(best_temperature()),
        "best_square": tex(best_temperature().subs(beta, -A)),
        "truth": tex(sp.diff(poisson_mean(N**2), lam)),
        "kl": tex(poisson_kl()),
        "indicators": indicator_rows(),
        "example": readme_example(),
    }
    for name, (bias, noise) in square_errors().items():
        found |= {f"{name}_bias": tex(bias), f"{name}_noise": tex(noise)}
    for name, value in {
        "paper_num": truncation.paper_num_arrivals(100.0),
        "cubic_num": truncation.num_arrivals(100.0, 0.5, "cubic"),
        "sigmoid_num": truncation.num_arrivals(100.0, 0.5, "sigmoid"),
        "categories": truncation.num_categories(100.0, 0.5),
    }.items():
        found[name] = str(value)
    return found


def page() -> str:
    """The whole page; a name in the template without a value, or the reverse, is a ``ValueError``."""
    found = values()
    text = TEMPLATE.read_text(encoding="utf-8")
    wanted = set(re.findall(r"<<(\w+)>>", text))
    if wanted != set(found):
        raise ValueError(f"the template and its values differ by {sorted(wanted ^ set(found))}")
    return NOTE + re.sub(r"<<(\w+)>>", lambda match: found[match[1]], text)


if __name__ == "__main__":
    if "--write" in sys.argv:
        PAGE.write_text(page(), encoding="utf-8")
    else:
        print(page(), end="")
