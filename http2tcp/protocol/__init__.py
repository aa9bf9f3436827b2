"""Bytes to messages and back: heads, capsules, frames, proxies' protocols. Pure, and fed by hand in the tests.

It does no I/O and no logging, and imports the ground files only. Start with `server_handshake` and `capsule`.
"""
