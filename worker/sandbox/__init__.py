"""A stand-in for both providers on this machine: validates as they document, can be told to misbehave, shows what it holds.

Written from the vendors' documents alone and sharing no code with `worker/providers/`, so that the two cannot agree on the
same mistake. What the documents leave open is a switch, marked as assumed.
"""

from worker.sandbox.server import MINDHUNTERS_TOKEN, VAMBE_API_KEY, Sandbox, serve

__all__ = ["MINDHUNTERS_TOKEN", "VAMBE_API_KEY", "Sandbox", "serve"]
