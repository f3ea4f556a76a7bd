"""The web process's side of a connection: drivers between the protocol core and the world.

They translate events to I/O and I/O to events, and decide nothing that the core could decide.

    process   what all connections of a web process share
    cache     blocks on their way out, one fetch for all who want the same
    login     who is at the other end
    session   one connection: the core, its writer, its transfers
    intake    one upload: chunks to the buffer, runs to workers
    inline    one small upload: straight into its row
    outflow   one delivery: blocks to frames
    offering  what is offered to a connection, and when
"""
