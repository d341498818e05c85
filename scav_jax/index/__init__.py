"""An index of one's own videos on disk, and the search in it.

    index = create("videos.index", identity=model.identity, distance=model.distance)
    index.add(model.embed("videos"))
    hits = index.search(model.embed("dog.wav"), direction="a2v", k=10)

what lies on disk
  catalog     the header, where everything lies, one writer at a time
  rows        the table: a row for each clip
  sketches    short vectors that bound distances from below
  encoding    sequences as rounded numbers, in records that are summed
  segments    what is encoded, in files: written, mapped, checked
  snapshot    what a reader sees: segments, and which of their rows are clips
what is found in a snapshot
  products    distances by products of matrices, with bounds on their rounding
  nearest     the nearest so far, by distances or by scores relative to a bank
  scan        queries against stored sequences under the Euclidean distance
  pruned      exact search and second stage: what bounds rule out is not compared
  searching   one search: its method, cosines of embeddings, any distance
  mesh        a search over devices
what is done with it
  bank        training queries that scores are relative to, and how near clips come to them
  writing     new segments: of clips that are added, of what a compaction moves
  store       an index: create, open, add, delete, compact, search
  transfer    an index as one file that other tools read, and back
  program     the subcommands of `scav index`
  first_stage  the program `scav sketch`: what candidates are chosen by
"""

import importlib

__all__ = ["Hit", "Index", "create", "open_index"]


def __getattr__(name: str):
    """What is above, imported when it is asked for: a command line is read before that."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module("scav_jax.index.store"), name)
