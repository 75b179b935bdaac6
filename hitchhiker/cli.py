"""The ``hitchhiker`` command.

A wrong argument is one line on stderr that names it, its value and what is allowed; exit code 2; nothing is written.
A run that fails later is one line and exit code 1.  Ctrl-C is exit code 130, with the command that goes on.

A new subcommand is one function with a decorator: ``@app.command()``, or ``@train_app.command()`` for a model.
"""

from __future__ import annotations

import contextlib
import math
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

HINT = 'this command needs further packages: pip install "hitchhiker[train]"'

try:
    import typer
except ImportError:  # the core is useful without the command; main() says what to install
    typer = None  # type: ignore[assignment]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code: 0, 1 (failed), 2 (bad argument) or 130 (Ctrl-C)."""
    if typer is None:
        return _complain(HINT, 1)
    from hitchhiker.sweep import SweepFailed
    from hitchhiker.training import TrainingDiverged

    try:
        code = app(args=None if arguments is None else list(arguments), prog_name="hitchhiker", standalone_mode=False)
        return code if isinstance(code, int) else 0
    except ValueError as error:
        return _complain(error, 2)
    except KeyboardInterrupt:
        return _complain("stopped", 130)
    except ImportError as error:
        return _complain(error if "pip install" in str(error) else f"{HINT} ({error})", 1)
    except (TrainingDiverged, SweepFailed, OSError) as error:
        return _complain(_about_file(error) if isinstance(error, OSError) else error, 1)
    except Exception as error:
        # typer's own errors; which library defines them depends on its version
        kind = type(error).__name__
        if kind == "Abort":  # Ctrl-C outside of training
            return _complain("stopped", 130)
        if not hasattr(error, "format_message"):
            raise
        if kind == "NoArgsIsHelpError":
            print(error.format_message())
            return 0
        return _complain(error.format_message(), 2)


def _about_file(error: OSError) -> str:
    about = error.strerror or str(error)
    return about if error.filename is None else f"{about}: {error.filename}"


def _complain(message: object, code: int) -> int:
    print("hitchhiker:", " ".join(str(message).split()), file=sys.stderr)
    return code


