"""The parts of a pair: models, or pairs, whose parts may be pairs again. Read from configurations; no weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, cast

from kad.errors import KadError, PairError, first_line
from kad.pair.config import KadConfig
from kad.pair.model_files import TROUBLE, configuration, place_of
from kad.pair.sources import Source, not_a_pair, resolve_pair

_MOST = 64
# What is said about one model, and not about the models in a pair.
_OF_ONE = frozenset({"gguf_file", "subfolder"})


@dataclass(frozen=True)
class Part:
    """What stands in the place of a model.

    Attributes:
        source: where it is.
        config: what its folder says if it is a pair. None: it is one model.
        parts: the parts of the pair, by role.
    """

    source: Source
    config: KadConfig | None = None
    parts: dict[str, Part] = field(default_factory=dict)

    def leaves(self, path: str) -> dict[str, Source]:
        """The models in it, by their paths, such as "aligned.base". One model is itself the only one."""
        if self.config is None:
            return {path: self.source}
        return leaves_of(self.parts, f"{path}.")


def parts_of(config: KadConfig) -> dict[str, Part]:
    """What stands in each role of a pair.

    Raises:
        PairError: a pair that is a part of itself, a pair of too many models, or as `read_config`.
    """
    own = config.own_source
    return _parts_of(config, () if own is None else (_place(Source.parse(own.model)),), _Budget())


def part_of(source: Source) -> Part:
    """What is at a place: one model, or a pair with its parts. Errors as `parts_of`."""
    return _part_of(source, (), _Budget())


def leaves_of(parts: Mapping[str, Part], before: str = "") -> dict[str, Source]:
    """The models of all parts, by their paths, such as "aligned.base"."""
    return {path: one for role, part in parts.items() for path, one in part.leaves(before + role).items()}


def places_of(sources: Mapping[str, Source]) -> set[str]:
    """Every place of a model or of a pair in some sources. Errors as `parts_of`."""
    parts = [part_of(source) for source in sources.values()]
    for part in parts:
        parts += part.parts.values()
    return {_place(part.source) for part in parts}


def read_config(pair: Any, **place: Any) -> KadConfig:
    """The `KadConfig` of a pair.

    Raises:
        PairError: no such pair, or a model that is no pair.
    """
    try:
        plain, _ = KadConfig.get_config_dict(resolve_pair(pair), **place)
        config = KadConfig.from_pretrained(pair, **place) if plain.get("model_type") == "kad" else None
    except KadError:
        raise
    except AttributeError as error:
        raise PairError(f"Cannot read the pair {pair}: its config.json is no JSON object.") from error
    except TROUBLE as error:
        raise PairError(f"Cannot read the pair {pair}: {first_line(error)}") from error
    if config is None or config.base is None or config.aligned is None:
        raise not_a_pair(pair)
    return cast("KadConfig", config)


def refuse_pairs(sources: Mapping[str, Source]) -> None:
    """Refuse a pair of which a part is a pair, where vLLM is to run it.

    Raises:
        PairError: it is one.
    """
    for role, source in sources.items():
        if part_of(source).config is not None:
            raise PairError(
                f"vLLM composes single models, but the {role} model {source.model} is a pair. Use another engine."
            )


class _Budget:
    """How many places may still be looked at: a pair of somebody else may name pairs without an end."""

    def __init__(self) -> None:
        self.left = _MOST

    def spend(self, source: Source) -> None:
        self.left -= 1
        if self.left < 0:
            raise PairError(f"A pair is composed of at most {_MOST} models and pairs, and {source.model} is one more.")


def _part_of(source: Source, above: tuple[str, ...], budget: _Budget) -> Part:
    budget.spend(source)
    if source.url is not None:
        return Part(source)
    place = _place(source)
    if place in above:
        raise PairError(
            f"The pair {place} is a part of itself: {' -> '.join((*above[above.index(place) :], place))}. "
            "Give one of them other parts."
        )
    if _OF_ONE & source.kwargs.keys() or (configuration(source) or {}).get("model_type") != "kad":
        return Part(source)
    config = read_config(source.model, **place_of(source))
    return Part(source, config, _parts_of(config, (*above, place), budget, source.kwargs))


def _parts_of(
    config: KadConfig, above: tuple[str, ...], budget: _Budget, said: Mapping[str, Any] | None = None
) -> dict[str, Part]:
    """`said` is what was said about loading the pair, which is said about each of its models."""
    return {
        role: _part_of(replace(source, kwargs={**source.kwargs, **(said or {})}), above, budget)
        for role, source in config.model_sources().items()
    }


def _place(source: Source) -> str:
    return source.model if source.revision is None else f"{source.model}@{source.revision}"
