"""The command line: its commands and options, and how it ends.

Exit status 0: done; 1: it could not be done; 2: wrong usage; 130: interrupted. What each command
does is in `qcompiler.commands`, imported only when it runs, so that `--help` is instant and `run`
loads nothing of the compiler.
"""

from __future__ import annotations

import errno
import os
import signal
import sys
import traceback
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

import qcompiler
from qcompiler.commands.calibration import CalibrationOptions
from qcompiler.core.errors import QCompilerError, UsageError
from qcompiler.extras import explain

app = typer.Typer(
    help="Compile language models to quantised kernels in a stand-alone artifact.",
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

Artifact = Annotated[Path, typer.Argument(metavar="OUT", help="The artifact, a folder.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Show no progress.")]
Threads = Annotated[int | None, typer.Option(min=1, help="Threads; all cores if not given.")]
Model = Annotated[
    str,
    typer.Argument(
        metavar="MODEL",
        help="A Hugging Face folder, a GGUF file, or a packaged model such as smollm2-135m.",
    ),
]
TargetName = Annotated[
    str | None,
    typer.Option(help="The machine it is for; the pipeline's, or native, if not given."),
]
Settings = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="PASS.OPTION=VALUE", help="Set an option of a pass."),
]
CalibrationFiles = Annotated[
    list[Path] | None,
    typer.Option(
        metavar="FILE",
        help="Text to run the model on, for pipelines that do; the model's own if not given. "
        "Given again: several texts.",
    ),
]
Samples = Annotated[
    int | None, typer.Option(min=1, help="Pieces of that text; 128, or 64 of the model's own.")
]
SequenceLength = Annotated[
    int | None, typer.Option(min=2, help="Tokens in each; 512, or 256 of the model's own.")
]
Seed = Annotated[int, typer.Option(min=0, help="Decides which pieces, and what it writes.")]
Budgets = Annotated[
    list[str] | None,
    typer.Option(
        "--budget",
        metavar="NAME=NUMBER",
        help="In the place of the pipeline's: bits_per_weight, bytes, decode_ms or prefill_ms. "
        "Given again: all of them hold.",
    ),
]
MaxRam = Annotated[
    str | None,
    typer.Option(
        metavar="SIZE", help="Activations to keep in memory, such as 2G; more goes to files."
    ),
]

# Failures of the machine, not of the program: their own message says what to do.
_MACHINE_ERRORS = {
    *(errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EACCES, errno.EPERM, errno.EROFS, errno.EIO),
    *(errno.ENOMEM, errno.EMFILE, errno.ENFILE),
}


@app.callback(invoke_without_command=True)
def _global(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
) -> None:
    if version:
        print(qcompiler.__version__)
        raise typer.Exit
    if context.invoked_subcommand is None:
        typer.echo(context.get_help(), err=True)
        raise typer.Exit(2)


@app.command("compile")
def _compile(
    model: Model,
    output: Annotated[
        Path, typer.Option("--output", "-o", metavar="OUT", help="Where the artifact goes.")
    ],
    target: TargetName = None,
    pipeline: Annotated[
        str, typer.Option(metavar="NAME|FILE.toml", help="How to get there.")
    ] = "w4a8",
    settings: Settings = None,
    budgets: Budgets = None,
    context: Annotated[
        int | None, typer.Option(min=1, help="Tokens that fit in at once; the model's own limit.")
    ] = None,
    calibration: CalibrationFiles = None,
    samples: Samples = None,
    sequence_length: SequenceLength = None,
    seed: Seed = 0,
    max_ram: MaxRam = None,
    dump: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Write the program after every pass to this folder."),
    ] = None,
    quiet: Quiet = False,
) -> None:
    """Compile a model to an artifact."""
    from qcompiler.commands.compile import compile_model

    compile_model(
        model,
        output=output,
        target=target,
        pipeline=pipeline,
        settings=tuple(settings or ()),
        budgets=tuple(budgets or ()),
        context=context,
        calibration=CalibrationOptions(
            files=tuple(calibration or ()),
            samples=samples,
            sequence_length=sequence_length,
            seed=seed,
            max_ram=max_ram,
        ),
        dump=dump,
        quiet=quiet,
    )


