"""The options of batches: what each may be, for `batches` and for the config's section `data`."""

from typing import Any

from scav_jax.base.errors import check_one_of
from scav_jax.base.ranges import AT_LEAST_0, AT_LEAST_1, Range, check_range

ALIGNMENTS = ("time", "index")
DTYPES = ("float32", "float16")  # of features in a batch, as NumPy calls them
WORDS = {"align": ALIGNMENTS, "features": DTYPES}
NUMBERS = {"batch_size": Range(2), "buckets": AT_LEAST_1, "read_threads": AT_LEAST_0}
OPTIONS = (*WORDS, *NUMBERS)
ADVICE = {
    "batch_size": "without other clips there is nothing to contrast",
    "buckets": "4 is a good start",
}


def check_options(**options: Any) -> None:
    """Raises `InputError` for an option that cannot be; each is called as in the config."""
    for name, value in options.items():
        if name in WORDS:
            check_one_of(f"data.{name}", value, WORDS[name])
        else:
            check_range(f"data.{name}", value, NUMBERS[name], ADVICE.get(name, ""))
