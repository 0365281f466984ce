"""`encode --fit task`, on a language model of two layers made here."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Run = Callable[..., Any]
SIZE = "1300B"


@pytest.fixture(scope="session")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("rows") / "rows.txt"
    path.write_text("the cat sat on a mat\na dog ran to the park\nthe dog sat on the cat\n" * 16)
    return path


@pytest.fixture
def options(base: Path, rows: Path) -> list[object]:
    return ["--fit", "task", "--base", base, "--data", rows, "--size", SIZE, "--batch", 4]


def test_fit_task(run: Run, trained: Path, options: list[object], tmp_path: Path) -> None:
    out = tmp_path / "a.nola"
    done = run("encode", trained, "-o", out, *options, "--steps", 30, "--json")
    assert (done.status, done.err) == (0, "")
    task = done.json["task"]
    assert task["file"] < task["start"] < task["base"]
    assert task["adapter"] < task["base"]
    assert task["kept"] == pytest.approx((task["base"] - task["file"]) / (task["base"] - task["adapter"]))
    assert (task["unit"], task["rows"], done.json["objective"]) == ("nats a token", 5, "task")
    assert out.stat().st_size == done.json["bytes"] <= 1300
    assert run("verify", out).status == 0
    assert run("inspect", out, "--json").json["measured"]["loss"] == task["file"]
    assert run("decode", out, "-o", tmp_path / "lora").status == 0
    assert [path.name for path in tmp_path.iterdir() if path.name.endswith(".training")] == []


def test_what_is_printed(run: Run, trained: Path, options: list[object], rows: Path, tmp_path: Path) -> None:
    done = run("encode", trained, "-o", tmp_path / "a.nola", *options, "--steps", 3, "--against", "both", "-n",
               "--held-out", rows)  # fmt: skip
    assert done.status == 0, done.err
    assert "\ntask         " in done.out
    assert done.out.partition("\n")[0].endswith("% of the adapter's gain is kept, measured")
    assert " nats a token  (48 held-out rows, measured)\n" in done.out
    assert "\n  of them    base " in done.out
    assert "\neff. error" not in done.out
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--fit", "task"], "--fit task needs --base"),
        (["--data", "d"], "--fit task needs --base"),
        (["--prompts", "p"], "--fit task needs --base"),
        (["--fit", "weights", "--data", "d"], "--data serves --fit task"),
        (["--prompts", "p", "--data", "d", "--base", "m"], "--prompts serves --data self"),
        (["--data", "self", "--base", "m", "--held-out", "d"], "--held-out needs the data of the task"),
        (["--prompts", "p", "--base", "m", "--against", "labels"], "--against labels needs the data of the task"),
        (["--steps", "3", "--against", "both"], "--against and --steps serve --fit task"),
        (["--fit", "task", "--base", "m", "--data", "d", "--nmse", ".1"], "leave out nmse"),
        (["--fit", "task", "--base", "m", "--data", "d", "--rungs", "1KB"], "a file of one rung"),
    ],
)  # fmt: skip
def test_options_without_their_partners(
    options: list[str], message: str, run: Run, adapter: Path, tmp_path: Path
) -> None:
    done = run("encode", adapter, "-o", tmp_path / "a.nola", *options)
    assert done.status == 2
    assert message in done.err


def test_data_that_will_not_do(run: Run, trained: Path, base: Path, tmp_path: Path) -> None:
    few = tmp_path / "few.txt"
    few.write_text("the cat\na dog\n")
    done = run("encode", trained, "-o", tmp_path / "a.nola", "--fit", "task", "--base", base, "--data", few)
    assert done.status == 3
    assert "expected at least 16 rows, found 2 [task-data]" in done.err
    done = run("encode", trained, "-o", tmp_path / "a.nola", "--fit", "task", "--base", base, "--data", "/nowhere")
    assert (done.status, done.err.split("[")[-1]) == (3, "not-found]\n")


def test_a_foreign_checkpoint_is_refused(run: Run, trained: Path, options: list[object], tmp_path: Path) -> None:
    (tmp_path / "a.nola.training").write_bytes(b"not a checkpoint")
    done = run("encode", trained, "-o", tmp_path / "a.nola", *options, "--steps", 3)
    assert done.status == 3
    assert "remove it to begin anew [task-checkpoint]" in done.err
    assert not (tmp_path / "a.nola").exists()
