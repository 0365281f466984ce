# Copyright 2023-2024 SGLang Team
# Licensed under the Apache License, Version 2.0 (the "License");
# you may not use this file except in compliance with the License.
# You may obtain a copy of the License at
#
#     http://www.apache.org/licenses/LICENSE-2.0
#
# Unless required by applicable law or agreed to in writing, software
# distributed under the License is distributed on an "AS IS" BASIS,
# WITHOUT WARRANTIES OR CONDITIONS OF ANY KIND, either express or implied.
# See the License for the specific language governing permissions and
# limitations under the License.
"""Unchanged classes and functions of SGLang 0.5.23: how a server reads the tensors of an adapter. See README.md.

They are from sglang/srt/utils/common.py, sglang/srt/managers/io_struct.py and sglang/srt/lora/lora_config.py. The imports and
`BaseReq` are ours.
"""

from __future__ import annotations

import base64 as pybase64
import binascii
import io
import pickle
from multiprocessing.reduction import ForkingPickler
from typing import Annotated, Any, Dict, List, Optional, Union

import msgspec
import torch

LoRARef = Any


class Base64Bytes:
    pass


class BaseReq(msgspec.Struct, kw_only=True):
    rid: Optional[str] = None


class MultiprocessingSerializer:
    @staticmethod
    def serialize(obj, output_str: bool = False):
        """
        Serialize a Python object using ForkingPickler.

        Args:
            obj: The object to serialize.
            output_str (bool): If True, return a base64-encoded string instead of raw bytes.

        Returns:
            bytes or str: The serialized object.
        """
        buf = io.BytesIO()
        ForkingPickler(buf).dump(obj)
        buf.seek(0)
        output = buf.read()

        if output_str:
            # Convert bytes to base64-encoded string
            output = pybase64.b64encode(output).decode("utf-8")

        return output

    @staticmethod
    def deserialize(data):
        """
        Deserialize a previously serialized object.

        Args:
            data (bytes or str): The serialized data, optionally base64-encoded.

        Returns:
            The deserialized Python object.
        """
        if isinstance(data, str):
            # Decode base64 string to bytes
            data = pybase64.b64decode(data, validate=True)

        return SafeUnpickler(io.BytesIO(data)).load()


SerializedTensorPayload = Union[str, bytes, bytearray, memoryview]


def _looks_like_pickle_payload(data: bytes) -> bool:
    return len(data) >= 2 and data[0] == 0x80 and data[1] <= pickle.HIGHEST_PROTOCOL


def normalize_serialized_named_tensor_payload(data: SerializedTensorPayload) -> bytes:
    """Normalize a serialized tensor payload to raw MultiprocessingSerializer bytes."""
    if isinstance(data, str):
        return pybase64.b64decode(data, validate=True)

    if isinstance(data, (bytes, bytearray, memoryview)):
        data = bytes(data)
        if _looks_like_pickle_payload(data):
            return data
        try:
            return pybase64.b64decode(data, validate=True)
        except (binascii.Error, ValueError):
            return data

    raise TypeError(
        "serialized_named_tensors entries must be base64 strings or bytes-like "
        f"payloads, got {type(data).__name__}"
    )


def normalize_serialized_named_tensor_payloads(
    payloads: List[SerializedTensorPayload],
) -> List[bytes]:
    return [normalize_serialized_named_tensor_payload(data) for data in payloads]


def _safe_load_torch_storage(data: bytes):
    storage = torch.load(io.BytesIO(data), weights_only=True)
    if not isinstance(storage, (torch.storage.TypedStorage, torch.UntypedStorage)):
        raise pickle.UnpicklingError(
            f"Expected a Torch storage, got {type(storage).__name__}"
        )
    return storage


