"""The specification agrees with the code, with its reference decoder and with its worked examples."""

from __future__ import annotations

import ast
import hashlib
import importlib
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import zstandard
from nola_forge import DICTIONARY, GOLDEN, ROOT, golden, manifest, reference, stored_header, unframe, verify

from nola_codec.container.header import KEYS
from nola_codec.container.limits import Limits
from nola_codec.container.prelude import MAGIC, REVISION, SIZE, VERSION
from nola_codec.container.reader import open_container
from nola_codec.model.tensors import DTYPE_BYTES, DTYPES
from nola_codec.quant.scales import MANTISSAS
from nola_codec.quant.trellis import TRELLISES

SPECIFICATION = (ROOT / "spec" / "nola-v1.md").read_text(encoding="utf-8")
DECODER = ROOT / "spec" / "reference_decoder.py"


@pytest.fixture
def tools(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """`tools/annotate.py` and what it imports."""
    monkeypatch.syspath_prepend(ROOT / "tools")
    return importlib.import_module("annotate")


def section(title: str) -> str:
    """Return the text under a heading, up to the next heading of its level."""
    return SPECIFICATION.split(f"\n## {title}\n")[1].split("\n## ")[0]


def test_examples_are_up_to_date(tools: ModuleType) -> None:
    assert tools.fill_examples(SPECIFICATION) == SPECIFICATION, "run python tools/annotate.py"


def test_worked_file_is_whole_and_decodes() -> None:
    """A reader who types in the bytes of the specification gets the golden file, and the results that it prints."""
    text = section("Worked file")
    rows = re.findall(r"^ *\d+  ((?:[0-9a-f]{2} ?)+)$", text.split("<!-- end of bytes")[0], re.M)
    data = bytes.fromhex(" ".join(rows))
    assert data == golden("worked")
    top, tensors, digest = reference().decode(data)
    decoding = re.sub(r"\s+", " ", text.split("<!-- decoding")[1])
    assert f"decoded SHA-256 {digest}" in decoding
    for record in top["coded"]:
        vectors = [tensors[f"{record['name']}.{side}"] for side in record["sides"]]
        vectors[0] = vectors[0].T  # the columns of lora_B; a vector stays as it is
        for vector in (row for side in vectors for row in side.reshape(-1, side.shape[-1])):
            assert f"int16: {' '.join(map(str, vector))} " in decoding
    for name, tensor in tensors.items():
        assert f"{name}: {tensor.tobytes().hex(' ')}" in decoding


def test_a_library_without_dictionaries_reads_a_header() -> None:
    """By the layout of bytes that the specification gives, with the dictionary as a raw block before the header."""
    for name in manifest():
        stored = stored_header(golden(name.removesuffix(".nola")))
        plain = unframe(stored, DICTIONARY)
        assert stored[0] >> 5 in (1, 3, 5)  # one segment, and a size of 1, 2 or 4 bytes
        blocks = stored[1 + {0: 1, 1: 2, 2: 4}[stored[0] >> 6] :]
        size = len(DICTIONARY) + len(plain)
        frame = b"\x28\xb5\x2f\xfd\xa0" + size.to_bytes(4, "little")
        frame += (8 * len(DICTIONARY)).to_bytes(3, "little") + DICTIONARY + blocks
        assert zstandard.ZstdDecompressor().decompress(frame) == DICTIONARY + plain
    assert f"{len(DICTIONARY)} bytes" in section("zstd frames")
    assert hashlib.sha256(DICTIONARY).hexdigest() in section("zstd frames")


def test_header_keys_are_the_codes() -> None:
    assert re.findall(r"^\| `(\w+)` \|", section("Header"), re.MULTILINE) == sorted({*KEYS, "base", "reference"})


def test_constants_are_the_codes() -> None:
    assert " ".join(str(m) for m in MANTISSAS) in re.sub(r"\s+", " ", section("Factors"))
    assert MAGIC.hex(" ").upper() in section("File")
    assert f"files say format version {VERSION}" in SPECIFICATION
    assert f"| Revision of this document | {REVISION} (" in SPECIFICATION
    assert f"CRC-32 of bytes 0 to {SIZE - 5}" in section("File")
    kinds = re.sub(r"\s+", " ", section("Records"))
    assert " ".join(DTYPES) in kinds
    assert ", ".join(str(DTYPE_BYTES[d]) for d in DTYPES) in kinds


def rows_of(title: str) -> list[list[str]]:
    """Return the cells of all table rows of a section."""
    return [
        [cell.strip() for cell in row.strip("|").split("|")] for row in re.findall(r"^\|.*\|$", section(title), re.M)
    ]


def test_trellises_are_the_codes() -> None:
    rows = [row for row in rows_of("Quantizers") if len(row) == 5 and row[0].isdigit()]
    assert len(rows) == len(TRELLISES)
    for trellis, (number, bits, levels, masks, stride) in zip(TRELLISES, rows, strict=True):
        assert (trellis.number, trellis.bits, trellis.stride) == (int(number), int(bits), int(stride))
        assert trellis.levels == tuple(int(level) for level in levels.split(","))
        assert bytes(mask for own in trellis.masks for mask in own) == bytes.fromhex(masks.replace(",", " "))


def test_limits_are_the_codes() -> None:
    def number(text: str) -> int:
        if text.endswith(" MiB"):
            return int(text[:-4]) << 20
        base, _, power = text.partition("^")
        return int(base) ** int(power or 1)

    stated: dict[str, int] = {}
    for names, values in rows_of("Limits")[2:]:
        split = (r"; ", "; ") if ";" in values else (", ", ", ")
        if len(values.split(split[1])) == 1:
            stated[names] = number(values)
        else:
            stated |= dict(zip(names.split(split[0]), map(number, values.split(split[1])), strict=True))
    limits = Limits()
    assert stated == {
        "stored header": limits.header_stored,
        "plain header": limits.header_plain,
        "MessagePack values in the plain header, at any depth; a key counts as a value": limits.header_values,
        "records": limits.records,
        "kinds": limits.kinds,
        "sections": limits.sections,
        "quantizers": limits.quantizers,
        "rungs": limits.rungs,
        "rows of the allocation tables of a rung": limits.rows,
        "units of all records, added over all rungs": limits.units,
        "rows that units look up, over all sides and rungs": limits.look_ups,
        "characters (code points) of a name, template, `writer`, `dialect`": limits.name,
        "coded records times rungs": limits.record_rungs,
        "characters of the names of all records": limits.name_characters,
        "characters of a value of `metadata`": limits.metadata,
        "dimensions of a shape": limits.dimensions,
        "rank": limits.rank,
        "elements of a factor or a vector record": limits.factor_elements,
        "bytes of a carried or drawn tensor": limits.total_elements,
        "elements of all factors and vector records and bytes of all carried and drawn tensors, together":
            limits.total_elements,
        "elements of all factors and vector records and bytes of all carried and drawn tensors, times rungs":
            limits.rung_elements,
        "elements of the products of all pairs, if `dialect` is `delta`": limits.delta_elements,
        "words of MT19937, start and elements, of all drawn records but those that repeat one of the last two draws":
            limits.words,
        "files below a file with a reference": limits.chain,
        "coefficients of all records, as if all units were kept, times rungs": limits.coefficients,
        "length times coefficients of all vectors in dense bases, as if all units were kept, times rungs":
            limits.dense_products,
        "steps of the lanes of all rans sections": limits.lane_steps,
    }  # fmt: skip


@pytest.mark.parametrize("page", ["nola-v1.md", "conventions.md", "encoding.md", "conformance/README.md"])
def test_links_lead_somewhere(page: str) -> None:
    path = ROOT / "spec" / page
    for target in re.findall(r"\]\(([^)]+)\)", path.read_text(encoding="utf-8").replace("\n", " ")):
        name, _, anchor = target.partition("#")
        other = path.parent / name if name else path
        assert other.exists(), target
        if anchor:
            headings = re.findall(r"^#+ (.*)$", other.read_text(encoding="utf-8"), re.M)
            assert anchor in {re.sub(r"[^\w -]", "", h).lower().replace(" ", "-") for h in headings}, target


@pytest.mark.parametrize("page", ["nola-v1.md", "conventions.md"])
def test_contents_lists_all_sections_in_order(page: str) -> None:
    text = (ROOT / "spec" / page).read_text(encoding="utf-8")
    listed = re.findall(r"\[([^\]]+)\]\(#", text.split("Contents:")[1].split("\n\n")[0].replace("\n", " "))
    assert listed == re.findall(r"^## (.*)$", text, re.M)


def test_reference_decoder_is_short_and_stands_alone() -> None:
    """It has fewer than 500 lines beside docstrings, comments and empty lines."""
    code, imported = {}, set()
    for path in (DECODER, DECODER.with_name("reference_draws.py")):
        text = path.read_text(encoding="utf-8")
        left = {n for n, line in enumerate(text.splitlines(), 1) if line.strip() and not line.strip().startswith("#")}
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.Import):
                imported |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                imported.add((node.module or "").split(".")[0])
            elif isinstance(node, ast.FunctionDef | ast.ClassDef | ast.Module):
                assert ast.get_docstring(node), node
                start, end = node.body[0].lineno, node.body[0].end_lineno
                assert end is not None
                left -= set(range(start, end + 1))
        code[path.name] = len(left)
    assert code["reference_decoder.py"] < 500
    assert code["reference_draws.py"] < 70
    assert imported - set(sys.stdlib_module_names) == {"msgpack", "numpy", "zstandard"}


