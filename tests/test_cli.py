"""What the command line prints, returns and keeps to itself."""

from __future__ import annotations

import gzip
import io
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from guardrail_sdk import (
    Action,
    Category,
    EngineError,
    Guard,
    Message,
    MessageError,
    Policy,
    __version__,
)
from guardrail_sdk.cli import main
from guardrail_sdk.testing import FakeModel

SECRET = "canary-5b1f"
TINY = Path(__file__).parent / "data" / "tiny"


def score(_: str, text: str) -> dict[Category, float]:
    """Take texts with `bomb` for unsafe; the text `fail` makes the check fail."""
    if text == "fail":
        raise EngineError("The fake model was told to fail.")
    value = 0.9 if "bomb" in text else 0.1
    return {Category.S9: value, Category.S2: value / 2}


class Factory:
    """Makes guards with a fake model, and keeps what it was asked for."""

    def __init__(self) -> None:
        self.fake = FakeModel(score)
        self.asked: list[tuple[Path | None, Policy | None]] = []

    def __call__(self, *, model: Path | None, policy: Policy | None) -> Guard:
        self.asked.append((model, policy))
        return Guard(model=self.fake, policy=policy or Policy())


@pytest.fixture
def factory() -> Factory:
    return Factory()


def policy_file(tmp_path: Path, action: str) -> str:
    path = tmp_path / "policy.yaml"
    path.write_text(f"categories:\n  - id: S9\n    action: {action}\n", encoding="utf-8")
    return str(path)


def feed(monkeypatch: pytest.MonkeyPatch, raw: bytes) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(raw), encoding="utf-8"))


# check


@pytest.mark.parametrize(
    ("text", "code"), [("How do I bake bread?", 0), ("Build a bomb", 1), ("fail", 1)]
)
def test_check_exits_by_its_decision(factory: Factory, text: str, code: int) -> None:
    assert main(["check", text], guard_factory=factory) == code


@pytest.mark.parametrize(
    ("action", "code"), [("allow", 0), ("flag", 0), ("redact", 1), ("block", 1)]
)
def test_check_exits_by_the_policys_action(
    factory: Factory, tmp_path: Path, action: str, code: int
) -> None:
    arguments = ["check", "a bomb", "--policy", policy_file(tmp_path, action)]
    assert main(arguments, guard_factory=factory) == code


def test_check_shows_people_the_decision_and_its_reasons(
    factory: Factory, capsys: pytest.CaptureFixture[str]
) -> None:
    main(["check", f"a bomb {SECRET}"], guard_factory=factory)
    out, err = capsys.readouterr()
    for shown in (
        *("block", "0.900", "unsafe from 0.500", "S9 Indiscriminate Weapons: 0.900", "written"),
        *("fake", "default", "0.0 ms", "user message 0"),
    ):
        assert shown in out
    assert err == ""
    assert SECRET not in out


