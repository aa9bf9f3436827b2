"""The server: who may open a tunnel to where, what is recorded of it, and how the service starts, reloads and stops.

It imports `net`, `protocol` and the ground files, and never `client`. Start with `connection`, a tunnel's whole life.
"""