class SafeUnpickler(pickle.Unpickler):
    # Standard-library modules expose powerful callables alongside harmless data
    # types. Keep these globals exact so a newly added callable is denied by
    # default instead of silently expanding the unpickling attack surface.
    ALLOWED_GLOBALS = {
        # --- Python types ---
        ("builtins", "bool"),
        ("builtins", "bytearray"),
        ("builtins", "bytes"),
        ("builtins", "complex"),
        ("builtins", "dict"),
        ("builtins", "float"),
        ("builtins", "frozenset"),
        ("builtins", "int"),
        ("builtins", "list"),
        ("builtins", "range"),
        ("builtins", "set"),
        ("builtins", "slice"),
        ("builtins", "str"),
        ("builtins", "tuple"),
        ("collections", "OrderedDict"),
        ("collections", "defaultdict"),
        ("collections", "deque"),
        ("collections", "Counter"),
        ("copyreg", "__newobj__"),
        ("copyreg", "__newobj_ex__"),
        ("functools", "partial"),
        ("itertools", "chain"),
        ("itertools", "repeat"),
        ("multiprocessing.reduction", "_rebuild_partial"),
        ("multiprocessing.reduction", "_rebuild_socket"),
        ("multiprocessing.resource_sharer", "DupFd"),
        ("types", "SimpleNamespace"),
        ("_codecs", "encode"),
        # --- PyTorch data containers & rebuild functions ---
        # Code-module prefixes (torch.*, sglang.srt.*) are NOT allowed: they
        # contain gadgets like sglang.srt.utils.common.dynamic_import
        ("torch", "Tensor"),
        ("torch", "BFloat16Tensor"),
        ("torch", "BoolTensor"),
        ("torch", "ByteTensor"),
        ("torch", "CharTensor"),
        ("torch", "DoubleTensor"),
        ("torch", "FloatTensor"),
        ("torch", "HalfTensor"),
        ("torch", "IntTensor"),
        ("torch", "LongTensor"),
        ("torch", "ShortTensor"),
        ("torch.cuda", "BFloat16Tensor"),
        ("torch.cuda", "BoolTensor"),
        ("torch.cuda", "ByteTensor"),
        ("torch.cuda", "CharTensor"),
        ("torch.cuda", "DoubleTensor"),
        ("torch.cuda", "FloatTensor"),
        ("torch.cuda", "HalfTensor"),
        ("torch.cuda", "IntTensor"),
        ("torch.cuda", "LongTensor"),
        ("torch.cuda", "ShortTensor"),
        ("torch.cuda.sparse", "BFloat16Tensor"),
        ("torch.cuda.sparse", "ByteTensor"),
        ("torch.cuda.sparse", "CharTensor"),
        ("torch.cuda.sparse", "DoubleTensor"),
        ("torch.cuda.sparse", "FloatTensor"),
        ("torch.cuda.sparse", "HalfTensor"),
        ("torch.cuda.sparse", "IntTensor"),
        ("torch.cuda.sparse", "LongTensor"),
        ("torch.cuda.sparse", "ShortTensor"),
        ("torch.sparse", "BFloat16Tensor"),
        ("torch.sparse", "ByteTensor"),
        ("torch.sparse", "CharTensor"),
        ("torch.sparse", "DoubleTensor"),
        ("torch.sparse", "FloatTensor"),
        ("torch.sparse", "HalfTensor"),
        ("torch.sparse", "IntTensor"),
        ("torch.sparse", "LongTensor"),
        ("torch.sparse", "ShortTensor"),
        ("torch", "Size"),
        ("torch", "device"),
        ("torch", "dtype"),
        ("torch", "bcomplex32"),
        ("torch", "bfloat16"),
        ("torch", "bit"),
        ("torch", "bits16"),
        ("torch", "bits1x8"),
        ("torch", "bits2x4"),
        ("torch", "bits4x2"),
        ("torch", "bits8"),
        ("torch", "bool"),
        ("torch", "cdouble"),
        ("torch", "cfloat"),
        ("torch", "chalf"),
        ("torch", "complex128"),
        ("torch", "complex32"),
        ("torch", "complex64"),
        ("torch", "double"),
        ("torch", "float"),
        ("torch", "float16"),
        ("torch", "float32"),
        ("torch", "float4_e2m1fn_x2"),
        ("torch", "float64"),
        ("torch", "float8_e4m3fn"),
        ("torch", "float8_e4m3fnuz"),
        ("torch", "float8_e5m2"),
        ("torch", "float8_e5m2fnuz"),
        ("torch", "float8_e8m0fnu"),
        ("torch", "half"),
        ("torch", "int"),
        ("torch", "int1"),
        ("torch", "int16"),
        ("torch", "int2"),
        ("torch", "int3"),
        ("torch", "int32"),
        ("torch", "int4"),
        ("torch", "int5"),
        ("torch", "int6"),
        ("torch", "int64"),
        ("torch", "int7"),
        ("torch", "int8"),
        ("torch", "long"),
        ("torch", "qint32"),
        ("torch", "qint8"),
        ("torch", "quint2x4"),
        ("torch", "quint4x2"),
        ("torch", "quint8"),
        ("torch", "short"),
        ("torch", "uint1"),
        ("torch", "uint16"),
        ("torch", "uint2"),
        ("torch", "uint3"),
        ("torch", "uint32"),
        ("torch", "uint4"),
        ("torch", "uint5"),
        ("torch", "uint6"),
        ("torch", "uint64"),
        ("torch", "uint7"),
        ("torch", "uint8"),
        ("torch.nn.parameter", "Parameter"),
        ("torch.serialization", "_get_layout"),
        ("torch._utils", "_rebuild_tensor"),
        ("torch._utils", "_rebuild_tensor_v2"),
        ("torch._utils", "_rebuild_tensor_v3"),
        ("torch._utils", "_rebuild_parameter"),
        ("torch._utils", "_rebuild_parameter_with_state"),
        ("torch._utils", "_rebuild_qtensor"),
        ("torch._utils", "_rebuild_sparse_tensor"),
        ("torch._utils", "_rebuild_meta_tensor_no_storage"),
        ("torch._utils", "_rebuild_wrapper_subclass"),
        ("torch._utils", "_rebuild_device_tensor_from_numpy"),
        ("torch._utils", "_rebuild_device_tensor_from_cpu_tensor"),
        ("torch._tensor", "_rebuild_from_type_v2"),
        ("torch.storage", "UntypedStorage"),
        ("torch.storage", "_UntypedStorage"),
        ("torch.storage", "TypedStorage"),
        ("torch", "UntypedStorage"),
        ("torch", "BFloat16Storage"),
        ("torch", "BoolStorage"),
        ("torch", "ByteStorage"),
        ("torch", "CharStorage"),
        ("torch", "ComplexDoubleStorage"),
        ("torch", "ComplexFloatStorage"),
        ("torch", "DoubleStorage"),
        ("torch", "FloatStorage"),
        ("torch", "HalfStorage"),
        ("torch", "IntStorage"),
        ("torch", "LongStorage"),
        ("torch", "QInt32Storage"),
        ("torch", "QInt8Storage"),
        ("torch", "QUInt2x4Storage"),
        ("torch", "QUInt4x2Storage"),
        ("torch", "QUInt8Storage"),
        ("torch", "ShortStorage"),
        ("torch.cuda", "BFloat16Storage"),
        ("torch.cuda", "BoolStorage"),
        ("torch.cuda", "ByteStorage"),
        ("torch.cuda", "CharStorage"),
        ("torch.cuda", "ComplexDoubleStorage"),
        ("torch.cuda", "ComplexFloatStorage"),
        ("torch.cuda", "DoubleStorage"),
        ("torch.cuda", "FloatStorage"),
        ("torch.cuda", "HalfStorage"),
        ("torch.cuda", "IntStorage"),
        ("torch.cuda", "LongStorage"),
        ("torch.cuda", "ShortStorage"),
        ("torch.multiprocessing.reductions", "rebuild_tensor"),
        ("torch.multiprocessing.reductions", "rebuild_meta_tensor"),
        ("torch.multiprocessing.reductions", "rebuild_cuda_tensor"),
        ("sglang.srt.utils.patch_torch", "_rebuild_cuda_tensor_modified"),
        ("torch_npu.multiprocessing.reductions", "rebuild_npu_tensor"),
        ("sglang.srt.utils.patch_torch", "_rebuild_npu_tensor_modified"),
        ("torch.multiprocessing.reductions", "rebuild_nested_tensor"),
        ("torch.multiprocessing.reductions", "rebuild_sparse_coo_tensor"),
        ("torch.multiprocessing.reductions", "rebuild_sparse_compressed_tensor"),
        ("torch.multiprocessing.reductions", "rebuild_storage_fd"),
        ("torch.multiprocessing.reductions", "rebuild_storage_filename"),
        ("torch.multiprocessing.reductions", "rebuild_storage_empty"),
        ("torch.multiprocessing.reductions", "rebuild_typed_storage"),
        ("torch.multiprocessing.reductions", "rebuild_typed_storage_child"),
        ("torch", "per_tensor_affine"),
        ("torch", "per_tensor_symmetric"),
        ("torch", "per_channel_affine"),
        ("torch", "per_channel_symmetric"),
        ("torch", "per_channel_affine_float_qparams"),
        # --- SGLang data containers only (no code modules) ---
        ("sglang.srt.managers.io_struct", "GenerateReqInput"),
        ("sglang.srt.managers.io_struct", "EmbeddingReqInput"),
        ("sglang.srt.disaggregation.encoder.receiver", "EmbeddingData"),
        ("sglang.srt.managers.schedule_batch", "Modality"),
        ("sglang.srt.multimodal.modality", "Modality"),
        ("sglang.srt.weight_sync.tensor_bucket", "FlattenedTensorMetadata"),
        ("sglang.srt.weight_sync.tensor_bucket", "FlattenedTensorBucket"),
        (
            "sglang.srt.model_executor.model_runner_components.weight_updater",
            "LocalSerializedTensor",
        ),
        ("sglang.srt.model_executor.model_runner", "LocalSerializedTensor"),
    }

    def find_class(self, module, name):
        if (module, name) == ("torch.storage", "_load_from_bytes"):
            # Torch's helper calls an unrestricted nested torch.load.
            return _safe_load_torch_storage
        if (module, name) in self.ALLOWED_GLOBALS:
            return super().find_class(module, name)

        raise RuntimeError(
            f"Blocked unsafe global ({module}.{name}) during pickle deserialization"
        )


