"""Encode LoRA adapters as integer coefficients over a seeded basis; decode them to the same bits everywhere.

    import nola_codec
    report = nola_codec.encode("lora_dir", "task.nola", size="50KB")
    with nola_codec.load("task.nola") as task:
        lora_A, lora_B = task.factors("model.layers.0.self_attn.q_proj")

A name is imported when it is first used, so importing the package costs nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from nola_codec.lazy import lazy_names
from nola_codec.version import __version__

if TYPE_CHECKING:
    from nola_codec.api.comparing import compare
    from nola_codec.api.decoding import decode, read_adapter, verify
    from nola_codec.api.delta_encoding import encode_delta, encode_delta_bytes
    from nola_codec.api.encoding import encode, encode_bytes
    from nola_codec.api.inspecting import FileFacts, TensorFacts, inspect
    from nola_codec.api.joining import AdapterMergeReport, merge_adapters
    from nola_codec.api.merging import merge, unmerge
    from nola_codec.api.opened import NolaFile, load
    from nola_codec.api.plotting import plot_sweep
    from nola_codec.api.safe_opening import safe_open
    from nola_codec.api.selftest import selftest
    from nola_codec.api.signing import sign
    from nola_codec.api.sweeping import SweepReport, sweep
    from nola_codec.api.truncating import TruncateReport, truncate
    from nola_codec.container.limits import Limits
    from nola_codec.encoder.report import EncodeReport
    from nola_codec.errors import (
        AdapterError,
        ChecksumMismatch,
        EncodeError,
        FormatError,
        HubError,
        MissingFile,
        MissingPackage,
        NolaError,
        OutOfMemory,
        OutputExists,
        RemoteError,
    )
    from nola_codec.fleet.many import decode_many, encode_many, verify_many
    from nola_codec.fleet.report import FleetInterrupted, FleetReport
    from nola_codec.integrations.evaluation.evaluating import evaluate
    from nola_codec.integrations.evaluation.report import Evaluation
    from nola_codec.integrations.hub.publishing import push_to_hub
    from nola_codec.integrations.hub.pulling import from_hub
    from nola_codec.integrations.task_bank.bank import TaskBank
    from nola_codec.reporting.data import FileReport
    from nola_codec.reporting.writing import report

_HOME = {
    "compare": "api.comparing",
    "decode": "api.decoding",
    "read_adapter": "api.decoding",
    "verify": "api.decoding",
    "encode_delta": "api.delta_encoding",
    "encode_delta_bytes": "api.delta_encoding",
    "encode": "api.encoding",
    "encode_bytes": "api.encoding",
    "FileFacts": "api.inspecting",
    "TensorFacts": "api.inspecting",
    "inspect": "api.inspecting",
    "AdapterMergeReport": "api.joining",
    "merge_adapters": "api.joining",
    "merge": "api.merging",
    "unmerge": "api.merging",
    "NolaFile": "api.opened",
    "load": "api.opened",
    "plot_sweep": "api.plotting",
    "safe_open": "api.safe_opening",
    "selftest": "api.selftest",
    "sign": "api.signing",
    "SweepReport": "api.sweeping",
    "sweep": "api.sweeping",
    "TruncateReport": "api.truncating",
    "truncate": "api.truncating",
    "Limits": "container.limits",
    "EncodeReport": "encoder.report",
    "AdapterError": "errors",
    "ChecksumMismatch": "errors",
    "EncodeError": "errors",
    "FormatError": "errors",
    "HubError": "errors",
    "MissingFile": "errors",
    "MissingPackage": "errors",
    "NolaError": "errors",
    "OutOfMemory": "errors",
    "OutputExists": "errors",
    "evaluate": "integrations.evaluation.evaluating",
    "Evaluation": "integrations.evaluation.report",
    "push_to_hub": "integrations.hub.publishing",
    "from_hub": "integrations.hub.pulling",
    "TaskBank": "integrations.task_bank.bank",
    "FileReport": "reporting.data",
    "report": "reporting.writing",
    "RemoteError": "errors",
    "decode_many": "fleet.many",
    "encode_many": "fleet.many",
    "verify_many": "fleet.many",
    "FleetInterrupted": "fleet.report",
    "FleetReport": "fleet.report",
}

__all__ = [
    "AdapterError",
    "AdapterMergeReport",
    "ChecksumMismatch",
    "EncodeError",
    "EncodeReport",
    "Evaluation",
    "FileFacts",
    "FileReport",
    "FleetInterrupted",
    "FleetReport",
    "FormatError",
    "HubError",
    "Limits",
    "MissingFile",
    "MissingPackage",
    "NolaError",
    "NolaFile",
    "OutOfMemory",
    "OutputExists",
    "RemoteError",
    "SweepReport",
    "TaskBank",
    "TensorFacts",
    "TruncateReport",
    "__version__",
    "compare",
    "decode",
    "decode_many",
    "encode",
    "encode_bytes",
    "encode_delta",
    "encode_delta_bytes",
    "encode_many",
    "evaluate",
    "from_hub",
    "inspect",
    "load",
    "merge",
    "merge_adapters",
    "plot_sweep",
    "push_to_hub",
    "read_adapter",
    "report",
    "safe_open",
    "selftest",
    "sign",
    "sweep",
    "truncate",
    "unmerge",
    "verify",
    "verify_many",
]

__getattr__, __dir__ = lazy_names(__name__, _HOME)
