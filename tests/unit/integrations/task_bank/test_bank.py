"""A bank of tasks: the bits of merges, the base restored, PEFT's outputs, budgets, threads, and what is refused."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoHaConfig, LoraConfig, PeftModel, VeraConfig, get_peft_model

import nola_codec
from nola_codec.errors import AdapterError, ChecksumMismatch, FormatError, NolaError
from nola_codec.integrations import peft as nola_peft

pytestmark = [
    pytest.mark.filterwarnings("ignore"),  # Transformers and PEFT warn of each other's old names
    pytest.mark.usefixtures("one_thread"),
]
RATE: dict[str, Any] = {"num_basis": 8, "bits": 4}
"""A form that is coded at once, whatever it loses."""
LAYER = "model.layers.0.self_attn.q_proj"


@pytest.fixture
def case(make_case: Callable[..., Any]) -> Any:
    return make_case(encode=RATE)


def file_of(model: Any, config: Any, seed: int = 0, **options: Any) -> bytes:
    """A file of an adapter with random numbers on a model, which PEFT changes."""
    torch.manual_seed(seed)
    wrapped = get_peft_model(model, config)
    with torch.no_grad():
        for parameter in wrapped.parameters():
            if parameter.requires_grad:
                parameter.copy_(0.3 * torch.randn_like(parameter))
    return nola_codec.encode_bytes(wrapped, **(options or RATE))[0]


def lora(**options: Any) -> LoraConfig:
    return LoraConfig(**{"r": 2, "lora_alpha": 3, "target_modules": ["q_proj", "down_proj"], **options})


@pytest.fixture
def files(case: Any) -> dict[str, bytes]:
    """Five tasks of one base: ranks, scalings and targets differ."""
    return {
        "first": case.encoded,
        "small": file_of(case.fresh(), lora(), 1),
        "large": file_of(case.fresh(), lora(r=5, use_rslora=True, target_modules=["q_proj", "v_proj"]), 2),
        "other": file_of(case.fresh(), lora(target_modules=["up_proj", "o_proj"]), 3),
        "again": file_of(case.fresh(), lora(), 4),
    }


def bits(model: Any) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def same(model: Any, before: dict[str, torch.Tensor]) -> bool:
    now = model.state_dict()
    return now.keys() == before.keys() and all(torch.equal(now[name], before[name]) for name in before)


def merged(case: Any, file: bytes) -> Any:
    model = case.fresh()
    with nola_codec.load(file) as opened:
        opened.merge_into(model)
    return model


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_merged_tasks_have_the_bits_of_a_merge(dtype: torch.dtype, make_case: Callable[..., Any]) -> None:
    case = make_case(encode=RATE, dtype=dtype)
    second = file_of(case.fresh(), lora(target_modules=["q_proj", "o_proj"]))
    model = case.fresh()
    before = bits(model)
    with nola_codec.TaskBank(model, apply="merged") as bank:
        bank.add("first", case.encoded)
        bank.add("second", second)
        for name, file in (("first", case.encoded), ("second", second), ("first", case.encoded)):
            bank.switch(name)
            assert bank.current == name
            assert same(model, bits(merged(case, file)))
        changed = sum(
            weight.nbytes for name, weight in before.items() if not torch.equal(model.state_dict()[name], weight)
        )
        assert bank.usage().kept == changed
        bank.switch(None)
        assert bank.current is None
        assert same(model, before)
        assert bank.usage().kept == 0
        bank.switch("second")
    assert same(model, before)


def test_tasks_beside_the_weights_compute_what_peft_does(case: Any, files: dict[str, bytes], tmp_path: Path) -> None:
    model = case.fresh()
    before, plain = bits(model), case.logits(model)
    bank = nola_codec.TaskBank(model)
    for name, file in files.items():
        bank.add(name, file)
    for name, file in files.items():
        bank.switch(name)
        nola_codec.decode(file, tmp_path / name)
        wanted = case.logits(PeftModel.from_pretrained(case.fresh(), tmp_path / name))
        torch.testing.assert_close(case.logits(model), wanted, atol=2e-5, rtol=2e-5)
        assert not torch.equal(wanted, plain)
        assert same(model, before)
        assert bank.usage().kept == 0
        assert bank.usage().applied > 0
    bank.close()
    assert torch.equal(case.logits(model), plain)
    assert not any(module._forward_hooks for module in model.modules())


KINDS: dict[str, tuple[str, Any]] = {
    "patterns": ("llama", LoraConfig(r=4, lora_alpha=9, use_rslora=True, target_modules=["q_proj", "up_proj"],
                                     rank_pattern={"q_proj": 2}, alpha_pattern={"up_proj": 3})),
    "saved": ("llama", LoraConfig(r=2, target_modules=["q_proj"], modules_to_save=["lm_head"], task_type="CAUSAL_LM")),
    "embedding": ("llama", LoraConfig(r=2, target_modules=["embed_tokens", "k_proj"])),
    "transposed": ("gpt2", LoraConfig(r=2, target_modules=["c_attn"], fan_in_fan_out=True, bias="lora_only")),
    "vera": ("llama", VeraConfig(r=2, target_modules=["q_proj", "o_proj"])),
    "loha": ("llama", LoHaConfig(r=2, alpha=3, target_modules=["v_proj"])),
}  # fmt: skip


@pytest.mark.parametrize("apply", ["side", "merged"])
@pytest.mark.parametrize("kind", KINDS)
def test_what_is_more_than_pairs_is_merged(
    kind: str, apply: Any, make_case: Callable[..., Any], tmp_path: Path
) -> None:
    family, config = KINDS[kind]
    case = make_case(family, ("c_attn",) if family == "gpt2" else ("q_proj",), encode=RATE)
    file = file_of(case.fresh(), config)
    nola_codec.decode(file, tmp_path / "decoded")
    wanted = case.logits(PeftModel.from_pretrained(case.fresh(), tmp_path / "decoded"))
    model = case.fresh()
    before, plain = bits(model), case.logits(model)
    with nola_codec.TaskBank(model, apply=apply) as bank:
        bank.add("task", file)
        assert same(model, before)
        bank.switch("task")
        torch.testing.assert_close(case.logits(model), wanted, atol=2e-5, rtol=2e-5)
        assert apply == "side" or same(model, bits(merged(case, file)))
        bank.switch(None)
        assert same(model, before)
        assert torch.equal(case.logits(model), plain)


def test_a_convolution_runs_beside_its_kernel() -> None:
    class Net(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = torch.nn.Conv2d(3, 6, 3, stride=2, padding=1)
            self.second = torch.nn.Conv2d(6, 6, 3, groups=2)
            self.last = torch.nn.Linear(6, 4)

        def forward(self, x: torch.Tensor) -> Any:
            return self.last(self.second(self.first(x)).mean((2, 3)))

    torch.manual_seed(0)
    net = Net()
    shapes = {"first": ((2, 3, 3, 3), (6, 2, 1, 1)), "second": ((2, 3, 3, 3), (6, 2, 1, 1)), "last": ((2, 6), (4, 2))}
    tensors = {}
    for name, (a_shape, b_shape) in shapes.items():
        tensors[f"base_model.model.{name}.lora_A.weight"] = torch.randn(a_shape)
        tensors[f"base_model.model.{name}.lora_B.weight"] = torch.randn(b_shape)
    config = {"peft_type": "LORA", "r": 2, "lora_alpha": 2, "target_modules": list(shapes)}
    file, _ = nola_codec.encode_bytes(tensors, config=config, **RATE)
    image = torch.randn(2, 3, 17, 17)
    with torch.no_grad():
        plain = net(image)
        with nola_codec.TaskBank(net, apply="merged") as bank:
            bank.add("task", file)
            bank.switch("task")
            wanted = net(image)
        with nola_codec.TaskBank(net) as bank:
            bank.add("task", file)
            bank.switch("task")
            torch.testing.assert_close(net(image), wanted, atol=1e-4, rtol=1e-4)
            assert bank.usage().kept == net.second.weight.nbytes  # of two groups, which has no branch
        assert torch.equal(net(image), plain)
        assert not torch.allclose(wanted, plain)


def test_the_projection_that_attention_reads_by_itself_is_merged() -> None:
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.MultiheadAttention(8, 2, batch_first=True))
    name = "base_model.model.0.out_proj"
    tensors = {f"{name}.lora_A.weight": torch.randn(2, 8), f"{name}.lora_B.weight": torch.randn(8, 2)}
    config = {"peft_type": "LORA", "r": 2, "lora_alpha": 2, "target_modules": ["out_proj"]}
    file, _ = nola_codec.encode_bytes(tensors, config=config, **RATE)
    x = torch.randn(1, 5, 8)
    attention: Any = net[0]
    plain = attention(x, x, x)[0]
    with nola_codec.TaskBank(net) as bank:
        bank.add("task", file)
        bank.switch("task")
        assert not torch.allclose(attention(x, x, x)[0], plain)
        assert bank.usage().kept == attention.out_proj.weight.nbytes
    assert torch.equal(attention(x, x, x)[0], plain)


@pytest.mark.parametrize("apply", ["side", "merged"])
def test_a_model_of_peft_keeps_its_own_adapters(apply: Any, case: Any, files: dict[str, bytes]) -> None:
    model = nola_peft.load(case.fresh(), files["small"], adapter_name="own")
    before, alone = bits(model), case.logits(model)
    with nola_codec.TaskBank(model, apply=apply) as bank:
        bank.add("task", files["large"])
        bank.add("other", files["other"])
        bank.switch("other")
        bank.switch("task")
        both = case.logits(model)
        with model.disable_adapter():
            task = case.logits(model)
        torch.testing.assert_close(task, case.logits(merged(case, files["large"])), atol=2e-5, rtol=2e-5)
        assert not torch.allclose(both, task)
        assert model.active_adapters == ["own"]
    assert same(model, before)
    assert torch.equal(case.logits(model), alone)


@pytest.mark.parametrize("apply", ["side", "merged"])
def test_the_base_has_its_bits_after_many_random_switches(apply: Any, case: Any, files: dict[str, bytes]) -> None:
    model = case.fresh()
    before = bits(model)
    rng = random.Random(0)
    with nola_codec.TaskBank(model, apply=apply, memory=6000) as bank:  # some of the tasks at a time
        for name, file in files.items():
            bank.add(name, file)
        for _ in range(200):
            bank.switch(rng.choice([None, *files]))
            assert bank.usage().rebuilt <= 6000
        bank.switch(None)
        assert same(model, before)


def test_stacked_factors_are_single_ones_bit_by_bit(case: Any, files: dict[str, bytes]) -> None:
    with nola_codec.TaskBank(case.fresh()) as bank:
        for name, file in files.items():
            bank.add(name, file)
        names = ["large", "other", "first", "large"]
        stacked = bank.factors(names)
        singles = [bank.factors([name]) for name in names]
        for module, found in stacked.items():
            assert max(found.ranks) == found.lora_A.shape[1] == found.lora_B.shape[2]
            assert found.lora_A.shape[0] == found.lora_B.shape[0] == len(names)
            for number, (rank, single) in enumerate(zip(found.ranks, singles, strict=True)):
                assert not found.lora_A[number, rank:].any()
                assert not found.lora_B[number, :, rank:].any()
                assert (module in single) == (rank > 0)
                if rank:
                    assert torch.equal(found.lora_A[number, :rank], single[module].lora_A[0])
                    assert torch.equal(found.lora_B[number, :, :rank], single[module].lora_B[0])
        with nola_codec.load(files["first"]) as opened:
            lora_A, lora_B = opened.factors(LAYER)
        own = singles[2][LAYER]
        scaling = 8 / 4
        torch.testing.assert_close(own.lora_B[0] @ own.lora_A[0], scaling * lora_B @ lora_A)
        fixed = bank.factors(names, rank=7)
        assert all(each.lora_A.shape[1] == each.lora_B.shape[2] == 7 for each in fixed.values())
        assert torch.equal(fixed[LAYER].lora_A[:, : stacked[LAYER].lora_A.shape[1]], stacked[LAYER].lora_A)
        with pytest.raises(NolaError, match="rank: expected at most 2, found 5") as caught:
            bank.factors(names, rank=2)
        assert caught.value.code == "rank-limit"
        assert bank.factors([]) == {}


def test_zero_components_are_left_out(make_case: Callable[..., Any]) -> None:
    case = make_case(r=8, encode={"size": "1KB", "objective": "nmse"})
    with nola_codec.load(case.encoded) as opened:
        kept = {record.name: record.units for record in opened.open_decoder().header.pairs}
    assert min(kept.values()) < 8
    with nola_codec.TaskBank(case.fresh()) as bank:
        bank.add("task", case.encoded)
        found = bank.factors(["task"])
        for name, units in kept.items():
            module = name.removeprefix("base_model.model.")
            assert (found[module].ranks[0] if module in found else 0) <= units


def test_the_dtype_of_factors_can_be_chosen(case: Any, files: dict[str, bytes]) -> None:
    with nola_codec.TaskBank(case.fresh()) as wide, nola_codec.TaskBank(case.fresh(), dtype=torch.bfloat16) as narrow:
        for bank in (wide, narrow):
            bank.add("task", files["first"])
            bank.switch("task")
        for module, found in narrow.factors(["task"]).items():
            assert found.lora_A.dtype == torch.bfloat16
            assert torch.equal(found.lora_A, wide.factors(["task"])[module].lora_A.bfloat16())
        torch.testing.assert_close(case.logits(narrow.model), case.logits(wide.model), atol=0.05, rtol=0.05)


def test_a_server_gets_the_factors(case: Any, files: dict[str, bytes]) -> None:
    calls: list[tuple[str | None, dict[str, Any]]] = []
    model = case.fresh().to("meta")  # the names and shapes are enough
    with nola_codec.TaskBank(model, apply=lambda name, factors: calls.append((name, dict(factors)))) as bank:
        bank.add("task", files["large"])
        bank.switch("task")
        bank.switch("task")
        stacked = bank.factors(["task"])
        saved = file_of(case.fresh(), lora(modules_to_save=["lm_head"]))
        with pytest.raises(AdapterError, match=r"changes lm_head\.weight by more than a pair of factors") as caught:
            bank.add("saved", saved)
        assert caught.value.code == "not-expressible"
        assert bank.names() == ["task"]
    (name, factors), (left, nothing) = calls
    assert (name, left, nothing) == ("task", None, {})
    assert factors.keys() == stacked.keys()
    for module, (lora_A, lora_B) in factors.items():
        assert torch.equal(lora_A, stacked[module].lora_A[0])
        assert torch.equal(lora_B, stacked[module].lora_B[0])


def test_a_server_that_fails_keeps_the_task_before(case: Any, files: dict[str, bytes]) -> None:
    def apply(name: str | None, factors: Any) -> None:
        if name == "small":
            raise RuntimeError("no slot is free")

    with nola_codec.TaskBank(case.fresh(), apply=apply) as bank:
        bank.add("first", files["first"])
        bank.add("small", files["small"])
        bank.switch("first")
        with pytest.raises(RuntimeError, match="no slot is free"):
            bank.switch("small")
        assert bank.current == "first"


@pytest.mark.parametrize("apply", ["side", "merged"])
def test_threads_switch_and_ask_for_factors(apply: Any, case: Any, files: dict[str, bytes]) -> None:
    model = case.fresh()
    before = bits(model)
    wanted = {name: case.logits(merged(case, file)) for name, file in files.items()}
    failed: list[BaseException] = []
    with nola_codec.TaskBank(model, apply=apply, memory=8000) as bank:
        for name, file in files.items():
            bank.add(name, file)
        single = {name: bank.factors([name]) for name in files}

        def work(seed: int) -> None:
            rng = random.Random(seed)
            try:
                for _ in range(12):
                    name = rng.choice(list(files))
                    if seed % 2:
                        with bank.use(name) as used:
                            assert used is model
                            assert bank.current == name
                            torch.testing.assert_close(case.logits(model), wanted[name], atol=5e-5, rtol=5e-5)
                    else:
                        bank.switch(rng.choice([name, None]))
                        for module, found in bank.factors([name]).items():
                            assert torch.equal(found.lora_B, single[name][module].lora_B)
            except BaseException as error:
                failed.append(error)

        threads = [threading.Thread(target=work, args=(seed,)) for seed in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert not failed, failed[0]
    assert same(model, before)


def test_prefetch_rebuilds_on_another_thread(case: Any, files: dict[str, bytes]) -> None:
    with nola_codec.TaskBank(case.fresh()) as bank:
        for name, file in files.items():
            bank.add(name, file)
        assert bank.usage().rebuilt == 0
        bank.prefetch(["small", "large"]).result(60)
        usage = bank.usage()
        assert {name for name, task in usage.tasks.items() if task.rebuilt} == {"small", "large"}
        assert usage.rebuilt == sum(task.rebuilt for task in usage.tasks.values())
        bank.prefetch(["other"])
        bank.switch("other")  # waits for the other thread, or does it itself
        assert bank.current == "other"
        with pytest.raises(AdapterError, match="no task 'absent'"):
            bank.prefetch(["other", "absent"])


def test_the_budget_bounds_the_cache(case: Any, files: dict[str, bytes]) -> None:
    with nola_codec.TaskBank(case.fresh()) as bank:
        sizes = {}
        for name, file in files.items():
            bank.add(name, file)
            bank.factors([name])
            sizes[name] = bank.usage().tasks[name].rebuilt
        assert min(sizes.values()) > 0
        assert bank.usage().packed == sum(len(file) for file in files.values())
    with nola_codec.TaskBank(case.fresh(), memory=sizes["first"] + sizes["small"]) as bank:
        for name in ("first", "small", "other"):
            bank.add(name, files[name])
        bank.factors(["first", "small"])
        bank.factors(["first"])  # used again, so "small" leaves first
        bank.factors(["other"])
        there = {name for name, task in bank.usage().tasks.items() if task.rebuilt}
        assert "small" not in there
        assert "other" in there
    with nola_codec.TaskBank(case.fresh(), memory=0) as bank:
        bank.add("first", files["first"])
        bank.switch("first")
        assert bank.usage().rebuilt == 0


def test_files_are_held_once_with_the_versions_they_need(case: Any, tmp_path: Path) -> None:
    config = lora()
    wrapped = get_peft_model(case.fresh(), config)
    torch.manual_seed(0)
    for number in (1, 2):
        with torch.no_grad():
            for parameter in wrapped.parameters():
                if parameter.requires_grad:
                    parameter.add_((0.3 if number == 1 else 0.03) * torch.randn_like(parameter))
        reference = tmp_path / "v1.nola" if number == 2 else None
        nola_codec.encode(wrapped, tmp_path / f"v{number}.nola", nmse=0.05, reference=reference)
    first, second = ((tmp_path / f"v{number}.nola").read_bytes() for number in (1, 2))
    with nola_codec.TaskBank(case.fresh(), apply="merged") as bank:
        bank.add("two", tmp_path / "v2.nola")
        assert bank.usage().packed == len(first) + len(second)
        bank.add("one", first)
        bank.add("two again", second, references=first)
        assert bank.usage().packed == len(first) + len(second)
        with pytest.raises(NolaError) as caught:
            bank.add("lost", second)
        assert caught.value.code == "reference"
        with nola_codec.load(tmp_path / "v2.nola") as opened:
            model = case.fresh()
            opened.merge_into(model)
        for path in tmp_path.glob("*.nola"):
            path.unlink()
        bank.switch("two")
        assert same(bank.model, bits(model))
        bank.switch(None)
        bank.remove("two")
        bank.remove("two again")
        assert bank.usage().packed == len(first)


def test_a_reference_that_was_never_coded(case: Any, tmp_path: Path) -> None:
    wrapped = get_peft_model(case.fresh(), lora())
    torch.manual_seed(0)
    for number in (1, 2):
        with torch.no_grad():
            for parameter in wrapped.parameters():
                if parameter.requires_grad:
                    parameter.add_((0.3 if number == 1 else 0.03) * torch.randn_like(parameter))
        wrapped.save_pretrained(tmp_path / f"v{number}", save_embedding_layers=False)
    nola_codec.encode(tmp_path / "v2", tmp_path / "v2.nola", nmse=0.05, reference=tmp_path / "v1")
    model = case.fresh()
    with nola_codec.load(tmp_path / "v2.nola", references=tmp_path / "v1") as opened:
        opened.merge_into(model)
    with nola_codec.TaskBank(case.fresh(), apply="merged") as bank:
        bank.add("two", tmp_path / "v2.nola", references=tmp_path / "v1")
        assert bank.usage().packed > (tmp_path / "v2.nola").stat().st_size
        bank.switch("two")
        assert same(bank.model, bits(model))
        bank.switch(None)
        bank.remove("two")
        assert bank.usage().packed == 0


def test_a_rung_of_a_progressive_file(case: Any) -> None:
    data, _ = nola_codec.encode_bytes(case.adapter, rungs=["1KB"], nmse=0.01)
    with nola_codec.TaskBank(case.fresh(), apply="merged") as bank:
        bank.add("coarse", data, rung=0)
        bank.add("fine", data)
        for name, rung in (("coarse", 0), ("fine", None)):
            model = case.fresh()
            with nola_codec.load(data, rung=rung) as opened:
                opened.merge_into(model)
            bank.switch(name)
            assert same(bank.model, bits(model))
        with pytest.raises(AdapterError) as caught:
            bank.add("none", data, rung=9)
        assert caught.value.code == "unknown-rung"


@pytest.fixture
def bank(case: Any, files: dict[str, bytes]) -> Iterator[Any]:
    with nola_codec.TaskBank(case.fresh()) as made:
        made.add("first", files["first"])
        yield made


REFUSED: dict[str, tuple[Any, str, str]] = {
    "dora": (lora(use_dora=True), "merge-dora", "DoRA divides by the norms"),
    "tokens": (lora(trainable_token_indices={"embed_tokens": [1, 2]}), "merge-trainable-tokens", "trained tokens"),
    "alora": (lora(alora_invocation_tokens=[1, 2], task_type="CAUSAL_LM"), "merge-alora", "invocation tokens"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_methods_that_no_merge_can_apply_are_refused_by_name(kind: str, bank: Any, case: Any) -> None:
    config, code, words = REFUSED[kind]
    with pytest.raises(AdapterError, match=words) as caught:
        bank.add("task", file_of(case.fresh(), config))
    assert caught.value.code == code
    assert bank.names() == ["first"]


def test_a_file_of_another_model_is_refused(bank: Any, make_case: Callable[..., Any]) -> None:
    other = make_case("gpt2", ("c_attn",), encode=RATE, fan_in_fan_out=True)
    usage = bank.usage()
    with pytest.raises(AdapterError, match="do not fit the base model") as caught:
        bank.add("task", other.encoded)
    assert caught.value.code == "base-mismatch"
    assert bank.usage() == usage


def test_damaged_files_are_refused(bank: Any, files: dict[str, bytes]) -> None:
    good = files["small"]
    bad = good[:-3] + bytes([good[-3] ^ 1]) + good[-2:]
    with pytest.raises(ChecksumMismatch) as caught:
        bank.add("task", bad)
    assert caught.value.code == "content-checksum"
    for data, code in ((good[:-1], "truncated"), (b"no such file", "magic"), (good + b"x", "trailing")):
        with pytest.raises(NolaError) as found:
            bank.add("task", data)
        assert found.value.code == code
    assert bank.names() == ["first"]


def test_sizes_are_bounded(case: Any, files: dict[str, bytes]) -> None:
    room = len(files["first"]) + len(files["small"])
    with nola_codec.TaskBank(case.fresh(), max_packed_bytes=room) as bank:
        bank.add("first", files["first"])
        bank.add("small", files["small"])
        with pytest.raises(AdapterError) as caught:
            bank.add("large", files["large"])
        assert caught.value.code == "limit"
        bank.add("same", files["small"])  # it is there already, and takes no more
        bank.add("small", files["small"], replace=True)
        assert bank.usage().packed == room
    with nola_codec.TaskBank(case.fresh(), max_task_bytes=100) as bank:
        with pytest.raises(AdapterError, match="decoded bytes: expected at most 100") as caught:
            bank.add("first", files["first"])
        assert caught.value.code == "limit"


def test_the_limits_of_the_environment_hold(
    case: Any, files: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NOLA_LIMITS", "total_elements=5")
    with nola_codec.TaskBank(case.fresh()) as bank, pytest.raises(FormatError) as caught:
        bank.add("first", files["first"])
    assert caught.value.code == "limit"
    with nola_codec.TaskBank(case.fresh(), limits=nola_codec.Limits()) as bank:
        bank.add("first", files["first"])
        bank.switch("first")


def test_names_of_tasks(bank: Any, files: dict[str, bytes]) -> None:
    def code(act: Callable[[], Any]) -> str | None:
        with pytest.raises(NolaError) as caught:
            act()
        return caught.value.code

    assert code(lambda: bank.add("first", files["small"])) == "task-exists"
    assert code(lambda: bank.add("", files["small"])) == "option"
    for act in (bank.remove, bank.switch, lambda name: bank.factors([name])):
        assert code(lambda act=act: act("absent")) == "unknown-task"  # type: ignore[misc]
    bank.switch("first")
    assert code(lambda: bank.remove("first")) == "task-active"
    assert code(lambda: bank.add("first", files["small"], replace=True)) == "task-active"
    bank.switch(None)
    bank.add("first", files["small"], replace=True)
    assert ("first" in bank, len(bank), bank.names()) == (True, 1, ["first"])
    assert "1 tasks" in repr(bank)
    bank.remove("first")
    assert (bank.usage().packed, bank.usage().rebuilt, len(bank)) == (0, 0, 0)
    bank.close()
    bank.close()
    assert code(lambda: bank.switch(None)) == "closed"
    assert code(lambda: bank.add("first", files["small"])) == "closed"


def test_a_failed_switch_changes_nothing(make_case: Callable[..., Any]) -> None:
    case = make_case(encode=RATE, dtype=torch.float16)
    huge = file_of(case.fresh(), lora(r=1, lora_alpha=10**6))
    for apply in ("merged", "side"):
        model = case.fresh()
        with nola_codec.TaskBank(model, apply=apply) as bank:  # type: ignore[arg-type]
            bank.add("first", case.encoded)
            bank.add("huge", huge)
            bank.switch("first")
            before, logits = bits(model), case.logits(model)
            with pytest.raises(AdapterError) as caught:
                bank.switch("huge")
            assert caught.value.code == "overflow"
            assert bank.current == "first"
            assert same(model, before)
            assert torch.equal(case.logits(model), logits)


def test_a_weight_that_is_tied_can_only_run_beside(make_case: Callable[..., Any]) -> None:
    case = make_case(targets=("lm_head", "q_proj"), tie=True, encode=RATE)
    with nola_codec.TaskBank(case.fresh(), apply="merged") as bank, pytest.raises(AdapterError) as caught:
        bank.add("task", case.encoded)
    assert caught.value.code == "tied-weights"
    model = case.fresh()
    plain = case.logits(model)
    with nola_codec.TaskBank(model) as bank:
        bank.add("task", case.encoded)
        bank.switch("task")
        assert not torch.allclose(case.logits(model), plain)
    assert torch.equal(case.logits(model), plain)


@pytest.mark.parametrize(
    ("options", "code"),
    [
        ({"apply": "both"}, "option"),
        ({"memory": -1}, "option"),
        ({"memory": "many"}, "option"),
        ({"dtype": torch.int8}, "option"),
    ],
)
def test_options_are_checked(options: dict[str, Any], code: str, case: Any) -> None:
    with pytest.raises(NolaError) as caught:
        nola_codec.TaskBank(case.fresh(), **options)
    assert caught.value.code == code
    with pytest.raises(AdapterError) as found:
        nola_codec.TaskBank("model")  # type: ignore[arg-type]
    assert found.value.code == "source-type"


def test_packed_bytes_on_a_device_are_rebuilt_there(case: Any, files: dict[str, bytes]) -> None:
    """On the CPU, the device path of PyTorch decodes them; the host has the header and no coefficient."""
    later = nola_codec.encode_bytes(case.adapter, progressive=True, rungs=["1KB", "2KB"])[0]
    made = {}
    for place in ("host", "device"):
        model = case.fresh()
        before = bits(model)
        with nola_codec.TaskBank(model, apply="merged", packed_on=place) as bank:
            for name, file in files.items():
                bank.add(name, file)
            bank.add("coarse", later, rung=0)
            bank.add("fine", later)
            states = []
            for name in (*files, "coarse", "fine"):
                bank.switch(name)
                states.append(bits(model))
            factors = bank.factors(["first", "fine"])
            made[place] = states, {name: (each.lora_A, each.lora_B) for name, each in factors.items()}
            packed = bank.usage().tasks["first"].packed
            assert packed == len(files["first"]) if place == "host" else 0.9 < packed / len(files["first"]) < 1.1
        assert same(model, before)
    (host, host_factors), (device, device_factors) = made["host"], made["device"]
    for one, other in zip(host, device, strict=True):
        assert all(torch.equal(one[name], other[name]) for name in one)
    for name, pair in host_factors.items():
        assert all(torch.equal(a, b) for a, b in zip(pair, device_factors[name], strict=True))


def test_a_place_that_is_none_is_refused(case: Any) -> None:
    with pytest.raises(NolaError, match="packed_on: expected"):
        nola_codec.TaskBank(case.fresh(), packed_on="disk")
