"""Sockets, TLS, pipes and the relay: bytes between descriptors, on trio.

This package knows no policy and no settings: its callers pass plain values and callables. It imports `protocol` and
the ground files (`address`, `errors` and the like). Start with `streams` for what a stream promises, then read `relay`.
"""
