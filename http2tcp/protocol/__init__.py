"""Turn bytes into messages and back: heads, capsules, frames, the protocols of proxies. Pure: tests feed it by hand.

This folder does no I/O and no logging. It may import only the ground modules, which docs/architecture.md lists.
Start with `server_handshake` and `capsule`.
"""
