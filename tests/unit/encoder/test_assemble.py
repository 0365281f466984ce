"""Sections and headers: what is written is what a reader finds, with any codec, and carried tensors come along."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from nola_codec.arrays import NUMPY
from nola_codec.container.reader import open_container
from nola_codec.decoder.decoder import Decoder
from nola_codec.encoder.assemble import code_rungs, estimate_bytes, pack_raw, write_file
from nola_codec.encoder.content import QuantizedAdapter, block_sizes
from nola_codec.encoder.job import EncodeJob
from nola_codec.encoder.pipeline import quantize_factors, quantize_to
from nola_codec.encoder.rate_control import first_target
from nola_codec.encoder.reconstruct import FactsCollector, decode_rung
from nola_codec.entropy import NAMES as CODECS
from nola_codec.entropy.blobs import STORED, ZSTD
from nola_codec.model.tensors import RawTensor


@pytest.fixture
def job(make_job: Callable[..., EncodeJob]) -> EncodeJob:
    raw = {"b.norm": RawTensor("F32", (3,), bytes(range(12))), "z.zeros": RawTensor("F32", (500,), bytes(2000))}
    job = make_job(size=3000, rungs=(1500,))
    return replace(job, envelope=replace(job.envelope, raw=raw), raw_sections=tuple(pack_raw(raw)))


@pytest.fixture
def quantized(job: EncodeJob) -> QuantizedAdapter:
    return quantize_to(job, first_target(job), None)[0]


def written(job: EncodeJob, quantized: QuantizedAdapter, codecs: tuple[int, ...] = (0, 2)) -> bytes:
    facts = []
    for rung in range(len(quantized.content.rungs)):
        collector = FactsCollector()
        for decoded in decode_rung(quantized.content, job.envelope, rung):
            collector.add(decoded)
        facts.append(collector.finish(job.envelope, {"nmse": 0.5 - 0.1 * rung}))
    coded = code_rungs(quantized.content, quantized.sizes, codecs)
    return write_file(quantized.content, quantized.sizes, coded, facts, job.envelope, job.raw_sections)


@pytest.mark.parametrize("codecs", [("raw",), ("raw", "rans")], ids=str)
def test_a_reader_finds_what_was_written(codecs: tuple[str, ...], job: EncodeJob, quantized: QuantizedAdapter) -> None:
    data = written(job, quantized, tuple(CODECS[name] for name in codecs))
    with open_container(data) as container:
        container.check_content()
        decoder = Decoder(container, NUMPY)
        symbols = decoder.symbols()
        header = container.header
        carried = dict(decoder.carried_tensors())
    assert [r.name for r in header.coded] == [item.name for item in job.items]
    assert [rung.measured for rung in header.rungs] == [{"nmse": 0.5}, {"nmse": 0.4}]
    assert carried == dict(job.envelope.raw)
    assert len(symbols) == len(job.items)
    for index, own in enumerate(symbols):
        for rung, found in enumerate(own):
            assert np.array_equal(found, quantized.content.symbols[rung][index])


def test_the_estimate_is_near_the_file(job: EncodeJob, quantized: QuantizedAdapter) -> None:
    size = estimate_bytes(quantized.content, quantized.sizes, job.envelope, job.raw_sections)
    assert size == pytest.approx(len(written(job, quantized)), rel=0.02)


def test_raw_tensors_are_packed_where_it_pays() -> None:
    noise = np.random.default_rng(0).bytes(400)
    sections = pack_raw({"a": RawTensor("U8", (400,), noise), "b": RawTensor("U8", (400,), bytes(400))})
    assert sections[0] == (STORED, noise)
    assert sections[1][0] == ZSTD
    assert len(sections[1][1]) < 40


def test_blocks_cover_all_records_and_their_bits_are_the_symbols(make_job: Callable[..., EncodeJob]) -> None:
    content = quantize_factors(make_job(bits=1)).content  # no frequencies, since both signs are as frequent
    sizes = block_sizes(content)
    assert sizes.spans == ((0, len(content.records)),)
    symbols = sum(len(own) for own in content.symbols[0])
    assert sizes.packed_bits == ((1.0 * symbols,),)
    assert sizes.coded_bits == ((0.0,),)


def test_batches_of_blocks_give_the_same_sections(quantized: QuantizedAdapter, monkeypatch: pytest.MonkeyPatch) -> None:
    content = quantized.content
    sizes = block_sizes(content, 200)
    assert len(sizes.spans) > 3
    whole = code_rungs(content, sizes)
    blocks = [len(np.concatenate(content.symbols[0][start:stop])) for start, stop in sizes.spans]
    monkeypatch.setattr("nola_codec.encoder.assemble._BATCH_SYMBOLS", blocks[0] + 1)
    assert code_rungs(content, sizes) == whole
    assert [len(rung) for rung in whole] == [len(blocks)] * len(content.rungs)


def test_symbols_of_a_draft_are_a_sequence(quantized: QuantizedAdapter) -> None:
    symbols = quantized.content.symbols[0]
    assert len(symbols) == len(quantized.content.records)
    assert [own.tolist() for own in symbols[1:3]] == [symbols[1].tolist(), symbols[2].tolist()]
    with pytest.raises(IndexError):
        symbols[len(symbols)]
