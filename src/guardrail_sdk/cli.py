"""The command line: `guardrail check`, `guardrail model` and `guardrail eval`."""

from __future__ import annotations

import argparse
import json
import os
import re
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal, NoReturn, Protocol

# The version's one definition; nothing that the package's __init__ imports imports this module.
from guardrail_sdk import __version__
from guardrail_sdk._errors import ConfigError, DataError, GuardrailError
from guardrail_sdk._guard import Guard
from guardrail_sdk._policy import Policy
from guardrail_sdk._tables import (
    progress_bar,
    show_check,
    show_model,
    show_report,
    threshold_in_force,
)
from guardrail_sdk._types import Action, CheckResult, Message, Verdict
from guardrail_sdk.artifact import find_artifact
from guardrail_sdk.evaluation import Checker, evaluate

if TYPE_CHECKING:
    from pydantic import JsonValue

EXIT_ERROR: Final = 2
EXIT_INTERRUPTED: Final = 130
EXIT_BROKEN_PIPE: Final = 141
_EXIT_BY_ACTION: Final[Mapping[Action, int]] = {
    Action.ALLOW: 0,
    Action.FLAG: 0,
    Action.REDACT: 1,
    Action.BLOCK: 1,
}
_MAX_INPUT_BYTES: Final = 16 * 1024 * 1024


class CommandGuard(Checker, Protocol):
    """What the commands need of a guard."""

    @property
    def policy(self) -> Policy:
        """The policy in force."""
        ...


class GuardFactory(Protocol):
    """What makes the guard that the commands use: `Guard` itself, or a fake in a test."""

    def __call__(self, *, model: Path | None, policy: Policy | None) -> CommandGuard:
        """Return a guard; None for the default model or policy."""
        ...


class _Options(argparse.Namespace):
    """The parsed arguments of whichever command was given."""

    run: Callable[[_Options, GuardFactory], int]
    text: str | None
    file: Path | None
    role: Literal["user", "assistant"] | None
    prompt: str | None
    json: bool
    model: Path | None
    policy: Path | None
    files: list[Path]
    limit: int | None
    json_out: Path | None
    scores_out: Path | None


def main(argv: Sequence[str] | None = None, *, guard_factory: GuardFactory = Guard) -> int:
    """Run one command and return its exit code.

    Args:
        argv: The arguments after the program's name; None for the process's own.
        guard_factory: What makes the guard; tests pass a fake.

    Returns:
        0 if the text is allowed or flagged or the command did its work, 1 if the text is redacted
        or blocked, 2 for an error, 130 after ^C, 141 if the output's reader went away.

    Raises:
        SystemExit: After `--help` and `--version`, and with code 2 for wrong arguments.
    """
    options = _parser().parse_args(argv, namespace=_Options())
    try:
        code = options.run(options, guard_factory)
        sys.stdout.flush()
    except BrokenPipeError:
        # Python flushes standard output once more at exit, which would fail again, aloud.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_BROKEN_PIPE
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    except GuardrailError as error:
        return _fail(str(error))
    except OSError as error:  # Files that are read have errors of their own: this is the output.
        return _fail(f"The output can't be written ({error.strerror}). Check where it goes.")
    except Exception as error:  # The message of an unforeseen error may quote the text.
        frame = traceback.extract_tb(error.__traceback__)[-1]
        where = f"{Path(frame.filename).name}:{frame.lineno}"
        return _fail(f"{type(error).__name__} at {where}: a bug in guardrail. Please report it.")
    return code


def _check(options: _Options, guard_factory: GuardFactory) -> int:
    role = options.role or ("user" if options.prompt is None else "assistant")
    if options.prompt is not None and role == "user":
        raise ConfigError("--prompt goes before an assistant's message: drop it, or --role user.")
    conversation = [Message(role=role, content=_read_text(options))]
    if options.prompt is not None:
        conversation.insert(0, Message(role="user", content=options.prompt))
    guard = _guard(options, guard_factory)
    result = guard.check_sync(conversation)
    if options.json:
        _print_json(_check_fields(result, guard.policy))
    else:
        show_check(result, guard.policy)
    return _EXIT_BY_ACTION[result.decision.action]


def _model_info(options: _Options, _: GuardFactory) -> int:
    artifact = find_artifact(options.model)
    if options.json:
        manifest: JsonValue = artifact.manifest.model_dump(mode="json")
        _print_json({"id": artifact.id, "folder": str(artifact.folder), "manifest": manifest})
    else:
        show_model(artifact)
    return 0