@app.command("plan")
def _plan(
    model: Model,
    budgets: Budgets = None,
    target: TargetName = None,
    pipeline: Annotated[
        str, typer.Option(metavar="NAME|FILE.toml", help="One that shares bits out.")
    ] = "balanced",
    settings: Settings = None,
    calibration: CalibrationFiles = None,
    samples: Samples = None,
    sequence_length: SequenceLength = None,
    seed: Seed = 0,
    max_ram: MaxRam = None,
    picture: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Draw the front to this file, .svg or .png."),
    ] = None,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Show what budgets lead to: size, speed and predicted loss, before anything is quantised."""
    from qcompiler.commands.plan import plan

    plan(
        model,
        target=target,
        pipeline=pipeline,
        settings=tuple(settings or ()),
        budgets=tuple(budgets or ()),
        calibration=CalibrationOptions(
            files=tuple(calibration or ()),
            samples=samples,
            sequence_length=sequence_length,
            seed=seed,
            max_ram=max_ram,
        ),
        picture=picture,
        as_json=as_json,
        quiet=quiet,
    )


@app.command("run")
def _run(
    artifact: Artifact,
    prompt: Annotated[
        str | None,
        typer.Option("--prompt", "-p", help="What to answer; - reads it from standard input."),
    ] = None,
    max_tokens: Annotated[int, typer.Option(help="Stop after so many tokens.")] = 256,
    temperature: Annotated[float, typer.Option(help="0 takes the likeliest token.")] = 0.0,
    top_k: Annotated[
        int | None, typer.Option(help="Choose among so many of the likeliest tokens.")
    ] = None,
    top_p: Annotated[
        float, typer.Option(help="Choose among the likeliest that have this probability.")
    ] = 1.0,
    repetition_penalty: Annotated[
        float, typer.Option(help="Divide the odds of tokens that are there already.")
    ] = 1.0,
    seed: Annotated[int | None, typer.Option(help="Make the choice repeatable.")] = None,
    raw: Annotated[
        bool, typer.Option("--raw", help="Continue the text; do not apply the chat template.")
    ] = False,
    threads: Threads = None,
) -> None:
    """Ask an artifact; without --prompt, chat with it."""
    from qcompiler.commands.run import run

    run(
        artifact,
        prompt=prompt,
        max_tokens=max_tokens,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        repetition_penalty=repetition_penalty,
        seed=seed,
        raw=raw,
        threads=threads,
    )


@app.command("evaluate")
def _evaluate(
    model: Annotated[str, typer.Argument(metavar="OUT|MODEL", help="An artifact or a model.")],
    text: Annotated[
        list[str],
        typer.Option(
            metavar="FILE",
            help="The text; - reads it from standard input. Given again: several texts.",
        ),
    ],
    reference: Annotated[
        str | None,
        typer.Option(metavar="OUT|MODEL", help="Compare with this artifact or model as well."),
    ] = None,
    pipeline: Annotated[
        str | None,
        typer.Option(
            metavar="NAME|FILE.toml",
            help="Evaluate the model as this pipeline quantises it, in torch.",
        ),
    ] = None,
    reference_pipeline: Annotated[
        str | None,
        typer.Option(
            metavar="NAME|FILE.toml",
            help="Compare with the reference, or the model itself, as this pipeline quantises it.",
        ),
    ] = None,
    tokens: Annotated[
        int | None, typer.Option(min=2, help="Use so many tokens of each text; all if not given.")
    ] = None,
    window: Annotated[
        int | None, typer.Option(min=2, help="Tokens the model sees at once; 512 if not given.")
    ] = None,
    calibration: CalibrationFiles = None,
    samples: Samples = None,
    sequence_length: SequenceLength = None,
    seed: Seed = 0,
    max_ram: MaxRam = None,
    as_json: Json = False,
    intervals: Annotated[
        bool,
        typer.Option("--intervals", help="Add intervals and the comparison to what --json prints."),
    ] = False,
    quiet: Quiet = False,
) -> None:
    """Measure how well a model or an artifact predicts a text."""
    from qcompiler.commands.evaluate import evaluate

    evaluate(
        model,
        texts=tuple(text),
        reference=reference,
        pipeline=pipeline,
        reference_pipeline=reference_pipeline,
        tokens=tokens,
        window=window,
        calibration=CalibrationOptions(
            files=tuple(calibration or ()),
            samples=samples,
            sequence_length=sequence_length,
            seed=seed,
            max_ram=max_ram,
        ),
        as_json=as_json,
        intervals=intervals,
        quiet=quiet,
    )


@app.command("compare")
def _compare(
    model: Model,
    more: Annotated[
        list[str] | None, typer.Argument(metavar="[NAME|FILE.toml]...", help="The pipelines.")
    ] = None,
    *,
    text: Annotated[Path, typer.Option(metavar="FILE", help="What quality is measured on.")],
    pipelines: Annotated[
        list[str] | None, typer.Option(metavar="NAME|FILE.toml", help="The same, as an option.")
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", metavar="DIR", help="Keep the artifacts in this folder."),
    ] = None,
    tokens: Annotated[
        int | None, typer.Option(min=2, help="Use so many tokens of the text; all if not given.")
    ] = None,
    temperatures: Annotated[
        bool, typer.Option(help="Compare at several temperatures, and the texts drawn there.")
    ] = True,
    calibration: CalibrationFiles = None,
    samples: Samples = None,
    sequence_length: SequenceLength = None,
    seed: Seed = 0,
    picture: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Draw what was found to this file, .svg or .png."),
    ] = None,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Compile with several pipelines; show size, quality and speed side by side."""
    from qcompiler.commands.compare import compare

    compare(
        model,
        pipelines=(*(pipelines or ()), *(more or ())),
        text=text,
        output=output,
        tokens=tokens,
        temperatures=temperatures,
        calibration=CalibrationOptions(
            files=tuple(calibration or ()),
            samples=samples,
            sequence_length=sequence_length,
            seed=seed,
        ),
        picture=picture,
        as_json=as_json,
        quiet=quiet,
    )


