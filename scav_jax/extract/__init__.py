"""Video files -> features on disk, `python -m scav_jax.extract --videos DIR --out DATA`.

fbank        log-mel frames, Kaldi-compatible
streams      one stream of a file: frames, their times, damage
media        a file's clips: frames and sound on the clip's own clock
backbones    frozen models: frames and sound -> features
manifest     which clips: a folder or a CSV
pool         worker processes that may hang or crash
ledger       what is already done
program      `extract(...)`: all of it
"""
