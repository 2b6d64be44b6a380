"""One full-width model whose prefixes are every size."""

from upvit_core.pruning.elastic.folder import ElasticModel, cut_size, make_elastic, open_elastic, save_elastic
from upvit_core.pruning.elastic.prefix import keeps_prefixes, ladder_sizes, prefix_plan, prefix_state, size_of

__all__ = [
    "ElasticModel",
    "cut_size",
    "keeps_prefixes",
    "ladder_sizes",
    "make_elastic",
    "open_elastic",
    "prefix_plan",
    "prefix_state",
    "save_elastic",
    "size_of",
]
