"""Collect the parts of an adapter that have no place in a base model, and say what the base has instead."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

from nola_codec.adapters.base_model import MergeTarget, mismatch_message
from nola_codec.errors import AdapterError, mismatch
from nola_codec.merger.model_families import family_of

_DESCRIBED = 3  # problems for which the nearest weights are looked up, since this reads all names
_NEAREST = 2
_MOST_COMPARED = 20_000  # names of a base model

# The first layers of image and video models. A control or an inpainting model has more channels there.
_INPUT_LAYERS = ("img_in", "x_embedder", "conv_in", "patch_embedding", "patch_embed_proj", "pos_embed_proj", "proj_in",
                 "input_blocks_0_0", "x_embedder_proj")  # fmt: skip
_VOCABULARY_LAYERS = ("embed_tokens", "lm_head", "wte", "word_embeddings", "embed_in", "embed_out", "shared",
                      "token_embedding", "tok_embeddings", "output")  # fmt: skip


class Misfits:
    """The parts of an adapter that have no place in a base model.

    Args:
        shapes: The shape of each weight of the base model, by name.
    """

    def __init__(self, shapes: Mapping[str, tuple[int, ...]]) -> None:
        self._shapes = shapes
        self._problems: list[str] = []
        self._names: list[str] = []

    def add(self, name: str, problem: str) -> None:
        """Add a part and what is wrong with it."""
        self._problems.append(f"{name}: {problem}")

    def add_unfound(self, target: MergeTarget, wanted: str, found: Sequence[str]) -> None:
        """Add a part for which there is no weight, or for which there are several.

        Args:
            target: The part.
            wanted: The name that was looked for.
            found: The weights that it may mean.
        """
        self._names.append(wanted)
        if found:
            listed = ", ".join(found[:3]) + (", ..." if len(found) > 3 else "")
            self.add(target.name, f"{len(found)} weights of the base model may be meant ({listed})")
            return
        problem = f"no weight {wanted}"
        if len(self._problems) < _DESCRIBED:
            nearest = nearest_names(wanted, target.shape, self._shapes)
            shown = " and ".join(f"{name} {list(self._shapes[name])}" for name in nearest)
            problem += f" {list(target.shape)}; nearest: {shown}" if shown else f" {list(target.shape)}"
        self.add(target.name, problem)

    def add_shape(self, target: MergeTarget, source: str) -> None:
        """Add a part whose weight has another shape."""
        stored = self._shapes[source]
        problem = mismatch("shape", list(target.shape), f"{list(stored)} ({source})")
        cause = _likely_cause(source, target.shape, stored)
        self.add(target.name, f"{problem}; {cause}" if cause else problem)

    def __bool__(self) -> bool:
        """True if there is a misfit."""
        return bool(self._problems)

    def raise_if_any(self) -> None:
        """Raise `error` if there is a misfit."""
        if self._problems:
            raise self.error()

    def error(self, where: str = "") -> AdapterError:
        """Return the error ``base-mismatch`` that names the first few misfits; `where` is the path of the model."""
        return AdapterError(mismatch_message(self._problems, self._families()), code="base-mismatch", where=where)

    def _families(self) -> str:
        """Return a clause that says which families the adapter and the base model belong to, if names failed."""
        if not self._names:
            return ""
        own, stored = family_of(self._names), family_of(self._shapes)
        if own and stored and own != stored:
            return f"the adapter looks like {own}, and the base model like {stored}"
        if own and stored:
            return ""
        if own:
            return f"the adapter looks like {own}, and the base model does not"
        return f"the base model looks like {stored}, and the adapter does not" if stored else ""


def nearest_names(
    wanted: str, shape: tuple[int, ...], shapes: Mapping[str, tuple[int, ...]], count: int = _NEAREST
) -> list[str]:
    """Return the names of stored weights that share most words with a name; weights of its shape come first.

    Args:
        wanted: The name that is not there.
        shape: The shape that the weight should have.
        shapes: The shape of each stored weight, by name; only the first 20,000 are compared.
        count: The most names to return.
    """
    words = Counter(_words(wanted))
    tail = _words(wanted)[-4:]
    scored = []
    for name in list(shapes)[:_MOST_COMPARED]:
        own = _words(name)
        common = sum((words & Counter(own)).values())
        ending = next((n for n in range(len(tail)) if own[-1 - n :] != tail[-1 - n :]), len(tail))
        if common > 1 or shapes[name] == shape:
            fits = shapes[name] == shape or shapes[name] == shape[::-1]
            scored.append((-(common + 2 * ending + 2 * fits), len(own), name))
    return [name for _, _, name in sorted(scored)[:count]]


def _likely_cause(source: str, wanted: tuple[int, ...], stored: tuple[int, ...]) -> str:
    """Return a clause about the usual reason for two shapes to differ; an empty string if no reason is usual."""
    module = source.rpartition(".")[0].replace(".", "_")
    if len(wanted) != len(stored) or len(wanted) < 2:
        return ""
    if wanted[1:] == stored[1:] and module.endswith(_VOCABULARY_LAYERS):
        return "the vocabulary of one of the two was resized"
    others = (wanted[:1], wanted[2:]) == (stored[:1], stored[2:])
    if others and wanted[1] != stored[1] and module.endswith(_INPUT_LAYERS):
        return "the adapter belongs to a model with another number of input channels, such as a control model"
    if wanted[0] != stored[0] and wanted[1] != stored[1] and wanted != stored[::-1]:
        return "the adapter belongs to another size of the model"
    return ""


def _words(name: str) -> list[str]:
    return name.replace(".", "_").split("_")
