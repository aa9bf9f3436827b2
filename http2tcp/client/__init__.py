"""The client: how it gets to the server through whatever is on the way, and what it tells its user when it does not.

It imports `net`, `protocol` and the ground files, and never `server`. Start with `connector`, which opens a tunnel.
"""
