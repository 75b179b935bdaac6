"""From a folder of files to marks: who handed in what, which notebook counts, what a person gave, what a page shows."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import nbformat
import pytest
from bs4 import BeautifulSoup

from hitchhiker.cli import main
from hitchhiker.course import build, collect, examples, grading, judge, marking, reports, source

WHERE = Path(__file__).parent / "data" / "assignments"


@pytest.fixture(scope="module")
def problem() -> source.ProblemSet:
    return source.load(WHERE / "ps0_tiny.md")


def put(path: Path, content: nbformat.NotebookNode | str = "", age: float = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content if isinstance(content, str) else nbformat.writes(content), encoding="utf-8")
    os.utime(path, (1e9 - age, 1e9 - age))
    return path


# who handed in what


def test_every_visible_entry_is_a_student(problem, tmp_path):
    stub = source.student(problem)
    names = ["ada.ipynb", "UPPER.IPYNB", "Name_123/homework/ps1.ipynb", "ps.x.ipynb"]
    for name in names:
        put(tmp_path / name, stub)
    for name in ("pdf only/ps1.pdf", "otto.py", "zed.ipynb.txt", ".hidden.ipynb", "__MACOSX/a.ipynb", "ada/more.txt"):
        put(tmp_path / name)
    put(tmp_path / "Name_123/.ipynb_checkpoints/ps1-checkpoint.ipynb", stub)
    (tmp_path / "empty").mkdir()
    (tmp_path / "out").mkdir()
    found = collect.files(tmp_path, tmp_path / "out")
    chosen = {student: collect.choose(paths, problem) for student, paths in found.items()}
    assert {student for student, one in chosen.items() if one.notebook} == {"ada", "UPPER", "Name_123", "ps.x"}
    assert {student: one.note for student, one in chosen.items() if not one.notebook} == {
        "pdf only": "No .ipynb was found, only ps1.pdf.", "otto": "No .ipynb was found, only otto.py.",
        "zed": "No .ipynb was found, only zed.ipynb.txt.", "empty": "No .ipynb was found, the folder is empty.",
    }  # fmt: skip
    assert chosen["Name_123"].notebook == tmp_path / "Name_123/homework/ps1.ipynb"


def test_a_folder_without_notebooks_is_refused(tmp_path):
    put(tmp_path / "ada" / "ps1.pdf")
    with pytest.raises(ValueError, match="without any notebook"):
        collect.files(tmp_path)


def test_of_several_notebooks_the_newest_that_was_worked_on_counts(problem, tmp_path):
    worked, other = examples._only(problem, {"0.1"}), source.solved(source.load(WHERE / "ps0_tiny.md", 1))
    stub = source.student(problem, "https://example.org/ada/counts")
    put(tmp_path / "a" / "stub.ipynb", stub)
    put(tmp_path / "a" / "old.ipynb", worked, age=100)
    new = put(tmp_path / "a" / "deep" / "new.ipynb", worked, age=50)
    put(tmp_path / "a" / "other.ipynb", other)
    put(tmp_path / "a" / "bad.ipynb", "{")
    chosen = collect.choose(collect.files(tmp_path)["a"], problem)
    assert chosen.notebook == new
    assert chosen.note == (
        "5 notebooks were handed in: deep/new.ipynb was graded, not old.ipynb (not the newest); "
        "stub.ipynb (as it was handed out); other.ipynb (it is ps0, variant 1); bad.ipynb (it cannot be read)."
    )


# which set and variant


@pytest.fixture
def variants(tmp_path) -> Path:
    """Three notebooks of variant 1, one of variant 0, one that says nothing and one that cannot be read."""
    folder = tmp_path / "class"
    for number, student in ((1, "ada"), (1, "ben"), (1, "cleo"), (0, "dan"), (0, "eve")):
        notebook = source.student(source.load(WHERE / "ps0_tiny.md", number))
        if student == "eve":
            notebook.metadata.pop("hitchhiker")
        put(folder / f"{student}.ipynb", notebook)
    put(folder / "finn.ipynb", "{")
    return folder


def test_the_variant_is_what_most_notebooks_say(variants):
    found = collect.files(variants)
    assert collect.variant(found, "ps0", None) == 1
    assert collect.variant(found, "ps0", 0, force=True) == 0
    with pytest.raises(ValueError, match="must be ps0 and 1, as 3 of 4 notebooks say, got ps0 and 0; --force"):
        collect.variant(found, "ps0", 0)
    with pytest.raises(ValueError, match="must be ps0 and 1, as 3 of 4 notebooks say, got ps1 and 0; --force"):
        collect.variant(found, "ps1", None)
    (variants / "ada.ipynb").unlink()
    (variants / "ben.ipynb").unlink()
    assert collect.variant(collect.files(variants), "ps0", 0) == 0  # one against one


def test_a_wrong_set_stops_before_anything_runs(variants, capsys):
    assert main(["course", "grade", str(variants), "--set", "ps1"]) == 2
    assert "must be ps0 and 1" in capsys.readouterr().err
    assert not (variants.parent / "class-graded").exists()


def test_results_of_another_variant_are_not_overwritten(variants, monkeypatch):
    def result(jobs, problem, *_):
        for job in jobs.values():
            done = judge.ungraded(problem, "").as_dict()
            put(Path(job["result"]), grading.json.dumps(done))
        return {student: done for student in jobs}

    monkeypatch.setattr(grading, "_all", result)
    out = grading.grade(variants, "ps0", where=WHERE)
    before = (out / "grades.csv").read_bytes()
    for student in ("ada", "ben", "cleo"):
        (variants / f"{student}.ipynb").unlink()  # of variant 1; what is left is of variant 0
    with pytest.raises(ValueError, match=r"class-graded holds ps0, variant 1 \(name another one, or --force"):
        grading.grade(variants, "ps0", where=WHERE)
    assert (out / "grades.csv").read_bytes() == before
    grading.grade(variants, "ps0", where=WHERE, force=True)
    assert "variant 0" in (out / "summary.html").read_text(encoding="utf-8")


# what a person gave


def test_written_grows_and_keeps_what_is_there(problem, tmp_path):
    table = tmp_path / "written.csv"
    marking.extend(table, problem, ["ada", "ben"])
    assert table.read_text().splitlines() == ["name,0.2,0.2 comment,0.4,0.4 comment", "ada,,,,", "ben,,,,"]
    mine = '\ufeff0.2,name,0.2 comment,0.4\r\n3.5,ada,"- good, but ""short""",\r\n1,zoe,,5'
    table.write_bytes(mine.encode())
    marking.extend(table, problem, ["ada", "=cmd"])
    assert table.read_bytes().decode() == mine + "\n,'=cmd,,\n"
    marking.extend(table, problem, ["ada", "=cmd"])
    assert table.read_bytes().decode() == mine + "\n,'=cmd,,\n"
    marks = marking.read(table, problem)
    assert marks.points == {"ada": {"0.2": 3.5}, "zoe": {"0.2": 1.0, "0.4": 5.0}}
    assert marks.comments == {"ada": {"0.2": '- good, but "short"'}}