def test_reference_decoder_is_in_the_order_of_the_document() -> None:
    named = re.findall(r"^# == ([^.\n]*)", DECODER.read_text(encoding="utf-8"), re.M)
    headings = re.findall(r"^## (.*)$", SPECIFICATION, re.M)
    assert named == headings[headings.index("Synopsis") : headings.index("Limits")]


def run(*arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-I", *map(str, arguments)], capture_output=True, text=True, timeout=60, cwd="/"
    )


def test_reference_decoder_as_a_program(tmp_path: Path) -> None:
    done = run(DECODER, GOLDEN / "raw-tensors.nola", "--npz", tmp_path / "out.npz")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.strip() == manifest()["raw-tensors.nola"]["factors_sha256"]
    with np.load(tmp_path / "out.npz") as made:
        assert made["layers.0.q.lora_B"].dtype == np.int16
        assert made["layers.0.q.lora_A"].shape == (2, 16)
        assert made["scalar"].tobytes() == (-5).to_bytes(8, "little", signed=True)


def test_reference_decoder_takes_references_as_a_program() -> None:
    needed = [item for name in ("vectors", "reference") for item in ("--reference", GOLDEN / f"{name}.nola")]
    done = run(DECODER, GOLDEN / "reference-chain.nola", *needed)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.strip() == manifest()["reference-chain.nola"]["factors_sha256"]


