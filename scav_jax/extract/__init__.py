"""Video files -> features on disk, `scav extract --videos DIR --out DATA`.

fbank        log-mel frames, Kaldi-compatible
containers   what lies in a file: its streams, one film, whole or joined
decoding     a film's packets -> the frames and the sound of clips, each at its time
backbones    frozen models in two halves: workers prepare clips, the parent encodes them
manifest     which clips: a folder or a CSV
handover     large arrays from a worker to its parent without copying them
pool         worker processes that may hang or crash
ledger       what is already done
jobs         some clips of one file: decoded in a worker, collected in the parent
encoding     the thread that encodes while workers decode, in bounded memory
shards       parts that run anywhere and become one data set
ray_engine   the same on a Ray cluster
program      `extract(...)`: all of it; `merge(...)`: shards
selfcheck    does this machine make the features that others make?
"""
