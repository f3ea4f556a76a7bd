"""The servers that ours is compared with, each with its defaults, on a free port of 127.0.0.1."""
