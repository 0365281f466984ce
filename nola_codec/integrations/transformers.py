"""Transformers: put a `.nola` file into a live model, and write files beside the Trainer's checkpoints.

from nola_codec.integrations.transformers import NolaCallback, load

load(model, "task.nola", adapter_name="task")
Trainer(peft_model, ..., callbacks=[NolaCallback(size="50KB")]).train()
"""

from __future__ import annotations

import os
import re
import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from nola_codec.adapters.sources import PEFT_PREFIX
from nola_codec.api.decoding import decode_contents
from nola_codec.api.encoding import check_options, encode
from nola_codec.api.live_sources import open_model, unwrap
from nola_codec.container.limits import Limits
from nola_codec.container.reader import Source
from nola_codec.encoder.reference import ANY_REFERENCE
from nola_codec.errors import AdapterError, EncodeError, NolaError, require_package
from nola_codec.integrations.live_models import (
    LoadResult,
    base_config_of,
    missing_keys,
    name_of,
    require_complete,
    require_fit,
    to_torch_tensors,
)
from nola_codec.references.finding import References

require_package("nola_codec.integrations.transformers", "transformers", "peft")

from transformers import TrainerCallback  # noqa: E402 - the line above says what to install if this cannot be imported

if TYPE_CHECKING:
    import torch
    from typing_extensions import Unpack

    from nola_codec.api.keywords import EncodeKeywords

NAME = "task.nola"
"""The name of the file in the directory of a checkpoint."""
STEPS_FOLDER = "task_steps"
"""The directory of the files of single steps, in the output directory."""
_STEP = re.compile(r"step-(\d+)\.nola")


def load(
    model: torch.nn.Module,
    source: Source,
    *,
    adapter_name: str = "default",
    replace: bool = False,
    is_trainable: bool = False,
    rung: int | None = None,
    base: str | os.PathLike[str] | None = None,
    device: object = "cpu",
    references: References = None,
    limits: Limits | None = None,
) -> None:
    """Put a `.nola` file into a model of Transformers, by its `load_adapter`. No `PeftModel` is made around it.

    A file that does not fit leaves the model as it was. As in Transformers, a new adapter is active beside others;
    ``model.set_adapter(adapter_name)`` makes it the only one.

    Args:
        model: The model.
        source: The `.nola` file: a path, a URL, bytes or a binary stream.
        adapter_name: The name of the adapter in the model.
        replace: True to remove an adapter of that name first. `nola_codec.integrations.peft.load` replaces in place.
        is_trainable: True to train the adapter on; False puts the model into evaluation mode.
        rung: The rung of a progressive file, counted from 0; None is the last.
        base: The directory of the base model, for files that hold changes of its tensors.
        device: The device that factors are synthesized on; it changes no bit.
        references: Where the earlier version is that the file needs, if it was encoded against one; as in
            `nola_codec.decode`. None looks beside the file.
        limits: What the file may declare; as in `nola_codec.load`.

    Raises:
        AdapterError: ``adapter-exists``; ``base-mismatch``: the file does not fit; ``source-type``: the model has no
            `load_adapter`, or is a `PeftModel`; ``not-expressible``: the layers of the adapter share tensors (VeRA,
            PVeRA, RandLoRA, Uni-LoRA, VB-LoRA), for which `nola_codec.integrations.peft.load` serves; ``needs-base``.
        FormatError, ChecksumMismatch: The file is damaged.
        MissingPackage: ``needs-peft``.
    """
    require_package("load()", "peft", "peft")
    import peft

    model = unwrap(model)
    where = name_of(source)
    if isinstance(model, peft.PeftModel) or not hasattr(model, "load_adapter"):
        found = type(model).__name__
        message = f"expected a model of Transformers, found {found}; nola_codec.integrations.peft.load takes any model"
        raise AdapterError(message, code="source-type", where=where)
    exists = adapter_name in (getattr(model, "peft_config", None) or {})
    if exists and not replace:
        message = f"the model has an adapter {adapter_name!r}; replace=True replaces it, adapter_name=... adds another"
        raise AdapterError(message, code="adapter-exists", where=where)
    contents = decode_contents(
        source,
        "peft",
        base=base,
        base_config=base_config_of(model),
        rung=rung,
        device=device,
        references=references,
        limits=limits,
    )
    state = to_torch_tensors(contents)

    def config() -> Any:
        return peft.PeftConfig.from_peft_type(**contents.config)  # type: ignore[no-untyped-call]

    _refuse_shared_tensors(config(), state, where)

    def attempt(trial: Any) -> LoadResult:
        name = f"{adapter_name}_trial"  # beside an adapter that will be replaced
        peft.inject_adapter_in_model(config(), trial, name)
        # PEFT finds modules that are saved whole only under the names that they have in this model.
        plain = {key.removeprefix(PEFT_PREFIX): tensor for key, tensor in state.items()}
        result: Any = peft.set_peft_model_state_dict(trial, plain, adapter_name=name)
        return LoadResult(tuple(missing_keys(trial, result.missing_keys, name)), tuple(result.unexpected_keys))

    require_fit(model, attempt, where, contents.config)
    target: Any = model
    active = list(target.active_adapters()) if exists else []
    if exists:
        target.delete_adapter(adapter_name)
    info = target.load_adapter(
        adapter_state_dict=state, peft_config=config(), adapter_name=adapter_name, is_trainable=is_trainable
    )
    # Transformers takes for a key of the adapter whatever has the letters of its name in it.
    missing = tuple(missing_keys(target, getattr(info, "missing_keys", ()), adapter_name))
    unexpected = tuple(sorted(getattr(info, "unexpected_keys", ())))
    try:
        require_complete(LoadResult(missing, unexpected), where, contents.config)
    except AdapterError:
        target.delete_adapter(adapter_name)
        raise
    if active:
        target.set_adapter(active)