class LoadLoRAAdapterFromTensorsReqInput(BaseReq, kw_only=True):
    lora_name: str
    # The PEFT adapter_config.json, already JSON — a tighter type would only add
    # decode strictness with no benefit.
    config_dict: Dict[str, Any]
    # One serialized copy of the adapter tensors per TP rank; each rank
    # deserializes only its own copy. Same normalization conventions as
    # UpdateWeightsFromTensorReqInput.serialized_named_tensors.
    serialized_named_tensors: Annotated[List[bytes], Base64Bytes()]
    pinned: bool = False
    added_tokens_config: Optional[Dict[str, int]] = None
    lora_id: Optional[str] = None
    load_format: Optional[str] = None
    expected_checksums: Optional[Dict[str, str]] = None

    def to_ref(self) -> LoRARef:
        return LoRARef(
            lora_id=self.lora_id,
            lora_name=self.lora_name,
            lora_path="__tensor__",
            pinned=self.pinned,
        )


class LoRAConfig:
    def __init__(
        self,
        path: Optional[str] = None,
        config_dict: Optional[Dict] = None,
        added_tokens_config: Optional[Dict] = None,
        base_vocab_size: Optional[int] = None,
    ) -> None:
        self.path = path

        if config_dict is not None:
            self.hf_config = config_dict
            self.added_tokens_config = added_tokens_config
        else:
            self.hf_config = self.get_lora_config()
            self.added_tokens_config = self.get_added_tokens_config()

        self.target_modules = self.hf_config["target_modules"]
        self.r = self.hf_config["r"]
        self.lora_alpha = self.hf_config["lora_alpha"]
        self.use_dora = self.hf_config.get("use_dora", False)

        # Filter fake added tokens: tokens with ID < base_vocab_size are already
        # part of the base vocabulary and should not be treated as added tokens.
        # This commonly happens when added_tokens.json is copied from the base
        # model's tokenizer.
        if self.added_tokens_config and base_vocab_size is not None:
            self.added_tokens_config = {
                token: token_id
                for token, token_id in self.added_tokens_config.items()
                if token_id >= base_vocab_size
            }

        self.lora_added_tokens_size = (
            len(self.added_tokens_config) if self.added_tokens_config is not None else 0
        )

    @classmethod
    def from_dict(
        cls,
        config_dict: Dict,
        added_tokens_config: Optional[Dict] = None,
        base_vocab_size: Optional[int] = None,
    ) -> "LoRAConfig":
        return cls(
            config_dict=config_dict,
            added_tokens_config=added_tokens_config,
            base_vocab_size=base_vocab_size,
        )

    def get_lora_config(self, dummy=False):
        if dummy:
            raise NotImplementedError()
        else:
            if not os.path.isdir(self.path):
                weights_dir = snapshot_download(self.path, allow_patterns=["*.json"])
            else:
                weights_dir = self.path
            config_name = "adapter_config.json"
            with open(os.path.join(weights_dir, config_name), "r") as f:
                return json.load(f)

    def get_added_tokens_config(self):
        """Load added tokens from the LoRA adapter if the file exists."""
        # Determine the weights directory
        if not os.path.isdir(self.path):
            weights_dir = snapshot_download(self.path, allow_patterns=["*.json"])
        else:
            weights_dir = self.path

        # Construct the path to added_tokens.json
        added_tokens_path = os.path.join(weights_dir, "added_tokens.json")

        # Return None if the file doesn't exist (optional for standard LoRA adapters)
        if not os.path.exists(added_tokens_path):
            return None

        # Load and return the added tokens
        try:
            with open(added_tokens_path, "r") as f:
                return json.load(f)
        except json.JSONDecodeError as e:
            logger.warning(f"Failed to parse added_tokens.json: {e}")
            return None
