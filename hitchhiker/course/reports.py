"""A student's feedback page and the class's summary: plain HTML that needs nothing else and reads well on a phone."""

from __future__ import annotations

import io
import re
from collections import Counter
from collections.abc import Mapping
from html import escape
from typing import Any
from urllib.parse import quote

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


def feedback(problem: source.ProblemSet, student: str, result: Result, scores: Mapping[str, float]) -> str:
    """One student's page: what passed, what failed and why, the written answers beside their rubric."""
    earned = points(result)
    coding = [q for q in problem.questions.values() if q.kind == "coding"]
    by_hand = [q for q in problem.questions.values() if q.kind != "coding"]
    got, most = sum(earned.values()), sum(q.points for q in coding)
    body = [
        f"<h1>{escape(problem.title)}</h1>",
        f"<p>{escape(student)} · {escape(problem.name)}, variant {problem.variant}</p>",
    ]
    body.append(f'<p class="score"><strong>{got:g} of {most:g}</strong> points for code')
    if scores:
        body[-1] += (
            f", <strong>{sum(scores.values()):g} of {sum(q.points for q in by_hand):g}</strong> for written answers"
        )
    elif by_hand:
        body[-1] += f"; the written answers ({sum(q.points for q in by_hand):g} points) are read by a person"
    body[-1] += "</p>"
    body += [f'<p class="note">{escape(note)}</p>' for note in result["notes"]]
    for question in problem.questions.values():
        if question.kind == "coding":
            body.append(
                f"<h2>{escape(question.number)} · {earned.get(question.number, 0):g} of {question.points:g}</h2>"
            )
            body.append('<ul class="tests">')
            for outcome in (o for o in result["outcomes"] if o["question"] == question.number):
                passed = not outcome["message"]
                mark = '<span class="right">✓ passed</span>' if passed else '<span class="wrong">✗ failed</span>'
                body.append(f"<li>{mark} · {escape(outcome['name'])}, {outcome['points']:g} points")
                body[-1] += "</li>" if passed else f"<pre>{escape(outcome['message'])}</pre></li>"
            body.append("</ul>")
        else:
            got_it = f"{scores[question.number]:g}" if question.number in scores else "—"
            kind = "written" if question.kind == "written" else "open"
            body.append(f"<h2>{escape(question.number)} · {kind} · {got_it} of {question.points:g}</h2>")
            answer = result["answers"].get(question.number, "").strip()
            empty = not answer or answer == f"*Your answer to {question.number}.*"
            body.append(
                "<p>No answer was found.</p>" if empty else f"<p>Your answer</p><pre>{escape(answer[:20_000])}</pre>"
            )
            body.append(f"<p>How it is graded</p><pre>{escape(question.rubric)}</pre>")
    body.append(f"<footer>Your notebook ran for {result['seconds']:.0f} seconds. Hidden tests are not shown.</footer>")
    return _page(f"{problem.name}: {student}", body)


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
        f'<div class="wide"><table><tr><th>name</th>{heads}<th class="number">code</th><th class="number">written</th></tr>'
    )
    for student, result in results.items():
        earned = points(result)
        cells = "".join(f'<td class="number">{earned.get(q.number, 0):g}</td>' for q in coding)
        given = f"{sum(scores[student].values()):g}" if scores.get(student) else "—"
        link = f'<a href="feedback/{quote(student)}.html">{escape(student)}</a>'
        notes = f"<br><small>{escape(result['notes'][0][:160])}</small>" if result["notes"] else ""
        body.append(
            f'<tr><td>{link}{notes}</td>{cells}<td class="number">{sum(earned.values()):g}</td>'
            f'<td class="number">{given}</td></tr>'
        )
    body.append("</table></div>")
    return _page(f"{problem.name}: the class", body)


def _kind(message: str) -> str:
    """A failure's message without what differs from notebook to notebook."""
    if message == "not graded":
        return ""
    if "NotImplementedError" in message or "still three dots" in message:
        return "not attempted"
    return re.sub(r" \(line \d+ of [^)]*\)|, because cell \d+ failed", "", message).split("\n")[0][:200]


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
