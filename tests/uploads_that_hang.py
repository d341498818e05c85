"""Decoders that hang, crash or eat memory, for a process of their own: nothing else is imported."""

import os
import time

from scav_jax.web import uploads

STEPS, DECODING = uploads._steps, uploads._decoding


def steps(upload, preparer):
    while upload.name == "hangs" and not os.path.exists(os.environ["GO_ON"]):
        time.sleep(0.1)
    if upload.name == "eats":
        bytearray(2**33)
    if upload.name == "crashes":
        os._exit(11)
    yield from STEPS(upload, preparer)


def decoding(upload, *, preparer):
    uploads._steps = steps
    yield from DECODING(upload, preparer=preparer)
