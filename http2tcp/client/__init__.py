"""The client: it reaches the server through whatever is on the way, and explains to its user why it could not.

It imports `net`, `protocol` and the ground modules (such as `address` and `errors`), but never `server`. Start with
`connector`, which opens a tunnel.
"""