def test_reference_decoder_refuses_as_a_program(tmp_path: Path) -> None:
    (tmp_path / "cut.nola").write_bytes(golden("nmse")[:-1])
    done = run(DECODER, tmp_path / "cut.nola")
    assert (done.returncode, done.stdout) == (1, "")
    assert "truncated" in done.stderr


def test_golden_files_are_never_replaced(tools: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_golden = importlib.import_module("make_golden")
    monkeypatch.setattr(make_golden, "ROOT", tmp_path)
    (tmp_path / "old.nola").write_bytes(b"old")
    make_golden.write_new(tmp_path / "old.nola", b"new")
    make_golden.write_new(tmp_path / "new.nola", b"new")
    assert (tmp_path / "old.nola").read_bytes() == b"old"
    assert (tmp_path / "new.nola").read_bytes() == b"new"


@pytest.mark.slow
def test_reference_decoder_on_a_real_adapter(examples: Path, tmp_path: Path) -> None:
    """A file of 210 modules at 90 KB has the decoded SHA-256 of the package, in a few seconds."""
    encode = importlib.import_module("nola_codec.encoder.pipeline").encode_adapter
    options = importlib.import_module("nola_codec.encoder.options").EncodeOptions
    read = importlib.import_module("nola_codec.adapters").read
    data, _ = encode(read(examples / "smollm2_e2e"), options(size=90_000), source_bytes=1)
    verify(data)
    (tmp_path / "e2e.nola").write_bytes(data)
    done = run(DECODER, tmp_path / "e2e.nola")
    assert done.returncode == 0, done.stderr
    with open_container(data) as container:
        assert done.stdout.strip() == container.header.decoded_sha256.hex()