def _refuse_shared_tensors(config: Any, keys: Iterable[str], where: str) -> None:
    """Refuse an adapter with tensors that its layers share: PEFT keeps them in a `PeftModel`.

    Raises:
        AdapterError: ``not-expressible``.
    """
    import peft

    tuner = peft.PEFT_TYPE_TO_TUNER_MAPPING.get(config.peft_type)
    has_shared = any(key.startswith("base_model.") and not key.startswith(PEFT_PREFIX) for key in keys)
    if has_shared or getattr(tuner, "uses_shared_state", False):
        method = getattr(config.peft_type, "value", config.peft_type)
        message = (
            f"the layers of an adapter of the method {method} share tensors, which Transformers has no place for; "
            "nola_codec.integrations.peft.load puts it into the model"
        )
        raise AdapterError(message, code="not-expressible", where=where)


class NolaCallback(TrainerCallback):
    """Writes the adapter that is trained as a `.nola` file: into every checkpoint, and at the end.

    A model that was parametrized for NOLA training (`nola_codec.training.parametrize`) is written without loss. The
    adapter of any other PEFT training is encoded, with the options of `nola_codec.encode`; that takes seconds for each
    checkpoint, and the report of the last file is `report`. The file is an addition: the Trainer's own checkpoint
    is there too, and a run resumes from it.

    With `every`, there is a file of every so many steps too, in the directory ``task_steps`` of the output directory.
    With ``reference="previous"`` each of these holds the difference to the one before it, which takes much less; all of
    them are needed to decode the last one (docs/versions.md). If the one before is damaged, or is of another training,
    there is a warning, and another chain begins.

    If an adapter cannot be encoded in the middle of a training, that is a warning, and the training goes on; at the end
    it is an error.

    Attributes:
        report: The `EncodeReport` of the last file; None before the first one, and for NOLA training.
    """

    def __init__(
        self,
        out: str | os.PathLike[str] | None = None,
        *,
        size: int | str | None = None,
        adapter_name: str | None = None,
        base: str | os.PathLike[str] | None = None,
        every: int | None = None,
        reference: Literal["previous"] | None = None,
        **options: Unpack[EncodeKeywords],
    ) -> None:
        """Make the callback.

        Args:
            out: The file that is written at the end of training; None is ``task.nola`` in the output directory.
            size: The most bytes that a file may take, as in `nola_codec.encode`.
            adapter_name: The name of the adapter; None is the only one, or the only active one.
            base: As in `nola_codec.encode`.
            every: The number of steps between files beside those of checkpoints; None writes no others.
            reference: ``"previous"`` codes each file of `every` against the one before it.
            **options: Those of `nola_codec.encode`.

        Raises:
            EncodeError: ``option``.
        """
        if every is not None and every < 1:
            raise EncodeError(f"every: expected 1 step or more, found {every}", code="option")
        if reference not in (None, "previous") or (reference is not None and every is None):
            message = 'reference: expected "previous", together with every'
            raise EncodeError(f"{message}, found {reference!r} and {every!r}", code="option")
        any_reference = None if reference is None else ANY_REFERENCE
        check_options(None, size=size, overwrite=True, reference=any_reference, **options)
        self.report: Any = None
        self._out, self._adapter_name = out, adapter_name
        self._every, self._is_chain = every, reference is not None
        self._options: dict[str, Any] = {"base": base, "size": size, **options}

    def on_train_begin(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
        """Check that the model has an adapter that can be written, before hours of training.

        Raises:
            AdapterError: ``no-adapter``, ``which-adapter``.
            EncodeError: ``option``: a size for NOLA training, whose files are exact.
        """
        model = unwrap(model)
        given = [name for name, value in self._options.items() if value is not None]
        given += ["reference"] if self._is_chain else []
        if not _is_parametrized(model):
            open_model(model, self._adapter_name)
        elif given:
            message = (
                f"{', '.join(given)}: the file of a NOLA training is exact, so its size follows from num_basis and bits"
            )
            raise EncodeError(message, code="option")

    def on_save(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
        """Write the file beside the checkpoint that was just written."""
        if state.is_world_process_zero:
            try:
                self._write(model, Path(args.output_dir) / f"checkpoint-{state.global_step}" / NAME, state)
            except NolaError as error:
                warnings.warn(f"no {NAME} for step {state.global_step}: {error}", stacklevel=2)

    def on_step_end(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
        """Write the file of a step, if it is the turn of this one."""
        if self._every is None or state.global_step % self._every or not state.is_world_process_zero:
            return
        folder = Path(args.output_dir) / STEPS_FOLDER
        out = folder / f"step-{state.global_step}.nola"
        previous = _latest_before(folder, state.global_step) if self._is_chain else None
        try:
            try:
                self._write(model, out, state, previous)
            except NolaError as error:
                if previous is None:
                    raise
                self._write(model, out, state)  # another chain begins
                if error.code != "chain":  # else the chain was as long as it may be
                    warnings.warn(f"{out.name} holds no difference to {previous.name}: {error}", stacklevel=2)
        except NolaError as error:
            warnings.warn(f"no {out.name}: {error}", stacklevel=2)

    def on_train_end(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
        """Write the file at the end of training."""
        if state.is_world_process_zero:
            self._write(model, Path(self._out) if self._out is not None else Path(args.output_dir) / NAME, state)

    def _write(self, model: Any, out: Path, state: Any, reference: Path | None = None) -> None:
        model = unwrap(model)
        out.parent.mkdir(parents=True, exist_ok=True)
        if _is_parametrized(model):
            from nola_codec.training.saving import save

            save(model, out, overwrite=True, measured=_last_loss(state))
            return
        store, config = open_model(model, self._adapter_name)
        self.report = encode(store, out, config=config, overwrite=True, reference=reference, **self._options)


def _latest_before(folder: Path, step: int) -> Path | None:
    """Return the file of the latest step before this one, or None if there is none."""
    found = ((_STEP.fullmatch(path.name), path) for path in folder.glob("step-*.nola"))
    steps = [(int(match[1]), path) for match, path in found if match is not None and int(match[1]) < step]
    return max(steps)[1] if steps else None


def _is_parametrized(model: Any) -> bool:
    from nola_codec.training.network import find_composed_tensors
    from nola_codec.training.state import find_state

    return find_state(model) is not None or next(find_composed_tensors(model), None) is not None


def _last_loss(state: Any) -> dict[str, float]:
    """Return the loss of the last evaluation as figures for a header; empty if there was no evaluation."""
    losses = [entry["eval_loss"] for entry in state.log_history if "eval_loss" in entry]
    return {"loss": float(losses[-1])} if losses else {}
