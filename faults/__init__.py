"""Faults: the promises of DESIGN section 4, shown by breaking things while real transfers run.

`python -m faults [--trials N] [--only CELL] [--seed S]` starts the shipped stack, and for every cell runs N trials: real
uploads and deliveries, one fault at a random moment that the seed decides, then the fault is healed and everything has
to end well. The last line of the table is `N trials, 0 failed`; a failing trial prints its seed and how to replay it.

    site.py       the site's rows and Storage, asked in this process
    loss.py       packets that get lost between them, in the kernel
    postgres.py   a PostgreSQL server of our own, and the connections to it: cut at their commits
    steps.py      steps of a worker's tasks, and the plan to kill it at one
    doomed.py     the Celery app of workers that carry out such plans
    people.py     senders and recipients on the supplied client
    commands.py   the same as processes of the command line, which can be killed
    trial.py      one trial: who moves what, when the fault comes, what must hold at the end
    measures.py   memory of the stack
    runner.py     all trials of all cells, and the table
    cells/        the faults, by what they hit
"""
