"""The base classes of patterns, which turn scores into boolean masks, and the registry of patterns."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from fractions import Fraction
from typing import Any, ClassVar

from secateur._array import Array, concat_chunks, count_true, namespace
from secateur._registry import Registry
from secateur._wording import format_list
from secateur.config import ConfigLike, PruningConfig, make_config
from secateur.errors import ConfigError, LayerError, UnsupportedModelError
from secateur.frameworks import Framework, NoFramework, WeightView, get_framework
from secateur.graph import Group
from secateur.patterns.budget import Budget
from secateur.patterns.peers import Peers
from secateur.patterns.reduction import REDUCTIONS
from secateur.patterns.selection import Cut, Scores, find_cuts, find_global_cuts, unify_precision
from secateur.patterns.settings import read_settings, refuse_coupled_settings
from secateur.patterns.specification import Specification
from secateur.patterns.tiling import Tiling, Units, intersect, list_parts

__all__ = [
    "PATTERNS",
    "ArrayBasePattern",
    "BasePattern",
    "KerasBasePattern",
    "PytorchBasePattern",
    "get_pattern",
    "get_pattern_class",
    "register_pattern",
]


def _check_pattern(name: str, item: Any) -> None:
    if not (isinstance(item, type) and issubclass(item, BasePattern) and item is not BasePattern):
        raise UnsupportedModelError(
            f"The pattern {name!r} must be a subclass of secateur.patterns.BasePattern, found {item!r}. "
            f"Derive it from BasePattern."
        )


PATTERNS: Registry[type[BasePattern]] = Registry(
    "pattern",
    _check_pattern,
    serves=lambda candidate, specification: candidate.serves(specification),
    examples=("1x1", "4x1", "1x16", "1xchannel", "channelx1", "2:4", "4:8"),
)
"""Pattern type name → pattern class."""

register_pattern = PATTERNS.register
"""Class decorator that adds a pattern to `PATTERNS` under a type name. Raises `ConfigError` if the name is taken."""

DEFAULT_MAXIMUM = 0.98
"""Largest share of its units that a layer loses in a global ranking, unless the configuration sets another one."""

ROUNDING = 1e-9
"""Tolerance by which a sparsity may exceed the maximum, for rounding errors of schedules."""


class BasePattern(Specification):
    """Base class of patterns, which define units and select the units to prune.

    A pattern defines how a weight is tiled into units (`tile`). If necessary, it also defines which layers share units
    (`couple`) and how units are selected (`select`). `get_pattern` sets the `framework`, which reads weights and masks,
    so that one class supports all frameworks.

    Args:
        config: A `PruningConfig`, or a plain mapping with the same keys.
        modules: Layer name → module.

    Attributes:
        config: The configuration.
        modules: Layer name → module, as given.
        framework: How the modules store their weights.
        groups: Units with slices in several parameters of the modules, of the kind that `coupling` names.
        pattern: The pattern specification, e.g. ``"4x1"``.
        is_global: Whether all layers are ranked together, rather than separately.
        target_sparsity: Share of units that are pruned at the end, over all valid layers, in [0, 1]. The share of
            weights differs if units differ in size, such as channels in a global ranking.
        min_sparsity_ratio_per_op: Minimum sparsity of each layer at the end, in [0, 1].
        max_sparsity_ratio_per_op: Maximum sparsity of each layer, in [0, 1]; 1 if the configuration has none, until
            `limit_layers` sets the default.
        keep_mask_layers: Layers whose mask no longer changes → the reason: they reached their bound, or were frozen by
            the user.
        invalid_layers: Layers that do not fit the pattern → the reason.
        views: Valid layer → the canonical view of its weight.
        units: Name → units that are numbered and ranked together; usually one entry per valid layer, under its name.
        weight_peers: Layer → the processes that its weights are divided over, if they are.
        whole_views: Like `views`, but of whole weights, if this process has a part of them.

    Raises:
        ConfigError: The target is impossible within the bounds, or there are modules but no `tile` method or no
            framework.
    """

    framework_name: ClassVar[str | None] = None
    """The only framework that the class supports; ``None``: it supports all."""

    coupling: ClassVar[str | None] = None
    """The kind of groups that the class reads from `groups`, such as ``"heads"``; ``None``: it reads none."""

    finds_locked_weights: ClassVar[bool] = False
    """Whether a pattern lock calls `find_locked_weights`, rather than keeping every zero."""

    keeps_outputs: ClassVar[bool] = False
    """Whether the pattern never prunes outputs of the model, so output layers need not be named to be pruned."""

    framework: Framework = NoFramework()
    groups: Sequence[Group] = ()

    def __init__(self, config: PruningConfig | Mapping[str, Any], modules: Mapping[str, Any]) -> None:
        if self.framework_name is not None:
            self.framework = get_framework(self.framework_name)
        self.config = config if isinstance(config, PruningConfig) else read_settings(config)
        self.modules = dict(modules)
        self.pattern = self.config.pattern
        self.reduction = self.config.criterion_reduce_type
        self.is_global = self.config.pruning_scope != "local"
        target = self.config.target_sparsity
        self.target_sparsity = self.default_target_sparsity() if target is None else target
        self.min_sparsity_ratio_per_op = self.config.min_sparsity_ratio_per_op
        maximum = self.config.max_sparsity_ratio_per_op
        self.max_sparsity_ratio_per_op = 1.0 if maximum is None else maximum
        self.keep_mask_layers: dict[str, str] = {}
        self.invalid_layers: dict[str, str] = {}
        self.views = self.whole_views = dict[str, WeightView]()
        refuse_coupled_settings(self.config, self.coupling)
        self.weight_peers: dict[str, Peers] = {}
        self.units = self.couple(self._tile_weights())
        self.budget = self._make_budget()

    def couple(self, tilings: dict[str, Tiling]) -> dict[str, Units]:
        """Define which layers share units. By default, each layer has its own units.

        Args:
            tilings: Valid layer → the tiling of its weight.

        Returns:
            Name → units; every valid layer is part of at least one entry. If it is part of several, a weight is kept if
            all of them keep it.
        """
        return {name: Units({name: tiling}) for name, tiling in tilings.items()}

    def masks(
        self,
        scores: Mapping[str, Any],
        sparsity: float | None = None,
        previous: Mapping[str, Any] | None = None,
        *,
        counts: Mapping[str, int] | None = None,
    ) -> dict[str, Any]:
        """Select the weights to keep.

        Exactly ``round(sparsity * units)`` units are pruned, or exactly `counts`. Ties go to the lower index.

        Args:
            scores: Valid layer → one score per weight, in the weight's shape, as tensors of the framework or NumPy
                arrays. Weights with higher scores are kept. Scores may be infinite.
            sparsity: Share to prune, in [0, 1], or [0, 1-N/M] for N:M; the target of the pattern by default.
            previous: Masks of an earlier call; weights that they prune stay pruned.
            counts: In place of `sparsity`, name of units → number of units to prune, or of groups for N:M.

        Returns:
            Valid layer → booleans in the weight's shape, ``True`` = kept; NumPy arrays if the scores are.

        Raises:
            ScoreError: A score is ``nan``.
            LayerError: Scores of a layer are missing or have the wrong shape.
            ConfigError: `sparsity` is out of range.
        """
        sparsity = self._check_sparsity(sparsity)
        self._check_complete(scores, "scores")
        arrays = {name: self._to_canonical(name, scores[name]) for name in self.views}
        alive = None if previous is None else self.find_kept_units(previous)
        streams = {name: self.stream(name, arrays, alive) for name in self.units}
        keep = self.select(streams, sparsity) if counts is None else self.select_units(streams, counts)
        masks: dict[str, Any] = {}
        for name in list(keep):
            # Popped one by one, so that unit masks and weight masks do not all exist at the same time.
            for layer, mask in self.weight_masks({name: keep.pop(name)}).items():
                expanded = self.framework.from_array(mask, scores[layer])
                masks[layer] = intersect(masks[layer], expanded) if layer in masks else expanded
        return masks

    def stream(self, name: str, scores: Mapping[str, Array], alive: Mapping[str, Array] | None = None) -> Scores:
        """Return the scores of `units[name]` as a stream, from one score per weight as (O, K, I) arrays."""
        reduction = REDUCTIONS.find(self.reduction)
        units, flags = self.units[name], alive[name] if alive else None
        return units.rank(name, lambda: units.scores(scores, reduction), flags)

    def select(self, scores: Mapping[str, Scores], sparsity: float | None = None) -> dict[str, Array]:
        """Select the units to keep.

        Args:
            scores: Name of units → the stream of their scores, including which units are already pruned.
            sparsity: Share to prune, in [0, 1], or [0, 1-N/M] for N:M; the target of the pattern by default.

        Returns:
            Name of units → one boolean per unit, of shape (count,), ``True`` = kept.

        Raises:
            ScoreError: A score is ``nan``.
            ConfigError: `sparsity` is out of range.
        """
        sparsity, scores = self._check_sparsity(sparsity), unify_precision(scores)
        if not self.keep_mask_layers and self._prunes_all(sparsity):
            cuts = {name: self.cut_all(layer) for name, layer in scores.items()}
            if all(cut is not None for cut in cuts.values()):
                return {name: self.keep_units(scores[name], cut) for name, cut in cuts.items() if cut is not None}
        ranked = {name: self.rank_units(layer) for name, layer in scores.items()}
        return {name: self.keep_units(scores[name], cut) for name, cut in self._find_cuts(ranked, sparsity).items()}

    def select_units(self, scores: Mapping[str, Scores], counts: Mapping[str, int]) -> dict[str, Array]:
        """Prune exactly `counts` units of each layer; see `Specification.select_units`.

        If a class overrides `select`, it is called with the sparsity that corresponds to the counts.
        """
        if type(self).select is BasePattern.select:
            return super().select_units(scores, counts)
        total = sum(self.budget.units[name] for name in counts)
        return self.select(scores, float(Fraction(sum(counts.values()), total or 1) * self.unit_share))

    def _find_cuts(self, scores: Mapping[str, Scores], sparsity: float) -> dict[str, Cut]:
        """Cut the ranking of each layer so that the total is exact and within the bounds."""
        frozen = {name: scores[name].count_pruned() for name in self.units if self.is_frozen(name)}
        unfrozen = {name: scores[name] for name in self.units if name not in frozen}
        if self.is_global:
            total = self.budget.count_total(sparsity) - sum(frozen.values())
            lower, upper = self.budget.lower_bounds(sparsity), self.budget.upper_bounds()
            cuts = self.cut_globally(unfrozen, total, lower, upper) if unfrozen else {}
        else:
            cuts = find_cuts(unfrozen, {name: self.budget.count_locally(name, sparsity) for name in unfrozen})
        return cuts | {name: Cut(threshold=None, pruned=count, below=0, tied=count) for name, count in frozen.items()}

    def cut_globally(
        self, scores: Mapping[str, Scores], total: int, lower: Mapping[str, int], upper: Mapping[str, int]
    ) -> dict[str, Cut]:
        """Cut the rankings of all layers at one score; see `find_global_cuts`."""
        return find_global_cuts(scores, total, lower, upper)

    def _prunes_all(self, sparsity: float | None = None, counts: Mapping[str, int] | None = None) -> bool:
        """Whether a sparsity, or counts, prune every budget unit."""
        units = sum(self.budget.units.values())
        if counts is not None:
            return sum(counts.values()) == units
        total = self.budget.count_total(self.target_sparsity if sparsity is None else sparsity)
        return min(total, sum(self.budget.upper_bounds().values())) == units

    def is_frozen(self, name: str) -> bool:
        """Whether the units `name`, or one of their layers, are in `keep_mask_layers`."""
        return not self.keep_mask_layers.keys().isdisjoint({name, *self.units[name].parts})

    def weight_masks(self, keep: Mapping[str, Array]) -> dict[str, Array]:
        """Expand one boolean per unit to one per weight, in each weight's stored shape.

        A weight is kept if all units that it belongs to are kept.
        """
        return {layer: self.views[layer].to_stored(mask) for layer, mask in self.expand_units(keep).items()}

    def expand_units(self, keep: Mapping[str, Array]) -> dict[str, Array]:
        """Expand one boolean per unit to one per weight, as (O, K, I) arrays; see `weight_masks`."""
        masks: dict[str, Array] = {}
        for name, kept in keep.items():
            for layer, mask in self.units[name].expand(kept).items():
                masks[layer] = intersect(masks[layer], mask) if layer in masks else mask
        return masks

    def list_parts(self) -> dict[str, dict[str, Tiling]]:
        """Return valid layer → name of units → the tiling of its weight into them, in the order of the layers."""
        parts = list_parts(self.units)
        return {layer: parts[layer] for layer in self.views if layer in parts}

    def find_kept_units(self, masks: Mapping[str, Any]) -> dict[str, Array]:
        """Reduce masks to one boolean per unit: a unit is kept if any of its weights is.

        If units overlap, these are the fewest kept units that have these masks: a unit of which other units prune every
        weight counts as pruned, because it has none left. That cannot happen while every entry of `units` keeps a unit.

        Raises:
            LayerError: The mask of a layer is missing or has the wrong shape.
        """
        self._check_complete(masks, "masks")
        largest = REDUCTIONS.find("max")
        kept = {}
        for name, units in self.units.items():
            flags = {layer: self._to_flags(layer, masks[layer]) for layer in units.parts}
            kept[name] = concat_chunks([chunk > 0 for chunk in units.scores(flags, largest)])
        return kept

    def find_nonzero_units(self, nonzero: Mapping[str, Any]) -> dict[str, Array]:
        """Find the units that count as kept in a model that is already sparse.

        A unit is kept if any of its weights is not zero. If all weights of a layer are zero, all units are
        kept, because the layer is untrained rather than pruned.

        Args:
            nonzero: Valid layer → booleans in the weight's shape, ``True`` where it is not zero.
        """
        return {
            name: kept if self.units[name].add(count_true(kept)) else ~kept
            for name, kept in self.find_kept_units(nonzero).items()
        }

    def find_locked_weights(self, nonzero: Mapping[str, Any]) -> dict[str, Any]:
        """Find the weights that a pattern lock lets change: all that are not zero, unless `finds_locked_weights`.

        Args:
            nonzero: Valid layer → booleans in the weight's shape, ``True`` where it is not zero. So is the result.
        """
        return dict(nonzero)

    @property
    def verified_as(self) -> str:
        """The pattern by which weights in files are verified: `pattern`, unless a class can only verify another one."""
        return self.pattern

    def count_pruned_units(self, sparsity: float) -> int:
        """Return how many units are pruned at a sparsity, over all layers."""
        if self.is_global:
            return min(self.budget.count_total(sparsity), sum(self.budget.upper_bounds().values()))
        return sum(self.budget.count_locally(name, sparsity) for name in self.budget.units)

    def violations(
        self,
        masks: Mapping[str, Any],
        sparsity: float | None = None,  # noqa: ARG002
        *,
        counts: Mapping[str, int] | None = None,  # noqa: ARG002
    ) -> dict[str, str]:
        """Find layers whose mask does not follow the pattern.

        Args:
            masks: Valid layer → booleans in the weight's shape, ``True`` = kept.
            sparsity: The sparsity for which the masks were selected; the target of the pattern by default.
            counts: In place of `sparsity`, name of units → number of pruned units, as in `masks`.

        Returns:
            Layer → what is wrong with its mask; empty if all masks are valid.
        """
        expanded = self.weight_masks(self.find_kept_units(masks))
        wrong = {}
        for layer, expected in expanded.items():
            if count := count_true(self.framework.to_array(masks[layer]) != expected):
                wrong[layer] = f"{count} weights are pruned in units that are not fully pruned"
        return wrong

    def _check_sparsity(self, sparsity: float | None) -> float:
        """Return the requested sparsity if the pattern can reach it."""
        if sparsity is None:
            return self.target_sparsity
        maximum = float(self.budget.unit_share)
        if not 0 <= sparsity <= maximum + ROUNDING:
            raise ConfigError(f"sparsity must be in [0, {maximum:g}] for {self.pattern!r}, found {sparsity}.")
        return min(sparsity, maximum)

    def _check_complete(self, arrays: Mapping[str, Any], kind: str) -> None:
        if missing := [name for name in self.views if name not in arrays]:
            raise LayerError(f"{kind} must include every valid layer, missing: {format_list(missing)}.")

    def _to_flags(self, layer: str, mask: Any) -> Array:
        array = self._to_canonical(layer, mask)
        return namespace(array).astype(array, namespace(array).uint8)

    def _to_canonical(self, layer: str, value: Any) -> Array:
        try:
            return self.views[layer].to_canonical(self.framework.to_array(value))
        except LayerError as error:
            raise LayerError(f"layer {layer!r}: {error}") from error

    def _tile_weights(self) -> dict[str, Tiling]:
        tilings: dict[str, Tiling] = {}
        owners: dict[int, str] = {}
        for name, module in self.modules.items():
            try:
                view = self.framework.get_view(module)
                tiling = self.tile(view)
            except LayerError as error:
                self.invalid_layers[name] = str(error)
                continue
            owner = owners.setdefault(self.framework.get_weight_id(module), name)
            if owner == name:
                self.views[name], tilings[name] = view, tiling
            else:
                self.invalid_layers[name] = f"shares its weight with {owner!r} and is pruned there"
        return tilings

    def replace_maximum(self, maximum: float | None) -> None:
        """Replace ``max_sparsity_ratio_per_op`` of the configuration.

        Raises:
            ConfigError: The target is impossible with it.
        """
        self.config = self.config.model_copy(update={"max_sparsity_ratio_per_op": maximum})
        self.max_sparsity_ratio_per_op = 1.0 if maximum is None else maximum
        self.budget = self._make_budget()
        self.limit_layers()

    def limit_layers(self) -> None:
        """Apply `DEFAULT_MAXIMUM` to a global ranking without another maximum, so that no layer loses its last unit.

        Layers of N:M are not limited, because they never lose the last weights of a group.

        Raises:
            ConfigError: The target is impossible with it.
        """
        has_default = self.config.max_sparsity_ratio_per_op is None and not self.config.has_regrowth
        if has_default and self.is_global and self.unit_share == 1:
            self.max_sparsity_ratio_per_op = max(DEFAULT_MAXIMUM, self.min_sparsity_ratio_per_op)
            self.budget = self._make_budget()

    def _make_budget(self) -> Budget:
        return Budget(
            units={name: self.count_budget_units(units.total) for name, units in self.units.items()},
            unit_share=self.unit_share,
            target=self.target_sparsity,
            at_least=self.min_sparsity_ratio_per_op,
            at_most=self.max_sparsity_ratio_per_op,
            is_default=self.config.max_sparsity_ratio_per_op is None,
            is_global=self.is_global,
        )


class PytorchBasePattern(BasePattern):
    """Base class of patterns for torch modules; see `secateur.frameworks.pytorch.get_view` for supported layers."""

    framework_name = "pytorch"


class KerasBasePattern(BasePattern):
    """Base class of patterns for Keras layers; see `secateur.frameworks.keras.get_view` for supported layers.

    Selection runs on NumPy arrays with every backend, and masks are NumPy arrays.
    """

    framework_name = "keras"


class ArrayBasePattern(BasePattern):
    """Base class of patterns for plain arrays. In place of each module, pass the `WeightView` of its weight."""

    framework_name = "array"


def get_pattern(
    config: ConfigLike, modules: Mapping[str, Any], framework: str = "pytorch", *, groups: Sequence[Group] = ()
) -> BasePattern:
    """Create the pattern that is registered for ``config.pattern``, with `modules` of a framework.

    Args:
        config: A `PruningConfig`, or a plain mapping with the same keys.
        modules: Layer name → module.
        framework: ``"pytorch"``, ``"keras"``, or ``"array"`` for plain arrays, whose modules are `WeightView` objects.
        groups: Units with slices in several parameters of the modules, for patterns such as ``"heads"``.

    Raises:
        UnknownNameError: No registered pattern handles the specification, or the framework is unknown.
        ConfigError: The target is impossible within the bounds, or the pattern does not define how to tile a
            weight.
        MissingPackageError: The framework is not installed.

    Examples:
        >>> import torch
        >>> config = {"pattern": "4x1", "target_sparsity": 0.5}
        >>> pattern = get_pattern(config, {"fc": torch.nn.Linear(3, 8)})
        >>> pattern.masks({"fc": torch.arange(24.0).reshape(8, 3)})["fc"].sum()
        tensor(12)
    """
    settings, known = make_config(config), get_framework(framework)
    return _create_pattern(get_pattern_class(settings.pattern), (known, tuple(groups)), settings, modules)


def get_pattern_class(specification: str) -> type[BasePattern]:
    """Return the pattern class that is registered for a specification.

    Raises:
        UnknownNameError: There is none.
    """
    return PATTERNS.find(specification)


def _create_pattern(
    pattern: type[BasePattern],
    context: tuple[Framework, tuple[Group, ...]],
    config: PruningConfig,
    modules: Mapping[str, Any],
) -> BasePattern:
    """Create a pattern of a class that supports one framework or all.

    The framework and the groups are set before the constructor runs, so that custom constructors need no arguments for
    them.
    """
    framework, groups = context
    if pattern.framework_name not in (None, framework.name):
        raise ConfigError(f"{pattern.__name__} only supports {pattern.framework_name!r}, found {framework.name!r}.")
    created = pattern.__new__(pattern)
    created.framework, created.groups = framework, groups
    created.__init__(config, modules)  # type: ignore[misc]
    return created
