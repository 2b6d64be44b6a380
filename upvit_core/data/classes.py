"""The index of every class of an image set: by name where names are known, else by number or natural order."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache

from timm.data import ImageNetInfo, infer_imagenet_subset

from upvit_core.errors import DataError
from upvit_core.files import Values

WNID = re.compile(r"(?<![A-Za-z0-9])n\d{8}(?!\d)")
NUMBERED = re.compile(r"^\s*(?:n?\d+)[\s._-]+(?=\D)")
ACCENT = re.compile("[\u0300-\u036f]")
LONGEST_LIST = 4

Known = Sequence[Sequence[str]]
"""The names of each class of a model, the one to be shown first."""


@dataclass(frozen=True)
class ClassOrder:
    """`indices`: the class of each folder, None where it is left out; `names` by class index; `told`: how it was found.

    `known`: a name or number says which class each is; otherwise their order alone does.
    """

    indices: tuple[int | None, ...]
    names: tuple[str, ...]
    told: str
    known: bool


def known_names(class_names: Sequence[str] | None, cfg: Values) -> Known | None:
    """All names of each class: those of the model, and timm's `label_names` and their descriptions in its config."""
    labels = cfg.get("label_names")
    words = cfg.get("label_descriptions") or {}
    own = [[str(label), str(words.get(label, label))] for label in labels] if labels else None
    if class_names is None or (own and len(own) != len(class_names)):
        return own if class_names is None else [[name] for name in class_names]
    return [[name, *(own[i] if own else ())] for i, name in enumerate(class_names)]


def order_classes(
    folders: Sequence[str],
    known: Known | None,
    num_classes: int | None,
    *,
    empty: Sequence[str] = (),
    ordered: bool = False,
    what: str = "folders",
) -> ClassOrder:
    """Give each folder its class of a model of `num_classes` outputs whose classes have the names `known`.

    `empty` are folders without images, which count where the rest is too few. `ordered`: the set itself numbers its
    classes. Raises DataError where names do not tell, and the number of folders is another than that of outputs.
    """
    num_classes = len(known) if known is not None else num_classes
    if (found := _by_name(folders, known, num_classes, what)) is not None:
        return found
    numbers = [int(name) for name in folders if name.isdecimal()]
    if not ordered and num_classes and len({*numbers}) == len(folders) and max(numbers) < num_classes:
        names = [own[0] for own in known or [[str(index)] for index in range(num_classes)]]
        return ClassOrder(tuple(numbers), tuple(names), "Labels go by number: folder k is class k.", True)
    listed = list(folders)
    if num_classes not in (None, len(folders)):
        if len(folders) + len(empty) != num_classes:
            raise DataError(_does_not_fit(folders, known, num_classes, what))
        listed += empty
    names = listed if ordered else sorted(listed, key=natural_key)
    why = f"they are not named as the model's classes ({_some(known)})" if known else "the model names no classes"
    told = f"Labels go by the {'own' if ordered else 'natural'} order of the {what} ({_few(names)}), since {why}."
    place = {name: index for index, name in enumerate(names)}
    return ClassOrder(tuple(place[name] for name in folders), tuple(names), told if num_classes else "", False)


def match_classes(names: Sequence[str], known: Known | None, num_classes: int) -> tuple[int | None, ...]:
    """The class of a model that each name means; None where names do not say."""
    found = _by_name(names, known, num_classes, "classes")
    return (None,) * len(names) if found is None else found.indices


def natural_key(name: str) -> list[str | int]:
    """Sorts numbers inside names by value: 2 before 10."""
    return [int(part) if part.isdecimal() else part for part in re.split(r"([0-9]+)", name)]


