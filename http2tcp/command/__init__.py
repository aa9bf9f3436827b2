"""The command line: it turns options, files and variables into settings, and errors into an exit status and a line.

It may import every other package, and only it imports click. Start with `cli`, which chooses what to run; `process`
runs it.
"""
