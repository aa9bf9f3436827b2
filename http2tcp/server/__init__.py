"""The server: it decides who may open a tunnel to where, records each tunnel, and starts, reloads and stops.

It imports `net`, `protocol` and the ground files, and never `client`. Start with `connection`, a tunnel's whole life.
"""
