"""A student's feedback page and the class's summary: plain HTML that needs nothing else and reads well on a phone."""

from __future__ import annotations

import functools
import io
import re
from collections import Counter
from collections.abc import Mapping
from html import escape
from typing import Any
from urllib.parse import quote

from markdown_it import MarkdownIt
from mdit_py_plugins.dollarmath import dollarmath_plugin

from hitchhiker.course import source

Result = Mapping[str, Any]

STYLE = """
:root { color-scheme: light dark; --line: #8884; --soft: #8881; --right: #1a7f4b; --wrong: #c8342b; }
@media (prefers-color-scheme: dark) { :root { --right: #5fd08f; --wrong: #ff8a80; } }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 46rem; margin: 0 auto; padding: 1rem; overflow-wrap: anywhere; }
h1 { font-size: 1.5rem; line-height: 1.2; margin-bottom: .2rem } h2 { font-size: 1.15rem; margin: 2rem 0 .3rem }
.score { font-size: 1.15rem } .note { border-left: 4px solid var(--wrong); background: var(--soft); padding: .5rem .8rem }
ul.tests { list-style: none; padding: 0 } ul.tests li { border-top: 1px solid var(--line); padding: .35rem 0 }
.right { color: var(--right) } .wrong { color: var(--wrong) }
pre { white-space: pre-wrap; background: var(--soft); padding: .6rem .8rem; font: inherit; margin: .4rem 0 }
pre.code, .text code { font-family: ui-monospace, monospace; font-size: .85em }
pre.code { max-height: 30rem; overflow: auto } .text { background: var(--soft); padding: .1rem .8rem; overflow-x: auto }
.math.block { text-align: center; margin: .5rem 0 } .math.block code { white-space: pre-wrap }
table { border-collapse: collapse; width: 100% }
th, td { text-align: left; border-top: 1px solid var(--line); padding: .3rem .5rem }
th { overflow-wrap: normal }
td.number, th.number { text-align: right; font-variant-numeric: tabular-nums } .wide { overflow-x: auto }
td { vertical-align: top } svg { max-width: 100%; height: auto; background: #fff } footer { margin: 3rem 0 1rem; opacity: .7 }
""".strip()


def points(result: Result) -> dict[str, float]:
    """Points of each coding question."""
    earned: Counter[str] = Counter()
    for outcome in result["outcomes"]:
        earned[outcome["question"]] += outcome["earned"]
    return dict(earned)


def _page(title: str, body: list[str]) -> str:
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{STYLE}</style></head><body>\n" + "\n".join(body) + "\n</body></html>\n"
    )


@functools.cache
def _parser() -> MarkdownIt:
    """CommonMark with tables and formulas; HTML stays text, and nothing is loaded from anywhere."""
    parser = MarkdownIt("commonmark", {"html": False}).enable("table")
    parser.use(dollarmath_plugin, allow_digits=False, renderer=lambda text, _: f"<code>{escape(text.strip())}</code>")
    parser.add_render_rule("image", lambda *_: "<em>(a picture: see the notebook)</em>")
    return parser


def markdown(text: str) -> str:
    """Markdown that somebody wrote, as HTML that is safe to show; formulas stay as they were typed."""
    return f'<div class="text">{_parser().render(text)}</div>'


def feedback(
    problem: source.ProblemSet,
    student: str,
    result: Result,
    marks: tuple[Mapping[str, float], Mapping[str, str]] = ({}, {}),
    notebook: str | None = None,
) -> str:
    """One student's page: what passed, what failed and why, the written answers beside their rubric.

    ``marks`` are points and comments of the written questions, ``notebook`` the way from the page to the notebook.
    """
    given, comments = marks
    body = [
        f"<h1>{escape(problem.title)}</h1>",
        f"<p>{escape(student)} · {escape(problem.name)}, variant {problem.variant}</p>",
        _totals(problem, points(result), given),
        *(f'<p class="note">{escape(note)}</p>' for note in result["notes"]),
    ]
    for question in problem.questions.values():
        if question.kind == "coding":
            body += _coding(question, result)
        else:
            body += _by_hand(question, result, given.get(question.number), comments.get(question.number))
    link = f' <a href="{escape(quote(notebook))}">The notebook that was graded.</a>' if notebook else ""
    seconds = f"Your notebook ran for {result['seconds']:.0f} seconds. Hidden tests are not shown."
    body.append(f"<footer>{seconds}{link}</footer>")
    return _page(f"{problem.name}: {student}", body)


