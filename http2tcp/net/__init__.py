"""Sockets, TLS, pipes and the relay: bytes between descriptors, on trio.

It knows no policy and no settings: plain values and callables come in. It imports `protocol` and the ground files.
Start with `streams` for what a stream promises, then `relay`.
"""
