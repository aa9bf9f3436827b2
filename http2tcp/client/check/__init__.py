"""`--check`: run the client's own code to the target, and report each hop on the way and what it needs.

It may import whatever the client may. In the client, no module outside of this package imports it. Start with `walk`.
"""