if typer is not None:
    app = typer.Typer(
        name="hitchhiker",
        help="Gradients through Poisson counts: train models, reproduce figures, measure speed.",
        no_args_is_help=True,
        add_completion=False,
        rich_markup_mode=None,
        pretty_exceptions_enable=False,
    )
    train_app = typer.Typer(help="Train a model; any run can be stopped and resumed.", no_args_is_help=True)
    app.add_typer(train_app, name="train")
    sweep_app = typer.Typer(help="Train a grid of models; any sweep can be stopped and resumed.", no_args_is_help=True)
    app.add_typer(sweep_app, name="sweep")
    course_app = typer.Typer(help="Build problem sets and grade what students hand in.", no_args_is_help=True)
    app.add_typer(course_app, name="course")
    from hitchhiker import poglm_sweep as _poglm_sweep
    from hitchhiker import poglm_train as _poglm_train
    from hitchhiker import pvae_sweep as _pvae_sweep
    from hitchhiker import reproduce as _reproduce
    from hitchhiker._options import typed

    _reproduce.register(app)  # hitchhiker reproduce figure-1 [--full]
    _pvae_sweep.register(sweep_app)  # hitchhiker sweep pvae
    _poglm_sweep.register(sweep_app)  # hitchhiker sweep poglm
    _poglm_train.register(train_app)  # hitchhiker train poglm

    def _print_version(wanted: bool) -> None:
        if wanted:
            from hitchhiker import __version__

            print(__version__)
            raise typer.Exit()

    @app.callback()
    def _top(
        version: Annotated[
            bool,
            typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit."),
        ] = False,
    ) -> None:
        pass

    @app.command()
    def methods() -> None:
        """List the training methods that --method knows."""
        from hitchhiker.models import known_methods

        print("\n".join(known_methods()))

    @course_app.command("build")
    def build_course(
        sets: Annotated[
            list[str] | None, typer.Argument(help="Sets, as ps1; all by default.", metavar="[SET]...")
        ] = None,
        variant: Annotated[int, typer.Option(help="Variant: 0 is the source's, others draw other values.")] = 0,
        out: Annotated[Path, typer.Option(help="Folder to write into.")] = Path("course"),
        outputs: Annotated[
            bool, typer.Option("--outputs", help="Run the instructor notebook, so that it shows its results.")
        ] = False,
        example: Annotated[
            str | None, typer.Option(help="Also write twelve made-up submissions of this set.", metavar="SET")
        ] = None,
    ) -> None:
        """Make the student notebook, the instructor notebook and the autograder of problem sets.

        Example: hitchhiker course build ps1 --variant 3 --out course
        """
        with _course():
            from hitchhiker.course import build, examples, source
        made_up = source.load(source.find(example), variant) if example is not None else None
        for folder in build.build(sets or [], variant, out, outputs=outputs):
            print(f"{folder}, variant {variant}: " + ", ".join(sorted(p.name for p in folder.iterdir())))
        for name in (sets or source.available()) if variant else ():
            if again := source.repeated(source.load(source.find(name), variant)):
                print(f"{name}: an earlier variant has the same {', '.join(again)}: put new values into the source")
        if made_up is not None:
            folder = out / f"example{build.suffix(variant)}"
            print(f"{folder}: {len(examples.folder(made_up, folder))} submissions; grade them with")
            called = sys.argv[0] if Path(sys.argv[0]).name == "hitchhiker" else "hitchhiker"
            print(f"  {shlex.quote(called)} course grade {folder} --set {example}")
        where = build.address()
        if where is None:
            print(
                "The repository's address is not known: set HITCHHIKER_REPOSITORY, or Colab and Gradescope cannot install it."
            )
        elif not build.pinned(where):
            print(f"Students will install the newest {where}, for this commit is not known to be there: push it first.")

    @course_app.command("grade")
    def grade_course(
        folder: Annotated[Path, typer.Argument(help="Submissions: NAME.ipynb or NAME/something.ipynb.")],
        name: Annotated[str, typer.Option("--set", help="The problem set, as ps2, or the path of its source.")],
        variant: Annotated[
            int | None, typer.Option(help="The variant that was handed out (default: what most notebooks say).")
        ] = None,
        out: Annotated[Path | None, typer.Option(help="Folder to write into (default: FOLDER-graded).")] = None,
        workers: Annotated[int, typer.Option(help="Submissions at once.")] = 2,
        written: Annotated[
            Path | None,
            typer.Option(help="Points of the written questions (default: OUT/written.csv, if it is there)."),
        ] = None,
        cell_seconds: Annotated[float | None, typer.Option(help="Most time for a cell (default: the set's).")] = None,
        quiet: Annotated[bool, typer.Option("--quiet", help="No progress bar.")] = False,
        force: Annotated[
            bool, typer.Option("--force", help="Grade although most notebooks, or OUT, are of another set or variant.")
        ] = False,
    ) -> None:
        """Grade a folder of notebooks: grades.csv, a feedback page for each student, summary.html.

        A killed batch goes on where it was when the same command is given again.

        Example: hitchhiker course grade course/example --set ps1
        """
        with _course():
            from hitchhiker.course import sandbox
            from hitchhiker.course.grading import grade
        if cell_seconds is not None and not cell_seconds > 0:
            raise ValueError(f"--cell-seconds must be > 0, got {cell_seconds}")
        limits = None if cell_seconds is None else {"cell": cell_seconds}
        print(f"each notebook is kept apart by {sandbox.isolation()}")
        done = grade(folder, name, variant, out, workers, written, limits, quiet=quiet, force=force)
        print(f"written: {done / 'grades.csv'}, {done / 'summary.html'}, {done / 'feedback'}")

    @train_app.command("pvae")
    def train_pvae(
        context: typer.Context,
        out: Annotated[Path, typer.Option(help="Folder of the run: new or empty, unless --resume.")],
        method: Annotated[
            str, typer.Option(help="How gradients pass the counts; `hitchhiker methods` lists them.")
        ] = "eat-cubic",
        temperature: Annotated[float, typer.Option(help="Temperature τ of the relaxation, dimensionless.")] = 0.1,
        anneal: Annotated[bool, typer.Option("--anneal", help="Let τ fall from 1 over the first half.")] = False,
        epochs: Annotated[int, typer.Option(help="Passes over the training patches.")] = 20,
        latents: Annotated[int, typer.Option(help="Counts in the code, K.")] = 128,
        patches: Annotated[int, typer.Option(help="Image patches; a fifth of them is for validation.")] = 20_000,
        size: Annotated[int, typer.Option(help="Side of a patch in pixels.")] = 16,
        batch: Annotated[int, typer.Option(help="Patches a step (the paper: 1000).")] = 50,
        samples: Annotated[int, typer.Option(help="Counts drawn per patch and step.")] = 1,
        lr: Annotated[
            float, typer.Option(help="Learning rate of Adamax at its start (the paper, for 240,000 steps: 0.005).")
        ] = 0.02,
        anneal_kl: Annotated[
            bool, typer.Option("--anneal-kl", help="Let the KL term's weight rise over the first half.")
        ] = False,
        encoder: Annotated[str, typer.Option(help="linear, mlp or conv.")] = "linear",
        decoder: Annotated[str, typer.Option(help="linear, mlp or conv.")] = "linear",
        images: Annotated[
            Path | None, typer.Option(help="Folder of your own images (default: scenes in the wheels).")
        ] = None,
        van_hateren: Annotated[
            int, typer.Option(help="Download this many van Hateren images, 3 MB each, and use them.")
        ] = 0,
        as_released: Annotated[
            bool, typer.Option("--as-released", help="Whiten as the authors' code does, not as the paper means.")
        ] = False,
        prior: Annotated[
            tuple[float, float],
            typer.Option(
                help="Initial log prior rates. The authors' code has -6 -4, from which short runs hardly move.",
                metavar="LOW HIGH",
            ),
        ] = (-3.0, -2.0),
        tensorboard: Annotated[
            bool, typer.Option("--tensorboard", help="Write the metrics to OUT/tensorboard too.")
        ] = False,
        seed: Annotated[int, typer.Option(help="Seed of patches, weights, order and counts.")] = 0,
        device: Annotated[str, typer.Option(help="cpu, cuda, or auto.")] = "cpu",
        threads: Annotated[int, typer.Option(help="CPU threads (0: torch's default).")] = 0,
        checkpoint_every: Annotated[float, typer.Option(help="Seconds between two checkpoints.")] = 30.0,
        resume: Annotated[
            bool, typer.Option("--resume", help="Go on with the run in --out, with its own settings.")
        ] = False,
        quiet: Annotated[bool, typer.Option("--quiet", help="No progress bar.")] = False,
    ) -> None:
        """Train a Poisson VAE on natural image patches.

        Writes metrics.csv, config.json, model.safetensors, evaluation.json and a checkpoint into --out.  After
        Ctrl-C or a crash, `hitchhiker train pvae --out DIR --resume` goes on to the same numbers.

        Example: hitchhiker train pvae --method eat-cubic --temperature 0.1 --epochs 20 --out runs/cubic
        """
        given: dict[str, Any] = {
            name: value
            for name, value in context.params.items()
            if name not in {"out", "resume", "quiet", "checkpoint_every", "tensorboard"}
        }
        given["prior"] = list(given["prior"])  # as JSON gives it back
        given["images"] = None if images is None else str(images)
        explicit = typed(context, given)
        run_pvae(
            out, given, explicit, resume=resume, quiet=quiet, checkpoint_every=checkpoint_every, tensorboard=tensorboard
        )


