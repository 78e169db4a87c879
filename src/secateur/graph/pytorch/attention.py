"""Find the attention heads of a torch model by the names and shapes of its projections."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from torch import nn

from secateur.frameworks.pytorch import get_parameter_name, get_type_names, get_view, list_layers, read_parameter
from secateur.graph.group import Group, Member, Role
from secateur.graph.index_map import AffineMap

__all__ = ["find_heads"]

QUERY_NAMES = ("q_proj", "query", "q_lin", "q", "to_q")
KEY_NAMES = ("k_proj", "key", "k_lin", "k", "to_k")
VALUE_NAMES = ("v_proj", "value", "v_lin", "v", "to_v")
OUTPUT_NAMES = ("o_proj", "out_proj", "out_lin", "o", "dense", "to_out.0")

NEXT_OUTPUT_NAME = "output.dense"
"""Name of the output projection beside the module that has the other projections, as in BERT."""

SIZE_NAMES = ("head_dim", "attention_head_size", "key_value_proj_dim", "head_size")
COUNT_NAMES = ("num_heads", "num_attention_heads", "n_heads", "heads", "h")


class _Layer(NamedTuple):
    name: str
    module: nn.Module

    @property
    def sizes(self) -> tuple[int, int]:
        """Number of output channels and of input channels."""
        outputs, _, inputs = get_view(self.module).canonical_shape
        return outputs, inputs

    def make_member(self, *, of_outputs: bool, index_map: AffineMap) -> Member:
        """Return the member for the weight, along its outputs or its inputs."""
        view = get_view(self.module)
        (axis,) = view.output_axes if of_outputs else view.input_axes
        return Member(
            parameter=get_parameter_name(self.name, self.module),
            shape=view.shape,
            axis=axis,
            index_map=index_map,
            role=Role.PRODUCER if of_outputs else Role.CONSUMER,
        )


def find_heads(model: nn.Module) -> list[Group]:
    """Return one group per attention module: its heads, or its key/value heads with their query heads.

    Attention is a module with a query, a key and a value projection, and an output projection in it or beside it; or a
    ``MultiheadAttention``. The size of a head, or the number of heads, is an attribute of the module.

    Examples:
        >>> attention = nn.MultiheadAttention(embed_dim=16, num_heads=4)
        >>> [(group.units, group.unit_size) for group in find_heads(attention)]
        [(4, 256)]
    """
    modules = list_layers(model)
    groups: list[Group] = []
    for name, module in modules.items():
        if isinstance(module, nn.MultiheadAttention):
            groups += _group_fused(name, module)
        else:
            groups += _group_separate(name, module, modules)
    return groups


def _group_fused(name: str, attention: nn.MultiheadAttention) -> Iterator[Group]:
    if read_parameter(attention) is None:  # separate weights for inputs of other sizes
        return
    units, size, total = attention.num_heads, attention.head_dim, attention.embed_dim
    projection = _Layer(name, attention)
    output = _Layer(f"{name}.out_proj".lstrip("."), attention.out_proj)
    maps = [AffineMap(units=units, width=size, offset=part * total) for part in range(3)]
    members = [projection.make_member(of_outputs=True, index_map=index_map) for index_map in maps]
    members.append(output.make_member(of_outputs=False, index_map=AffineMap(units=units, width=size)))
    yield Group(units=units, members=tuple(members))


def _group_separate(name: str, attention: nn.Module, modules: Mapping[str, nn.Module]) -> Iterator[Group]:
    found = [_find_layer(name, names, modules) for names in (QUERY_NAMES, KEY_NAMES, VALUE_NAMES, OUTPUT_NAMES)]
    if found[3] is None and name:
        found[3] = _find_layer(name.rpartition(".")[0], (NEXT_OUTPUT_NAME,), modules)
    layers = [layer for layer in found if layer is not None]
    if len(layers) < len(found):
        return
    query, key, value, output = layers
    size = _read_head_size(attention, query.sizes[0])
    if size is None:
        return
    pairs, rest = divmod(key.sizes[0], size)
    if not pairs or rest or value.sizes[0] % pairs or query.sizes[0] % (pairs * size):
        return
    values = value.sizes[0] // pairs * (query.sizes[0] // (pairs * size))
    if output.sizes[1] != pairs * values:  # the output does not read one value per query head, as with gates
        return
    widths = [layer.sizes[0] // pairs for layer in (query, key, value)]
    members = [
        layer.make_member(of_outputs=True, index_map=AffineMap(units=pairs, width=width))
        for layer, width in zip((query, key, value), widths, strict=True)
    ]
    members.append(output.make_member(of_outputs=False, index_map=AffineMap(units=pairs, width=values)))
    yield Group(units=pairs, members=tuple(members))


def _find_layer(owner: str, names: tuple[str, ...], modules: Mapping[str, nn.Module]) -> _Layer | None:
    """Return the first linear layer with one of the names in a module, inside its adapter if it has one."""
    for name in names:
        full = f"{owner}.{name}".lstrip(".")
        for path in (full, f"{full}.base_layer"):
            if "Linear" in get_type_names(modules.get(path, EMPTY)):
                return _Layer(path, modules[path])
    return None


EMPTY = nn.Identity()


def _read_head_size(attention: nn.Module, outputs: int) -> int | None:
    """Return the size of a query head, which the module or its configuration says; ``None``: neither does."""
    for source in (attention, getattr(attention, "config", None)):
        if (size := _read_number(source, SIZE_NAMES)) is not None:
            return size
        if (count := _read_number(source, COUNT_NAMES)) is not None and outputs % count == 0:
            return outputs // count
    return None


def _read_number(source: Any, names: tuple[str, ...]) -> int | None:
    """Return the first attribute with one of the names that is a positive integer."""
    values = (getattr(source, name, None) for name in names)
    return next(
        (value for value in values if isinstance(value, int) and not isinstance(value, bool) and value > 0), None
    )
