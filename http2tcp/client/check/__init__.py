"""`--check`: the client's own code walks the way to the target, and each hop is reported with what it needs.

It imports what the client may, and nothing in the client but a check imports it. Start with `walk`.
"""
