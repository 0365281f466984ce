"""Each code of the reject table has a file or more with this one fault, and every reader refuses it for that."""

from __future__ import annotations

import re

import pytest
from conformance_kit import INVALID, read
from kernel_paths import PATHS
from nola_forge import ROOT, golden, reference, reference_answers, verify
from reject_cases import CASES

from nola_codec.arrays import NUMPY, Arrays, TorchArrays
from nola_codec.container.limits import Limits
from nola_codec.container.reader import open_container
from nola_codec.decoder.device.decoding import decode_on_device, tensor_of
from nola_codec.decoder.device.packed import pack_blocks
from nola_codec.decoder.device.plan import make_plan
from nola_codec.errors import ChecksumMismatch, FormatError


@pytest.mark.parametrize("name", CASES)
def test_each_fault_is_refused_for_its_reason(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """NumPy and the compiled kernels say the same."""
    case, data = CASES[name], read(INVALID[name])
    wanted = ChecksumMismatch if case.code.endswith("checksum") else FormatError
    messages = set()
    for path in PATHS:
        monkeypatch.setenv("NOLA_KERNELS", path)
        with pytest.raises(FormatError) as caught:
            verify(data)
        assert type(caught.value) is wanted
        assert caught.value.code == case.code, caught.value
        messages.add(str(caught.value))
    assert len(messages) == 1
    if case.at_open:
        with pytest.raises(FormatError) as caught:
            open_container(data).close()
        assert caught.value.code == case.code
    else:
        open_container(data).close()


def decode_packed(data: bytes, where: str) -> None:
    """Decode all rungs from packed bytes, then do all checks of a file."""
    with open_container(data) as container:
        for rung in range(container.rungs):
            container.select(rung)
            header = container.read_units()
            packed = pack_blocks(container, header, range(len(header.blocks)))
            plan = make_plan(header, packed.blocks, packed)
            decode_on_device(tensor_of(packed.data, "cpu"), plan, header).check(where)
    verify(data, xp=TorchArrays())  # faults of carried tensors, of references and of digests


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if not case.at_open])
def test_a_device_refuses_the_same(name: str) -> None:
    """The path from packed bytes in PyTorch finds what the path in NumPy finds."""
    case = CASES[name]
    with pytest.raises(FormatError) as caught:
        decode_packed(read(INVALID[name]), name)
    assert caught.value.code == case.code, caught.value


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if case.code != "limit"])
def test_the_reference_decoder_refuses_the_same(name: str) -> None:
    """The reference decoder sets no limits, so cases of limits are left out."""
    case = CASES[name]
    with pytest.raises(reference().Refused) as caught:
        reference().decode(read(INVALID[name]), dict(reference_answers()))
    assert caught.value.args[0] == case.code, caught.value


@pytest.mark.parametrize(
    "limits",
    [
        Limits(header_stored=100),
        Limits(header_plain=100),
        Limits(records=3),
        Limits(kinds=1),
        Limits(quantizers=6),
        Limits(sections=1),
        Limits(units=12),
        Limits(rows=5),
        Limits(rank=3),
        Limits(dimensions=1),
        Limits(factor_elements=100),
        Limits(total_elements=1000),
        Limits(name=20),
        Limits(header_values=50),
        Limits(name_characters=40),
        Limits(record_rungs=3),
        Limits(rung_elements=1000),
        Limits(lane_steps=1),
        Limits(coefficients=1000),
    ],
    ids=lambda limits: next(f"{k}={v}" for k, v in vars(limits).items() if v != getattr(Limits(), k)),
)
@pytest.mark.parametrize("xp", [NUMPY, TorchArrays()], ids=["numpy", "torch"])
def test_a_callers_limits_hold(limits: Limits, xp: Arrays) -> None:
    with pytest.raises(FormatError) as caught:
        verify(golden("nmse"), limits, xp)
    assert caught.value.code == "limit"


@pytest.mark.parametrize("limits", [Limits(words=1000), Limits(total_elements=500), Limits(factor_elements=40)])
def test_a_callers_limits_hold_for_draws(limits: Limits) -> None:
    with pytest.raises(FormatError) as caught:
        open_container(golden("drawn"), limits)
    assert caught.value.code == "limit"


def test_every_code_has_a_case() -> None:
    """Codes of the source, of the cases and of the specification's table are the same."""
    source = set()
    for layer in ("container", "decoder", "entropy", "basis", "prng"):
        for path in (ROOT / "nola_codec" / layer).glob("*.py"):
            if path.name not in ("carried_forms.py", "torch_raw.py"):  # of tensors of an adapter, not of files
                source |= set(re.findall(r'code="([a-z-]+)"|code = "([a-z-]+)" if', path.read_text(encoding="utf-8")))
    # Not faults of a file: a caller asks for a rung that is not there, gives an adapter or a pipe, writes limits that
    # cannot be read, or encodes numbers that are too large.
    codes = {a or b for a, b in source} - {"unknown-rung", "not-nola", "unreadable", "option", "overflow"}
    assert codes == {case.code for case in CASES.values()}
    text = (ROOT / "spec" / "nola-v1.md").read_text(encoding="utf-8")
    table = text[text.index("## Reject table") :]
    assert set(re.findall(r"^\| `([a-z-]+)` \|", table, re.MULTILINE)) == codes