@app.command("generate-text")
def _generate_text(
    model: Model,
    output: Annotated[
        Path, typer.Option("--output", "-o", metavar="FILE", help="Where the text goes.")
    ],
    samples: Annotated[int, typer.Option(min=1, help="How many texts.")] = 64,
    sequence_length: Annotated[
        int | None,
        typer.Option(min=2, help="Tokens in each; 256, or the model's context if not given."),
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Decides what it writes.")] = 0,
    temperature: Annotated[
        float, typer.Option(help="Above 0; higher makes unlikely words likelier.")
    ] = 1.0,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Have a model write text, to calibrate on or to read."""
    from qcompiler.commands.generate_text import generate_text

    generate_text(
        model,
        output=output,
        samples=samples,
        sequence_length=sequence_length,
        seed=seed,
        temperature=temperature,
        as_json=as_json,
        quiet=quiet,
    )


@app.command("bench")
def _bench(
    artifact: Artifact,
    prompt_tokens: Annotated[int, typer.Option(min=1, help="Length of the prompt.")] = 512,
    generate_tokens: Annotated[int, typer.Option(min=1, help="Length of the answer.")] = 128,
    threads: Threads = None,
    repeats: Annotated[int, typer.Option(min=1, help="Measure so often; the best counts.")] = 5,
    roofline: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Draw operators below the machine's limits to this file, .svg or .png.",
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Measure how fast an artifact runs on this machine, and how far that is from its limits."""
    from qcompiler.commands.bench import bench

    bench(
        artifact,
        prompt_tokens=prompt_tokens,
        generate_tokens=generate_tokens,
        threads=threads,
        repeats=repeats,
        roofline=roofline,
        as_json=as_json,
    )


@app.command("inspect")
def _inspect(
    artifact: Artifact,
    as_json: Json = False,
    html: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Write all that is known of it to a page instead."),
    ] = None,
) -> None:
    """Show what is inside an artifact, layer by layer."""
    if html is not None:
        from qcompiler.commands.page import write_page

        write_page(artifact, html)
        if not as_json:
            print(html)
            return
    from qcompiler.commands.inspect import inspect

    inspect(artifact, as_json=as_json)


@app.command("export")
def _export(
    artifact: Artifact,
    output: Annotated[
        Path, typer.Option("--output", "-o", metavar="FOLDER", help="Where it goes.")
    ],
    runner: Annotated[
        bool, typer.Option("--runner", help="A C++ program that runs the artifact, as sources.")
    ] = False,
    libraries: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR", help="Where libtvm_ffi.so lies for the artifact's machine, if another."
        ),
    ] = None,
) -> None:
    """Write an artifact as something that runs elsewhere: a C++ program without Python."""
    from qcompiler.commands.export import export

    export(artifact, runner=runner, output=output, libraries=libraries)