@pytest.mark.parametrize(
    ("lines", "words"),
    [
        ("name,0.2\nada,9", "0.2 of ada must be 0 to 4 points, got '9'"),
        ("name,0.1\nada,1", "'0.1' is no written question of ps0, nor a comment on one"),
        ("name,0.2 remark\nada,1", "'0.2 remark' is no written question"),
        ("name,0.2 comment\nada,short, but right", "the line of ada has more fields than the first"),
        ("name;0.2\nada;1", "must name the columns name"),
        ("name,0.2 comment\nada,sch\xf6n", "must be saved as UTF-8"),
    ],
)
def test_a_mistake_in_the_table_is_named(problem, tmp_path, lines, words):
    (tmp_path / "written.csv").write_bytes(lines.encode("latin-1"))
    with pytest.raises(ValueError, match=words):
        marking.read(tmp_path / "written.csv", problem)


# what a page shows


def page(problem: source.ProblemSet, answer: str, **more) -> BeautifulSoup:
    result = judge.ungraded(problem, "").as_dict() | {"notes": [], "answers": {"0.2": answer}, **more}
    marks = ({"0.2": 3.0}, {"0.2": "Good, *but* short."})
    return BeautifulSoup(reports.feedback(problem, "ada", result, marks, "../class/a b.ipynb"), "html.parser")


HOSTILE = """
<script>alert(1)</script> <img src=x onerror=alert(1)> <b onclick="alert(1)">bold</b>
[click](javascript:alert(1)) [data](data:text/html,<script>) ![picture](http://example.org/a.png)
$</code><script>alert(2)</script>$ `</code><script>`

$$<script>$$

<div><iframe src="http://example.org"></iframe></div>

| a | b |
|---|---|
| <script>alert(3)</script> | $x$ |
"""


def test_a_page_renders_markdown_and_never_html(problem):
    tree = page(problem, HOSTILE, work={"0.4": [{"code": "</pre><script>", "printed": "<img>", "error": "<b>"}]})
    allowed = {"p", "div", "span", "code", "pre", "em", "a", "table", "thead", "tbody", "tr", "th", "td", "ul", "li"}
    allowed |= {"html", "head", "meta", "title", "style", "body", "h1", "h2", "strong", "footer"}
    assert {tag.name for tag in tree.find_all()} <= allowed
    assert [a["href"] for a in tree.find_all("a")] == ["../class/a%20b.ipynb"]
    assert not [name for tag in tree.find_all() for name in tag.attrs if name.startswith("on")]
    text = tree.get_text()
    for part in ("<script>alert(1)</script>", "</pre><script>", "<img>", "(a picture: see the notebook)"):
        assert part in text


