"""Small files that ask for much work are refused before anything large is allocated, and say what would allow them."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from costly_files import COSTLY
from nola_forge import ROOT, Parts, golden, join, split, verify

import nola_codec
from nola_codec.container.limits import INSPECT_LIMITS, Limits, parse_limits
from nola_codec.container.reader import open_container
from nola_codec.errors import FormatError, NolaError

_CHILD = """
import json, resource, sys, time
import nola_codec
from nola_codec.api.inspecting import inspect
from nola_codec.api.decoding import verify
found = {}
size = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (size + (200 << 20),) * 2)
for path in sys.argv[2:]:
    call = {"inspect": inspect, "verify": verify}[sys.argv[1]]
    start = time.process_time()
    try:
        call(path)
        found[path] = ["read", ""]
    except nola_codec.NolaError as error:
        found[path] = [error.code, str(error)]
    found[path].append(time.process_time() - start)
print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("costly")
    made = {}
    for number, (name, costly) in enumerate(COSTLY.items()):
        made[name] = folder / f"{number}.nola"
        made[name].write_bytes(costly.make())
        assert made[name].stat().st_size < 10_000, name
    return made


@pytest.mark.skipif(sys.platform != "linux", reason="limits of memory as Linux has them")
@pytest.mark.parametrize("command", ["inspect", "verify"])
def test_costly_files_are_refused_within_little_memory(files: dict[str, Path], command: str) -> None:
    """Each within 200 MB more than the process has after its imports, and with the name of the limit."""
    wanted = {n: path for n, path in files.items() if command == "inspect" or not COSTLY[n].inspect_only}
    run = subprocess.run(
        [sys.executable, "-c", _CHILD, command, *map(str, wanted.values())],
        capture_output=True, text=True, check=False, env={**os.environ, "OPENBLAS_NUM_THREADS": "1"},
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    found = json.loads(run.stdout)
    for name, path in wanted.items():
        code, message, seconds = found[str(path)]
        assert code == "limit", (name, message)
        assert f"--limits {COSTLY[name].limit}=" in message, (name, message)
        assert seconds < 20, name  # a guard against work in proportion to what the file says, not a measure of speed


def test_a_refusal_says_what_allows_the_file() -> None:
    with pytest.raises(FormatError, match="--limits") as caught:
        open_container(golden("nmse"), Limits(total_elements=1000))
    found = re.search(r"found (\d+); `--limits total_elements=(\d+)`", str(caught.value))
    assert found is not None
    assert found[1] == found[2]
    open_container(golden("nmse"), Limits(total_elements=int(found[1]))).close()


def test_inspect_has_lower_limits() -> None:
    data = COSTLY["2^14 records at 64 rungs"].make()
    with pytest.raises(FormatError, match="record_rungs"):
        nola_codec.inspect(data)
    with pytest.raises(FormatError) as caught:  # its sections do not fit, which is looked at after the limits
        nola_codec.inspect(data, limits=Limits())
    assert caught.value.code == "header"
    assert all(getattr(INSPECT_LIMITS, name) <= value for name, value in vars(Limits()).items())


def test_steps_of_lanes_are_counted_once() -> None:
    """Every golden file stays far below, and a caller's limit holds for all sections together."""
    for path in sorted((ROOT / "tests" / "golden" / "v0").glob("*.nola")):
        verify(path.read_bytes(), Limits(lane_steps=1 << 16))
    with pytest.raises(FormatError, match="lane_steps"):
        verify(golden("nmse"), Limits(lane_steps=1))


def test_too_little_memory_is_an_error_of_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*arguments: object, **options: object) -> None:
        raise MemoryError

    with pytest.raises(nola_codec.OutOfMemory) as caught, open_container(golden("nmse")):
        fail()
    assert caught.value.code == "memory"
    monkeypatch.setattr("nola_codec.container.reader.unpack_header", fail)
    with pytest.raises(nola_codec.OutOfMemory):
        open_container(golden("nmse"))


def test_values_of_metadata_are_bounded() -> None:
    parts = split(golden("nmse"))
    data = join(Parts({**parts.top, "metadata": {"a": "x" * 11}}, parts.sections))
    open_container(data, Limits(metadata=11)).close()
    with pytest.raises(FormatError, match="--limits metadata=11"):
        open_container(data, Limits(metadata=10))


def test_limits_are_read_as_users_write_them(monkeypatch: pytest.MonkeyPatch) -> None:
    assert parse_limits("units=5, words=7") == Limits(units=5, words=7)
    assert parse_limits("memory=120MB").total_elements == 10**7
    assert parse_limits("memory=120MB,total_elements=3").total_elements == 3
    assert parse_limits("memory=1GB", INSPECT_LIMITS).units == INSPECT_LIMITS.units
    for wrong in ("unit=5", "units", "units=0", "units=-5", "memory=5", "memory=much"):
        with pytest.raises(NolaError) as caught:
            parse_limits(wrong)
        assert caught.value.code == "option", wrong
    with pytest.raises(NolaError, match=r"^limit units: size 'x'"):
        parse_limits("units=x")
    monkeypatch.setenv("NOLA_LIMITS", "nonsense")
    with pytest.raises(NolaError, match=r"^NOLA_LIMITS: limits: expected name=value"):
        open_container(golden("nmse"))
    monkeypatch.setenv("NOLA_LIMITS", "total_elements=1000")
    with pytest.raises(FormatError, match="total_elements"):
        open_container(golden("nmse"))
    with pytest.raises(FormatError, match="total_elements"):
        nola_codec.inspect(golden("nmse"))
    open_container(golden("nmse"), Limits()).close()  # what a caller gives counts alone
