"""The command line: `python -m delivery.client` and `delivery-client`.

main         runs a command as a process: signals, exit status
arguments    the arguments and their errors
commands     `send` and `receive`
activity     the progress of a command, and whether it can be resumed
resumption   the uploads that the same command resumes
reporting    JSON lines, or only errors; `bars`: progress bars
wording      events and sizes as text
"""