def _totals(problem: source.ProblemSet, earned: Mapping[str, float], given: Mapping[str, float]) -> str:
    coding = sum(q.points for q in problem.questions.values() if q.kind == "coding")
    by_hand = sum(q.points for q in problem.questions.values() if q.kind != "coding")
    got, marked = sum(earned.values()), sum(given.values())
    text = f"<strong>{got + marked:g} of {coding + by_hand:g} in all</strong>: {got:g} of {coding:g} for code"
    if given:
        text += f", {marked:g} of {by_hand:g} for written answers"
    if waiting := sum(q.points for q in problem.questions.values() if q.kind != "coding" and q.number not in given):
        text += f"; {waiting:g} points wait for a person who reads the answers"
    return f'<p class="score">{text}</p>'


def _head(question: source.Question, kind: str, got: str) -> str:
    parts = [f"{question.number} {question.title}".strip(), kind, f"{got} of {question.points:g}"]
    return f"<h2>{escape(' · '.join(filter(None, parts)))}</h2>"


def _coding(question: source.Question, result: Result) -> list[str]:
    body = [_head(question, "", f"{points(result).get(question.number, 0):g}"), '<ul class="tests">']
    for outcome in (o for o in result["outcomes"] if o["question"] == question.number):
        passed = not outcome["message"]
        mark = '<span class="right">✓ passed</span>' if passed else '<span class="wrong">✗ failed</span>'
        body.append(f"<li>{mark} · {escape(outcome['name'])}, {outcome['points']:g} points")
        body[-1] += "</li>" if passed else f"<pre>{escape(outcome['message'])}</pre></li>"
    return [*body, "</ul>"]


def _by_hand(question: source.Question, result: Result, got: float | None, comment: str | None) -> list[str]:
    body = [_head(question, question.kind, "—" if got is None else f"{got:g}")]
    answer = result["answers"].get(question.number, "")
    body.append(f"<p>Your answer</p>{markdown(answer[:20_000])}" if answer else "<p>No answer was found.</p>")
    for part in result.get("work", {}).get(question.number, []):
        body.append(f'<p>Your code</p><pre class="code">{escape(part["code"])}</pre>')
        if part["printed"].strip():
            body.append(f'<p>It printed, when it was graded,</p><pre class="code">{escape(part["printed"])}</pre>')
        if part["error"]:
            body.append(f'<p class="note">{escape(part["error"])}</p>')
    if comment:
        body.append(f"<p>Comment</p>{markdown(comment)}")
    return [*body, f"<p>How it is graded</p>{markdown(question.rubric)}"]