def test_check_json_holds_the_verdict_and_no_text(
    factory: Factory, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    policy = tmp_path / "policy.yaml"
    policy.write_text("input_threshold: 0.8\n", encoding="utf-8")
    main(["check", f"a bomb {SECRET}", "--json", "--policy", str(policy)], guard_factory=factory)
    out = capsys.readouterr().out
    fields = json.loads(out)
    assert fields["blocked"] is True
    assert fields["decision"]["action"] == "block"
    assert fields["decision"]["category"] == "S9"
    assert fields["decision"]["threshold"] == 0.8
    assert fields["verdict"]["threshold"] == 0.5
    assert {code: value for code, value in fields["verdict"]["categories"].items() if value} == {
        "S9": 0.9,
        "S2": 0.45,
    }
    assert fields["verdict"]["span"] == {"start": 0, "end": len(f"a bomb {SECRET}")}
    assert SECRET not in out


def test_a_failed_check_has_no_verdict(
    factory: Factory, capsys: pytest.CaptureFixture[str]
) -> None:
    main(["check", "fail", "--json"], guard_factory=factory)
    fields = json.loads(capsys.readouterr().out)
    assert fields["verdict"] is None
    assert fields["decision"]["action"] == "block"
    main(["check", "fail"], guard_factory=factory)
    assert "EngineError" in capsys.readouterr().out


def test_a_positional_is_judged_as_text_even_if_a_file_has_that_name(
    factory: Factory, tmp_path: Path
) -> None:
    path = tmp_path / "note.txt"
    path.write_text("a bomb", encoding="utf-8")
    assert main(["check", str(path)], guard_factory=factory) == 0
    assert factory.fake.seen == [(Message(role="user", content=str(path)),)]
    assert main(["check", "--file", str(path)], guard_factory=factory) == 1


@pytest.mark.parametrize("text", ["", "-x", "--json", "- ", "@file"])
def test_a_text_after_two_dashes_is_judged_whatever_it_looks_like(
    factory: Factory, text: str
) -> None:
    assert main(["check", "--", text], guard_factory=factory) == 0
    assert factory.fake.seen == [(Message(role="user", content=text),)]


def test_a_dash_reads_standard_input_as_it_stands(
    factory: Factory, monkeypatch: pytest.MonkeyPatch
) -> None:
    feed(monkeypatch, " a bomb\r\nटेस्ट\n".encode())
    assert main(["check", "-"], guard_factory=factory) == 1
    assert factory.fake.seen[0][0].content == " a bomb\r\nटेस्ट\n"


def test_bytes_that_are_not_utf_8_are_kept_so_that_nothing_is_skipped(
    factory: Factory, tmp_path: Path
) -> None:
    path = tmp_path / "raw"
    path.write_bytes(b"\xffbo\x00mb\xfe")
    main(["check", "--file", str(path)], guard_factory=factory)
    content = factory.fake.seen[0][0].content
    assert content.encode("utf-8", errors="surrogateescape") == b"\xffbo\x00mb\xfe"


def test_too_large_an_input_is_an_error_and_not_judged(
    factory: Factory, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "large"
    with path.open("wb") as file:
        file.truncate(16 * 1024 * 1024 + 1)
    assert main(["check", "--file", str(path)], guard_factory=factory) == 2
    assert "in pieces" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "conversation"),
    [
        (["hi"], [("user", "hi")]),
        (["hi", "--role", "assistant"], [("assistant", "hi")]),
        (["hi", "--prompt", "ask"], [("user", "ask"), ("assistant", "hi")]),
        (["hi", "--prompt", ""], [("user", ""), ("assistant", "hi")]),
        (
            ["--role", "assistant", "--prompt", "ask", "hi"],
            [("user", "ask"), ("assistant", "hi")],
        ),
    ],
)
def test_role_and_prompt_make_the_conversation(
    factory: Factory, arguments: list[str], conversation: list[tuple[str, str]]
) -> None:
    main(["check", *arguments], guard_factory=factory)
    assert [(item.role, item.content) for item in factory.fake.seen[0]] == conversation


def test_model_and_policy_reach_the_guard(factory: Factory, tmp_path: Path) -> None:
    policy = policy_file(tmp_path, "flag")
    main(["check", "hi", "--model", "some/dir", "--policy", policy], guard_factory=factory)
    main(["check", "hi"], guard_factory=factory)
    (model, chosen), defaults = factory.asked
    assert model == Path("some/dir")
    assert chosen is not None
    assert chosen.rule(Category.S9, "input").action is Action.FLAG
    assert defaults == (None, None)


# Errors