@app.command("targets")
def _targets(
    install: Annotated[
        str | None,
        typer.Option(
            "--install",
            metavar="ARCH",
            help="Get what TVM's runtime needs on another architecture: aarch64 or x86_64.",
        ),
    ] = None,
    wheel: Annotated[
        list[Path] | None,
        typer.Option(
            "--wheel", help="Take it from this wheel, and do not download it. Repeatable."
        ),
    ] = None,
) -> None:
    """List the machines there is code for."""
    from qcompiler.commands.lists import install_libraries, list_targets

    if install is not None:
        install_libraries(install, wheel or [])
    elif wheel:
        raise UsageError("--wheel says what to --install; give the architecture as well")
    else:
        list_targets()


@app.command("passes")
def _passes() -> None:
    """List the passes a pipeline can be made of, with their options."""
    from qcompiler.commands.passes import list_passes

    list_passes()


@app.command("pipelines")
def _pipelines() -> None:
    """List the pipelines that come with the compiler."""
    from qcompiler.commands.lists import list_pipelines

    list_pipelines()


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return the exit status; no user's mistake shows a traceback."""
    try:
        status = app(args=arguments, prog_name="qcompiler", standalone_mode=False)
        # A full disk may show only now.
        sys.stdout.flush()
    except QCompilerError as error:
        return _fail(str(error), 2 if isinstance(error, UsageError) else 1)
    except typer.TyperException as error:
        return _fail(error.format_message(), error.exit_code)
    except (KeyboardInterrupt, typer.Abort):
        status = 130
    except BrokenPipeError:
        # Whoever read our output has gone; Python must not complain about it at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except ModuleNotFoundError as error:
        if (sentence := explain(error)) is None:
            return _report_bug()
        return _fail(sentence, 1)
    except MemoryError:
        return _fail("there is not enough memory for this", 1)
    except Exception as error:
        if isinstance(error, OSError) and error.errno in _MACHINE_ERRORS:
            place = f"{error.filename}: " if error.filename else ""
            return _fail(f"{place}{error.strerror}", 1)
        return _report_bug()
    if status == 130:
        print("interrupted", file=sys.stderr)
    return status if isinstance(status, int) else 0


def _fail(message: str, status: int) -> int:
    """Print the one line an error gets."""
    print("error:", " ".join(message.split()), file=sys.stderr)
    return status


def _report_bug() -> int:
    """Show the traceback of the exception being handled."""
    traceback.print_exc()
    return _fail("this is a bug in qcompiler; please report it with the lines above", 1)


def _terminate(signum: int, frame: object) -> None:
    """End as on Ctrl-C, so that half-written files are taken away."""
    sys.exit(128 + signum)


def entry() -> None:
    """Start from a shell."""
    if not sys.warnoptions:
        # What libraries tell developers is no help to a user of ours.
        warnings.simplefilter("ignore")
    signal.signal(signal.SIGTERM, _terminate)
    sys.exit(main())


if __name__ == "__main__":
    entry()