@contextlib.contextmanager
def _course():
    try:
        yield
    except ImportError as error:
        raise ImportError(f'this command needs further packages: pip install "hitchhiker[course]" ({error})') from error


def run_pvae(
    out: Path,
    given: dict[str, Any],
    explicit: set[str],
    *,
    resume: bool,
    quiet: bool,
    checkpoint_every: float,
    tensorboard: bool = False,
) -> None:
    """What ``hitchhiker train pvae`` does, after its arguments are parsed."""
    import torch

    from hitchhiker import training
    from hitchhiker._files import require_vacant
    from hitchhiker._options import check_device, check_threads, require_same
    from hitchhiker.models import PoissonVAE

    if resume:
        stored = training.read_config(out)["data"].get("command", {})
        require_same(stored, given, explicit, out)
        given = {**given, **stored}
    settings = training.Settings(
        method=given["method"],
        temperature=given["temperature"],
        anneal=given["anneal"],
        epochs=given["epochs"],
        batch_size=given["batch"],
        num_samples=given["samples"],
        lr=given["lr"],
        anneal_kl=given["anneal_kl"],
        seed=given["seed"],
    )
    if not resume:
        require_vacant("--out", out, "--resume is given")
    device = check_device(given["device"])
    check_threads(given["threads"], 0)
    if not 0 <= checkpoint_every < math.inf:
        raise ValueError(f"--checkpoint-every must be >= 0 and finite, got {checkpoint_every}")
    if given["threads"]:
        torch.set_num_threads(given["threads"])
    model = PoissonVAE(
        given["size"] ** 2,
        given["latents"],
        given["seed"],
        encoder=given["encoder"],
        decoder=given["decoder"],
        prior_log_rates=tuple(given["prior"]),
    )
    patches = _patches(given)
    try:
        fit = training.fit(
            model.to(device),
            patches.train,
            patches.validation,
            out=out,
            resume=resume,
            settings=settings,
            provenance={**patches.provenance, "command": given},
            progress=not quiet,
            checkpoint_seconds=checkpoint_every,
            tensorboard=tensorboard,
        )
    except KeyboardInterrupt as stop:
        again = shlex.join(["hitchhiker", "train", "pvae", "--out", str(out), "--resume"])
        print(f"hitchhiker: {stop or 'stopped'}; go on with: {again}", file=sys.stderr)
        raise typer.Exit(130) from None
    result = model.evaluate(patches.validation.to(device))
    some = patches.validation[:1000].to(device)
    tighter = {"importance_bound": float(model.importance_bound(some).mean()), "importance_patches": len(some)}
    training.write_json(out / "evaluation.json", result.as_dict() | tighter)
    print(f"{settings.method}, {fit.steps} steps: validation at τ = 0: {result}")
    print(f"written to {out}: " + ", ".join(sorted(p.name for p in out.iterdir())))


def _patches(given: dict[str, Any]):
    from hitchhiker import datasets

    images: Any = given["images"]
    if given["van_hateren"] < 0:
        raise ValueError(f"--van-hateren must be >= 0, got {given['van_hateren']}")
    if given["van_hateren"]:
        if images is not None:
            raise ValueError(
                f"--images and --van-hateren exclude each other, got {images!r} and {given['van_hateren']}"
            )
        numbers = [n for n in range(1, given["van_hateren"] + 2) if n != 45][: given["van_hateren"]]
        images = datasets.van_hateren_scenes(numbers)
    return datasets.natural_patches(
        given["patches"], given["size"], given["seed"], images=images, as_released=given["as_released"]
    )