def summary(
    problem: source.ProblemSet, results: Mapping[str, Result], scores: Mapping[str, Mapping[str, float]]
) -> str:
    """The class at a glance: points a question, the most common failures, one line a student."""
    coding = [q for q in problem.questions.values() if q.kind == "coding"]
    body = [f"<h1>{escape(problem.title)}</h1>"]
    body.append(f"<p>{len(results)} submissions of {escape(problem.name)}, variant {problem.variant}</p>")
    body.append(_plot(problem, results))
    body.append("<h2>Common failures</h2>")
    failures: Counter[tuple[str, str]] = Counter()
    for result in results.values():
        # a student who fails two tests for one reason counts once
        messages = ((o["question"], _kind(o["message"])) for o in result["outcomes"])
        failures.update({(number, message) for number, message in messages if message})
    body.append(
        '<div class="wide"><table><tr><th class="number">students</th><th>question</th><th>what went wrong</th></tr>'
    )
    for (number, message), count in sorted(failures.items(), key=lambda item: (-item[1], item[0]))[:20]:
        body.append(f'<tr><td class="number">{count}</td><td>{escape(number)}</td><td>{escape(message)}</td></tr>')
    body.append("</table></div>")
    body.append("<h2>Students</h2>")
    heads = "".join(f'<th class="number">{escape(q.number)}</th>' for q in coding)
    body.append(
        f'<div class="wide"><table><tr><th>name</th>{heads}<th class="number">code</th><th class="number">written</th>'
        '<th class="number">total</th></tr>'
    )
    for student, result in results.items():
        earned = points(result)
        cells = "".join(f'<td class="number">{earned.get(q.number, 0):g}</td>' for q in coding)
        given = f"{sum(scores[student].values()):g}" if scores.get(student) else "—"
        total = sum(earned.values()) + sum(scores.get(student, {}).values())
        link = f'<a href="feedback/{quote(student)}.html">{escape(student)}</a>'
        notes = f"<br><small>{escape(result['notes'][0][:160])}</small>" if result["notes"] else ""
        body.append(
            f'<tr><td>{link}{notes}</td>{cells}<td class="number">{sum(earned.values()):g}</td>'
            f'<td class="number">{given}</td><td class="number">{total:g}</td></tr>'
        )
    body.append("</table></div>")
    return _page(f"{problem.name}: the class", body)


def _kind(message: str) -> str:
    """A failure's message without what differs from notebook to notebook."""
    if message == "not graded":
        return ""
    if "NotImplementedError" in message or "still three dots" in message:
        return "not attempted"
    return re.sub(r" \(in your cell .*", "", message.split("\n")[0])[:200]


def _plot(problem: source.ProblemSet, results: Mapping[str, Result]) -> str:
    """Points a question (each student a dot, the mean a bar) and the total, as one inline SVG."""
    from matplotlib.figure import Figure

    coding = [q for q in problem.questions.values() if q.kind == "coding"]
    earned = [points(result) for result in results.values()]
    fig = Figure(figsize=(7, 3.2), layout="constrained")
    left, right = fig.subplots(1, 2, width_ratios=[3, 2])
    means = [sum(e.get(q.number, 0) for e in earned) / len(earned) / q.points for q in coding]
    places = range(len(coding))
    left.bar(places, means, color="#a9cce3", width=0.7)
    for place, question in enumerate(coding):
        for share, count in Counter(e.get(question.number, 0) / question.points for e in earned).items():
            left.plot(place, share, "o", color="#1f6fb4", ms=3 + 1.5 * count**0.5)
    left.set_xticks(list(places), [q.number for q in coding])
    left.set(ylim=(-0.05, 1.05), ylabel="share of the points", title="Points a question (bar: mean)")
    most = sum(q.points for q in coding)
    right.hist(
        [sum(e.values()) for e in earned], bins=[most * k / 10 for k in range(11)], color="#1f6fb4", edgecolor="white"
    )
    right.set(xlabel=f"points for code, of {most:g}", ylabel="students", title="Total")
    right.yaxis.get_major_locator().set_params(integer=True)
    for ax in (left, right):
        ax.spines[["top", "right"]].set_visible(False)
    text = io.StringIO()
    fig.savefig(text, format="svg", metadata={"Date": None})
    worst = min(zip(means, (q.number for q in coding), strict=True), default=(0, "none"))
    alt = f"Mean share of the points for each question; the lowest is {worst[1]} with {worst[0]:.0%}."
    svg = text.getvalue()
    return svg[svg.index("<svg") :].replace("<svg ", f'<svg role="img" aria-label="{escape(alt)}" ', 1)