def _model_verify(options: _Options, _: GuardFactory) -> int:
    artifact = find_artifact(options.model)
    count = len(artifact.manifest.files)
    sys.stdout.write(f"{artifact.id}: all {count} files are as the manifest says.\n")
    return 0


def _eval(options: _Options, guard_factory: GuardFactory) -> int:
    outputs = [path for path in (options.json_out, options.scores_out) if path is not None]
    for path in outputs:
        # Found out now rather than after an hour of judging.
        if path.is_dir() or not path.absolute().parent.is_dir():
            raise ConfigError(f"{path} can't be written: name a file in a folder that exists.")
    guard = _guard(options, guard_factory)
    with progress_bar("judging") as progress:
        report = evaluate(guard, options.files, limit=options.limit, progress=progress)
    show_report(report)
    if options.json_out is not None:
        _write(options.json_out, report.to_json() + "\n")
    if options.scores_out is not None:
        _write(options.scores_out, report.scores_jsonl())
    return 0


def _guard(options: _Options, guard_factory: GuardFactory) -> CommandGuard:
    policy = None if options.policy is None else Policy.from_file(options.policy)
    return guard_factory(model=options.model, policy=policy)


def _read_text(options: _Options) -> str:
    """Return the text to judge. What isn't UTF-8 stays in it, as surrogates: nothing is skipped."""
    if options.file is None and options.text != "-":
        return options.text or ""
    try:
        if options.file is None:
            raw = sys.stdin.buffer.read(_MAX_INPUT_BYTES + 1)
        else:
            with options.file.open("rb") as file:
                raw = file.read(_MAX_INPUT_BYTES + 1)
    except OSError as error:
        source = "Standard input" if options.file is None else str(options.file)
        raise DataError(f"{source} can't be read ({error.strerror}). Check the path.") from error
    if len(raw) > _MAX_INPUT_BYTES:
        raise DataError(f"The input is over {_MAX_INPUT_BYTES} bytes. Check it in pieces.")
    return raw.decode("utf-8", errors="surrogateescape")


def _write(path: Path, content: str) -> None:
    try:
        path.write_text(content, encoding="utf-8")
    except OSError as error:
        raise DataError(f"{path} can't be written ({error.strerror}). Name another.") from error


def _check_fields(result: CheckResult, policy: Policy) -> dict[str, JsonValue]:
    decision, verdict = result.decision, result.verdict
    return {
        "blocked": result.blocked,
        "decision": {
            "action": decision.action,
            "category": decision.category,
            "reason": decision.reason,
            "threshold": verdict and threshold_in_force(verdict, policy),
        },
        "verdict": None if verdict is None else _verdict_fields(verdict),
    }


def _verdict_fields(verdict: Verdict) -> dict[str, JsonValue]:
    return {
        "unsafe_probability": verdict.unsafe_probability,
        "threshold": verdict.threshold,
        "categories": dict(verdict.categories.items()),
        "category_thresholds": dict(verdict.category_thresholds.items()),
        "stage": verdict.stage,
        "role": verdict.role,
        "message_index": verdict.message_index,
        "span": {"start": verdict.span.start, "end": verdict.span.end},
        "windowed": verdict.windowed,
        "context_trimmed": verdict.context_trimmed,
        "reading": verdict.reading,
        "model": verdict.model,
        "policy": verdict.policy,
        "latency_ms": verdict.latency_ms,
    }


def _print_json(fields: Mapping[str, JsonValue]) -> None:
    sys.stdout.write(json.dumps(fields, indent=2) + "\n")


def _fail(message: str) -> int:
    sys.stderr.write(f"guardrail: error: {' '.join(message.split())}\n")
    return EXIT_ERROR


class _Parser(argparse.ArgumentParser):
    """An argument parser whose errors are one line and quote no argument: it may be a text."""

    def error(self, message: str) -> NoReturn:
        self.exit(EXIT_ERROR, f"guardrail: error: {_unquoted(message)}. Try: {self.prog} --help\n")


# What argparse may say: an unknown message isn't shown, for it may quote an argument.
_ARGPARSE_SAYS: Final = (
    (
        re.compile(r"unrecognized arguments: .*", re.DOTALL),
        "there are arguments too many; put a text in quotes, and -- before one that starts with -",
    ),
    (
        re.compile(r"(argument \S+): invalid choice: .*(\(choose from [^()]*\))", re.DOTALL),
        r"\1: not one of those known \2",
    ),
    (re.compile(r"(argument \S+): ignored explicit argument .*", re.DOTALL), r"\1 takes no value"),
    (re.compile(r"(argument \S+: (?:expected|not allowed|must be)[ \w-]+)"), r"\1"),
    (re.compile(r"(the following arguments are required: [ ,A-Z]+)"), r"\1"),
    (re.compile(r"(one of the arguments [ A-Za-z-]+ is required)"), r"\1"),
)