def _by_name(folders: Sequence[str], known: Known | None, count: int | None, what: str) -> ClassOrder | None:
    """The order of folders named as classes of the model, or of ImageNet where the model names none and has as many.

    A single match among several folders may be chance, so it does not count. Where the model names no classes, words of
    ImageNet's count only if all folders match, or some carry wnids. None where names do not tell.
    """
    standard = _imagenet(count)
    if known is not None:
        tables = [_table(known)]
        if standard and sum(bool(_keys(a) & _keys(b)) for a, b in zip(known, standard, strict=True)) > len(known) / 2:
            tables.append(_table(standard))
    else:
        tables = [_table(standard)] if standard else []
    indices = tuple(next((t[key] for t in tables for key in _spellings(name) if key in t), None) for name in folders)
    matched = [index for index in indices if index is not None]
    some = known is not None or any(WNID.search(name) for name in folders)
    least = min(2, len(folders)) if some else len(folders)
    if len(matched) < least:
        return None
    source: Known = known or standard or ()
    unknown = [name for name, index in zip(folders, indices, strict=True) if index is None]
    whose = "the model" if known else "ImageNet in timm's order, as the model names none"
    told = f"Labels go by name: {len(matched):,} of {len(folders):,} {what} are named as classes of {whose}"
    told += f" ({len({*matched}):,} of {len(source):,})" + (f"; left out: {_few(unknown)}" if unknown else "")
    return ClassOrder(indices, tuple(names[0] for names in source), f"{told}.", True)


def _plain(name: str) -> str:
    """A name without case, accents, spaces and punctuation, `&` as `and`."""
    bare = "".join(part for part in unicodedata.normalize("NFKD", name.replace("&", "and")) if not ACCENT.match(part))
    return "".join(letter for letter in unicodedata.normalize("NFKC", bare).casefold() if letter.isalnum())


def _spellings(folder: str) -> list[str]:
    """The keys under which a folder is looked up: as it is, plain, its wnid and words, without a number, singular."""
    bare, wnid = _plain(NUMBERED.sub("", folder)), WNID.search(folder.lower())
    words = [_plain(word) for word in _synonyms(_descriptions().get(wnid[0], ""))] if wnid else []
    return [folder, _plain(folder), *([wnid[0]] if wnid else []), *words, bare, *_singular({bare})]


def _singular(keys: set[str]) -> set[str]:
    return {f"{key.rstrip('s')} singular" for key in keys if len(key) > 2}


def _synonyms(name: str) -> Iterable[str]:
    return (part for part in re.split(r"[,;]", WNID.sub("", name)) if part.strip())


def _keys(names: Sequence[str]) -> set[str]:
    return {_plain(part) for name in names for part in _synonyms(name)}


def _table(known: Known) -> dict[str, int]:
    """The class of each key: full names, plain names, synonyms, wnids.

    A key that two classes share is left out, except that a full name goes before another class's synonym.
    """
    wnids = [[found for name in names for found in WNID.findall(name)] for names in known]
    words = _descriptions() if any(wnids) else {}
    known = [[*names, *(words[w] for w in ids if w in words)] for names, ids in zip(known, wnids, strict=True)]
    table: dict[str, int] = {}
    for kind in (lambda n: {*n}, lambda n: {_plain(name) for name in n}, _keys, lambda n: _singular(_keys(n))):
        keys = [kind(names) for names in known]
        shared = Counter(key for own in keys for key in own)
        table = {k: i for i, own in enumerate(keys) for k in own if k and shared[k] == 1} | table
    return table | {wnid: index for index, ids in enumerate(wnids) for wnid in ids}


@lru_cache(maxsize=4)
def _imagenet(count: int | None) -> Known | None:
    """Words and wnid of each class of the ImageNet of so many classes, from timm; None where there is none."""
    if (subset := infer_imagenet_subset({"num_classes": count})) is None:
        return None
    info = ImageNetInfo(subset)
    return [[info.index_to_description(index), info.index_to_label_name(index)] for index in range(info.num_classes())]


@lru_cache(maxsize=1)
def _descriptions() -> dict[str, str]:
    info = ImageNetInfo("imagenet-22k")
    return {name: info.label_name_to_description(name) for name in info.label_names()}


def _few(names: Sequence[str]) -> str:
    if len(names) <= LONGEST_LIST:
        return ", ".join(names)
    return f"{', '.join(names[: LONGEST_LIST - 1])} … {names[-1]}"


def _some(known: Known) -> str:
    return _few([names[0] for names in known])


def _does_not_fit(folders: Sequence[str], known: Known | None, num_classes: int, what: str) -> str:
    names = "" if known is None else f" ({_some(known)})"
    return (
        f"There are {len(folders)} classes among the {what} ({_few(folders)}) and the model has {num_classes} outputs"
        f"{names}, and no name or number tells which is which; give images of the classes that the model was trained "
        "on, in folders named as these."
    )