@pytest.mark.parametrize(
    ("arguments", "shown"),
    [
        (["check", "--file", "/none/such"], "/none/such can't be read (No such file"),
        (["check", "--file", "/"], "can't be read (Is a directory)"),
        (["check", SECRET, "--policy", "/none/such"], "/none/such is not a readable YAML file"),
        (["check", SECRET, "--prompt", SECRET, "--role", "user"], "drop it"),
        (["model", "info", "--model", "/none/such"], "/none/such is not a model folder"),
        (["model", "verify", "--model", "/none/such"], "/none/such is not a model folder"),
        (["eval", "/none/such.jsonl"], "/none/such.jsonl can't be read"),
        (["eval", "a.jsonl", "--json", "/none/such/out.json"], "/none/such/out.json can't be"),
    ],
)
def test_an_error_is_one_line_with_the_remedy_and_code_2(
    factory: Factory, capsys: pytest.CaptureFixture[str], arguments: list[str], shown: str
) -> None:
    assert main(arguments, guard_factory=factory) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("guardrail: error: ")
    assert err.count("\n") == 1
    assert shown in err
    assert SECRET not in err


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        [SECRET],
        ["check"],
        ["check", "how", SECRET],
        ["check", f"--{SECRET}"],
        ["check", "hi", "--role", SECRET],
        ["check", "hi", "--role", f"{SECRET} (choose from {SECRET}"],
        ["check", "hi", f"--json={SECRET}"],
        ["check", "hi", "--prompt"],
        ["check", SECRET, "--file", SECRET],
        ["check", "hi", "--fi", "x"],
        ["model", SECRET],
        ["model", "info", SECRET],
        ["eval"],
        ["eval", "a.jsonl", "--limit", SECRET],
        ["eval", "a.jsonl", "--limit", "0"],
        ["eval", "a.jsonl", "--limit", "²"],
    ],
)
def test_wrong_arguments_are_one_line_that_quotes_none_of_them(
    factory: Factory, capsys: pytest.CaptureFixture[str], arguments: list[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        main(arguments, guard_factory=factory)
    out, err = capsys.readouterr()
    assert caught.value.code == 2
    assert out == ""
    assert err.startswith("guardrail: error: ")
    assert err.count("\n") == 1
    assert "--help" in err
    assert SECRET not in err


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    before=st.lists(
        st.sampled_from(
            ["check", "model", "eval", "info", "--role", "--json", "--prompt", "--", "-x"]
        ),
        max_size=4,
    ),
    wrap=st.sampled_from(
        ["{}", "-{}", "--{}", "--json={}", "--role={}", "{}\nunrecognized arguments: {}"]
    ),
)
def test_no_order_of_arguments_makes_the_parser_quote_one(
    capsys: pytest.CaptureFixture[str], before: list[str], wrap: str
) -> None:
    try:
        # Its files don't exist, and paths are no texts: `eval` may name them.
        main([*before, wrap.format(SECRET, SECRET)], guard_factory=Factory())
    except SystemExit:
        assert SECRET not in "".join(capsys.readouterr())
    else:
        out, err = capsys.readouterr()
        assert SECRET not in out
        assert SECRET not in err or "can't be read" in err or "neither .jsonl" in err


@pytest.mark.parametrize(
    ("error", "code", "shown"),
    [
        (
            EngineError("The model gave no number."),
            2,
            "guardrail: error: The model gave no number.",
        ),
        (MessageError("Two\nlines."), 2, "guardrail: error: Two lines."),
        (ValueError(SECRET), 2, "ValueError at test_cli.py:"),
        (KeyboardInterrupt(), 130, ""),
    ],
)
def test_what_a_guard_raises_becomes_a_line_and_a_code(
    capsys: pytest.CaptureFixture[str], error: BaseException, code: int, shown: str
) -> None:
    def broken(*, model: Path | None, policy: Policy | None) -> Guard:
        raise error

    assert main(["check", SECRET], guard_factory=broken) == code
    out, err = capsys.readouterr()
    assert out == ""
    assert shown in err
    assert err.count("\n") == (1 if shown else 0)
    assert SECRET not in err


# model


def test_model_info_shows_where_a_model_comes_from(capsys: pytest.CaptureFixture[str]) -> None:
    manifest = json.loads((TINY / "manifest.json").read_text(encoding="utf-8"))
    assert main(["model", "info", "--model", str(TINY)]) == 0
    out = capsys.readouterr().out
    assert f"{manifest['name']}-{manifest['version']}@" in out
    assert manifest["provenance"]["base"] in out
    assert main(["model", "info", "--json", "--model", str(TINY)]) == 0
    fields = json.loads(capsys.readouterr().out)
    assert fields["manifest"]["files"] == manifest["files"]


def test_model_verify_notices_a_changed_byte(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    for path in TINY.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    assert main(["model", "verify", "--model", str(tmp_path)]) == 0
    assert "as the manifest says" in capsys.readouterr().out
    tokenizer = tmp_path / "tokenizer.json"
    tokenizer.write_bytes(tokenizer.read_bytes() + b" ")
    assert main(["model", "verify", "--model", str(tmp_path)]) == 2
    assert "tokenizer.json was changed" in capsys.readouterr().err


# eval


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    path = tmp_path / "rows.jsonl.gz"
    labelled: tuple[tuple[str, bool, list[str]], ...] = (
        ("a bomb", True, ["S9"]),
        ("bread", False, []),
        ("poison", True, ["S9"]),
    )
    lines = (
        json.dumps(
            {
                "id": f"row-{number}",
                "source": "demo",
                "lang": "en",
                "messages": [{"role": "user", "content": f"{text} {SECRET}"}],
                "target": "user",
                "unsafe": unsafe,
                "categories": categories,
            }
        )
        for number, (text, unsafe, categories) in enumerate(labelled)
    )
    path.write_bytes(gzip.compress("\n".join(lines).encode()))
    return path


def test_eval_prints_tables_and_writes_figures_and_scores_without_texts(
    factory: Factory, capsys: pytest.CaptureFixture[str], rows: Path, tmp_path: Path
) -> None:
    report, scores = tmp_path / "report.json", tmp_path / "scores.jsonl"
    arguments = ["eval", str(rows), "--json", str(report), "--scores", str(scores)]
    assert main(arguments, guard_factory=factory) == 0
    out, err = capsys.readouterr()
    for shown in (
        "File",
        "S9 Indiscriminate Weapons",
        "Language",
        "F1 of calling every row unsafe",
        "R@5%",
        ".667 .00-1.00",  # F1 and its interval: three rows say nearly nothing
        " .800",
    ):
        assert shown in out
    assert "Judged" not in out, "prompts alone need no table of their own"
    assert "Source" not in out, "one file of one source needs none either"
    figures = json.loads(report.read_text(encoding="utf-8"))
    assert figures["overall"]["f1"] == pytest.approx(2 / 3)
    assert figures["overall"]["always_unsafe_f1"] == pytest.approx(0.8)
    lines = [json.loads(line) for line in scores.read_text(encoding="utf-8").splitlines()]
    assert [(line["id"], line["unsafe_probability"]) for line in lines] == [
        ("row-0", 0.9),
        ("row-1", 0.1),
        ("row-2", 0.1),
    ]
    assert SECRET not in out + err + report.read_text("utf-8") + scores.read_text("utf-8")


def test_eval_limit_judges_so_many_rows(factory: Factory, rows: Path) -> None:
    assert main(["eval", str(rows), "--limit", "2"], guard_factory=factory) == 0
    assert len(factory.fake.seen) == 2


# The program itself


def run(*arguments: str, stdin: bytes = b"") -> subprocess.CompletedProcess[bytes]:
    command = [sys.executable, "-m", "guardrail_sdk", *arguments]
    return subprocess.run(command, input=stdin, capture_output=True, check=False, timeout=120)


def test_the_program_judges_with_a_real_model_folder() -> None:
    done = run("check", "-", "--json", "--model", str(TINY), stdin=SECRET.encode() + b"\xff")
    fields = json.loads(done.stdout)
    assert done.returncode == (1 if fields["blocked"] else 0)
    assert 0 <= fields["verdict"]["unsafe_probability"] <= 1
    assert fields["verdict"]["model"].startswith("tiny")
    assert SECRET.encode() not in done.stdout + done.stderr


@pytest.mark.parametrize("command", [[], ["check"], ["model"], ["eval"]])
def test_help_gives_examples(capsys: pytest.CaptureFixture[str], command: list[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main([*command, "--help"])
    assert caught.value.code == 0
    assert "examples:\n  guardrail " in capsys.readouterr().out


def test_version_needs_no_model_and_loads_no_runtime() -> None:
    script = (
        "import atexit, sys\n"
        "heavy = {'rich', 'numpy', 'onnxruntime', 'tokenizers'}\n"
        "atexit.register(lambda: print(sorted(heavy & set(sys.modules))))\n"
        "from guardrail_sdk.cli import main\n"
        "main(['--version'])\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, check=True)
    assert done.stdout.decode().splitlines() == [f"guardrail-sdk {__version__}", "[]"]


@pytest.mark.skipif(os.name != "posix", reason="pipes close differently elsewhere")
def test_a_reader_that_went_away_is_no_traceback() -> None:
    reading, writing = os.pipe()
    os.close(reading)
    command = [sys.executable, "-m", "guardrail_sdk", "model", "verify", "--model", str(TINY)]
    with os.fdopen(writing, "wb") as broken:
        done = subprocess.run(command, stdout=broken, stderr=subprocess.PIPE, check=False)
    assert done.returncode == 141
    assert done.stderr == b""
