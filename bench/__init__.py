"""Every performance figure that the project claims, side by side with its peers: `python -m bench`.

machine     what it runs on; memory warmed before a timed run
children    processes that are started, talked to in JSON lines, and ended
meter       processor time and memory of groups of processes
figures     from rounds to medians and ratios; the table and the JSON
install     what is compared with
stack       ours, as shipped; `site`: its Django side, for preparing and for looking
peers       the servers that are compared with
clients     what runs in processes of its own: our Python client, a light load client, the peers' clients
rows        one module for each figure
bench       what a row is given: rounds, sizes, servers that end with it
"""
