"""The command line: options, files and variables become settings; errors become an exit status and a line.

It may import everything, and it alone imports click. Start with `cli`, which chooses what runs; `process` runs it.
"""