def _unquoted(message: str) -> str:
    for pattern, replacement in _ARGPARSE_SAYS:
        if match := pattern.fullmatch(message):
            return match.expand(replacement)
    return "the arguments can't be understood"


_CHECK_HELP: Final = """\
examples:
  guardrail check "How do I bake bread?"
  guardrail check --file prompt.txt --json
  curl -s https://example.com/answer | guardrail check - --role assistant
  guardrail check --prompt "How do I bake bread?" "Mix flour and water ..."

exit codes: 0 allowed or flagged, 1 redacted or blocked, 2 error
TEXT is judged as it stands and never taken for a file's name. No text is ever printed.
"""
_MODEL_HELP: Final = """\
examples:
  guardrail model info
  guardrail model verify --model ./my-model
"""
_EVAL_HELP: Final = """\
examples:
  guardrail eval my-rows.jsonl
  guardrail eval prompts.jsonl.gz responses.jsonl.gz --json report.json --scores scores.jsonl
  guardrail eval my-rows.jsonl --limit 200

The format of the rows is described in docs/data-format.md.
"""
_MAIN_HELP: Final = """\
examples:
  guardrail check "How do I bake bread?"
  guardrail model verify
  guardrail eval my-rows.jsonl

environment: GUARDRAIL_MODEL names the model folder, GUARDRAIL_CONFIG the policy file,
where --model and --policy don't.
"""

_Subparsers = argparse._SubParsersAction  # pyright: ignore[reportPrivateUsage] -- has no public name


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="guardrail",
        description="Check text with a local safety model: no network, no GPU, no key.",
        epilog=_MAIN_HELP,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"guardrail-sdk {__version__}")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    _add_check(_command(commands, "check", "Judge one text.", _CHECK_HELP))
    model = _command(commands, "model", "Show or verify a model folder.", _MODEL_HELP)
    actions = model.add_subparsers(metavar="COMMAND", required=True)
    _add_model(_command(actions, "info", "Show what a model folder says of itself."), _model_info)
    _add_model(_command(actions, "verify", "Compare every file with its hash."), _model_verify)
    _add_eval(_command(commands, "eval", "Measure a guard on labelled rows.", _EVAL_HELP))
    return parser


def _command(
    commands: _Subparsers[_Parser], name: str, summary: str, examples: str | None = None
) -> _Parser:
    return commands.add_parser(
        name,
        help=summary,
        description=summary,
        epilog=examples,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )


def _add_check(parser: _Parser) -> None:
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("text", metavar="TEXT", nargs="?", help="the text; - for standard input")
    source.add_argument("--file", metavar="PATH", type=Path, help="judge this file's contents")
    parser.add_argument(
        "--role",
        choices=("user", "assistant"),
        help="who wrote it (default: user; assistant with --prompt)",
    )
    parser.add_argument("--prompt", metavar="TEXT", help="the user's message that it answers")
    _add_guard(parser)
    parser.add_argument("--json", action="store_true", help="print JSON, for programs")
    parser.set_defaults(run=_check)


def _add_model(parser: _Parser, run: Callable[[_Options, GuardFactory], int]) -> None:
    parser.add_argument("--model", metavar="DIR", type=Path, help="model folder (default: bundled)")
    if run is _model_info:
        parser.add_argument("--json", action="store_true", help="print JSON, for programs")
    parser.set_defaults(run=run)


def _add_eval(parser: _Parser) -> None:
    parser.add_argument(
        "files", metavar="FILE", nargs="+", type=Path, help="rows: .jsonl or .jsonl.gz"
    )
    parser.add_argument(
        "--limit", metavar="N", type=_count, help="judge at most N rows of each file"
    )
    parser.add_argument(
        "--json", dest="json_out", metavar="OUT", type=Path, help="write the report as JSON"
    )
    parser.add_argument(
        "--scores",
        dest="scores_out",
        metavar="OUT",
        type=Path,
        help="write each row's id and score (JSON Lines)",
    )
    _add_guard(parser)
    parser.set_defaults(run=_eval)


def _add_guard(parser: _Parser) -> None:
    parser.add_argument("--model", metavar="DIR", type=Path, help="model folder (default: bundled)")
    parser.add_argument("--policy", metavar="FILE", type=Path, help="policy, as YAML")


def _count(argument: str) -> int:
    if not re.fullmatch(r"[0-9]{1,9}", argument) or int(argument) == 0:
        raise argparse.ArgumentTypeError("must be a whole number from 1 up")
    return int(argument)
