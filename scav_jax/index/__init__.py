"""An index of one's own videos on disk, and the search in it.

    index = create("videos.index", identity=model.identity, distance=model.distance)
    index.add(model.embed("videos"))
    hits = index.search(model.embed("dog.wav"), direction="a2v", k=10)

layout, lock, rows, segments, storage     what is on disk, and how it is written and read
grids                                     which sequences are stored, how queries meet them
products, running, scan                   distances by products of matrices, with error bounds
sketches, bounds                          short vectors, and lower bounds on distances from them
cosine, second_stage, pruned              first stage, hybrid, exact search
any_distance                              distances that are no product of matrices
searching, store                          one search; an index
adding, compaction                        new segments: of new clips, of what is live
tune                                      recall of the first stage over k
"""

import importlib

__all__ = ["Hit", "Index", "create", "open_index"]


def __getattr__(name: str):
    """What is above, imported when it is asked for: a command line is read before that."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module("scav_jax.index.store"), name)
