"""The search page as a browser on its own machine asks it: others are refused."""

from starlette.testclient import TestClient

from scav_jax.web.app import LOOPBACK_NAMES

PAGE = f"http://{LOOPBACK_NAMES[0]}"


def page_client(app):
    """A client of `create_app`'s application, to be used in a `with`."""
    return TestClient(app, base_url=PAGE)
