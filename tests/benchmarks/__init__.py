"""What a tunnel costs, compared with other programs: `tests/benchmarks/run`.

These are not tests: pytest collects nothing here, and no time is asserted. Linux only, since all figures of CPU, memory
and descriptors come from /proc. Needs the standard library and this project only.

    __main__    the command: reads the arguments, runs the rows, prints the table
    rows        one function for each row: what is measured, and how
    contenders  the programs that are measured, each started as its users start it
    drivers     the near end of the tunnels, in this process: open, drain, echo, many at once
    target      the far end of the tunnels, in processes of its own
    processes   starting programs and ending them
    procfs      CPU, memory and descriptors of a program and its children
    table       medians, ratios, Markdown
    sslstream   the client on trio.SSLStream, to compare with
"""