def test_a_page_has_names_totals_formulas_comments_and_code(problem):
    tree = page(
        problem, "An **answer** with $\\lambda_i$.", work={"0.4": [{"code": "1 + 1", "printed": "2", "error": ""}]}
    )
    assert tree.find(class_="score").get_text().startswith("3 of 18 in all: 0 of 9 for code, 3 of 9 for written")
    assert tree.find("strong", string="answer")
    assert "\\lambda_i" in [c.get_text() for c in tree.find_all("code")]
    assert tree.find("em", string="but")
    assert [p.get_text() for p in tree.find_all("pre", class_="code")] == ["1 + 1", "2"]
    ps1 = source.load(source.find("ps1"))
    heads = [h.get_text() for h in page(ps1, "").find_all("h2")]
    assert heads[0] == "1.1 The joint law · 0 of 5"
    assert heads[3] == "1.4 Why that rate? · written · — of 8"


# what is handed out


def git(folder: Path, *arguments: str) -> str:
    who = ["-c", "user.name=ada", "-c", "user.email=ada@example.org"]
    done = subprocess.run(["git", *who, "-C", str(folder), *arguments], check=True, capture_output=True, text=True)
    return done.stdout.strip()


def test_the_commit_is_pinned_when_the_remote_has_it(tmp_path, monkeypatch):
    monkeypatch.delenv("HITCHHIKER_REPOSITORY", raising=False)
    git(tmp_path, "init", "-q")
    git(tmp_path, "commit", "-q", "--allow-empty", "-m", "one")
    assert build.address(tmp_path) is None
    git(tmp_path, "remote", "add", "origin", "git@example.org:ada/counts.git")
    git(tmp_path, "remote", "add", "other", "https://example.org/ben/counts")
    git(tmp_path, "update-ref", "refs/remotes/other/main", "HEAD")
    where = "https://example.org/ada/counts"
    assert build.address(tmp_path) == where
    assert not build.pinned(where)
    git(tmp_path, "update-ref", "refs/remotes/origin/main", "HEAD")
    assert build.address(tmp_path) == f"{where}@{git(tmp_path, 'rev-parse', 'HEAD')}"
    assert build.pinned(build.address(tmp_path))
    git(tmp_path, "commit", "-q", "--allow-empty", "-m", "two, not pushed")
    assert build.address(tmp_path) == where
    monkeypatch.setenv("HITCHHIKER_REPOSITORY", "https://example.org/eve/counts")
    assert build.address(tmp_path) == "https://example.org/eve/counts"


def test_no_variant_overwrites_another_and_repeats_are_said(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("HITCHHIKER_REPOSITORY", "https://example.org/eve/counts")
    monkeypatch.setattr(build, "autograder", lambda *_: None)
    for variant in (0, 3):
        assert main(["course", "build", "ps4", "--variant", str(variant), "--out", str(tmp_path)]) == 0
    said = capsys.readouterr().out
    assert f"{tmp_path / 'ps4'}, variant 0: autograder, grading, instructor, student" in said
    assert f"{tmp_path / 'ps4-variant3'}, variant 3:" in said
    assert said.count("an earlier variant has the same indicator: put new values") == 1
    assert "for this commit is not known to be there" in said
    built = [nbformat.read(tmp_path / n / "student" / "ps4.ipynb", 4) for n in ("ps4", "ps4-variant3")]
    assert [n.metadata["hitchhiker"]["variant"] for n in built] == [0, 3]


@pytest.mark.slow
def test_the_instructor_notebook_can_show_its_results(problem, tmp_path, monkeypatch):
    monkeypatch.setattr(build, "autograder", lambda *_: None)
    monkeypatch.setenv("PYTHONPATH", ".")
    (folder,) = build.build(["ps0"], out=tmp_path, where=WHERE, outputs=True)
    notebook = nbformat.read(folder / "instructor" / "ps0.ipynb", 4)
    assert all(c.execution_count for c in notebook.cells if c.cell_type == "code")
    next(c for c in notebook.cells if c.cell_type == "code").source = "1 / 0"
    with pytest.raises(ValueError, match="fails: ZeroDivisionError: division by zero"):
        build.run(notebook)


def test_the_page_for_instructors_knows_lists_and_first_questions():
    text = (Path(__file__).parents[1] / "book" / "instructors.md").read_text(encoding="utf-8")
    sets = [source.load(path) for path in source.available().values()]
    lengths = [len(values) for problem in sets for values in problem.meta["variants"].values()]
    assert (min(lengths), max(lengths)) == (3, 7)
    assert "three to seven values each" in text
    first = [(q.number, q.kind) for q in source.load(source.find("ps4")).questions.values()][:3]
    assert first == [("1.1", "coding"), ("1.2", "written"), ("2.1", "coding")]
    assert "questions 1.1, 1.2 (written) and 2.1 of set 4" in text
