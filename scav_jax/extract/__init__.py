"""Video files -> features on disk, `python -m scav_jax.extract --videos DIR --out DATA`.

fbank        log-mel frames, Kaldi-compatible
opening      a file opened, and whose fault it is where that fails
whole        files of which only the first part would be read
transport    which programmes a transport stream has, from its first to its last table
packs        whether other streams follow those of a program stream
film         which streams of a file are the film, and where its second 0 lies
clock        one clock for all packets of a file, which runs forward
packets      the packets of a stream on that clock
upright      pictures as players show them: turned, mirrored, with square pixels
streams      one stream of a film: frames, their times, damage, its length
media        a file's clips: frames and sound on the clip's own clock
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
