"""The command line, `python -m delivery.client` and `delivery-client`: what it asks of a client, and what it shows.

main         runs a command as a process: signals, exit status
arguments    what can be given, and what is wrong with it
commands     `send` and `receive`
activity     whether anything moves, and what could be resumed
resumption   the uploads that the same command resumes
reporting    JSON lines, or errors alone; `bars`: progress bars
wording      events and sizes in words
"""
