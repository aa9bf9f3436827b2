"""What a tunnel costs, measured beside its alternatives: `tests/benchmarks/run`.

Not tests: nothing here is asserted about time, and nothing here is collected by pytest. Linux only, since
all figures of CPU, memory and descriptors come from /proc. Standard library and the project alone.

    __main__    the arguments, the rows in turn, the table
    rows        one function a row: what is measured, and how
    contenders  the relays that are measured, each started as its users start it
    drivers     the near end of a tunnel: opening, draining, echoing, many at once; in this process
    target      the far end, in processes of its own
    processes   starting programs and ending them
    procfs      CPU, memory and descriptors of a program and its children
    table       medians, ratios, Markdown
    sslstream   the client on trio.SSLStream, to compare with
"""
