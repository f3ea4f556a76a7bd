"""What `make test` adds to pytest: `-p tests.harness`. `python -m pytest` alone does without all of it.

second_try.py       repeats what failed, and prints what passes only then
on_postgres.py      runs the part of the suite that depends on the database on PostgreSQL too
coverage_floors.py  fails where less of the code is covered than pyproject.toml says
child.py            a pytest session in a process of its own, and what became of its tests
"""

pytest_plugins = ["tests.harness.second_try", "tests.harness.on_postgres", "tests.harness.coverage_floors"]
