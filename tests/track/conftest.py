"""Fixtures of the tests of trackers: wandb's server, and none."""

from tests.track.wandb_server import api, unplugged  # noqa: F401
