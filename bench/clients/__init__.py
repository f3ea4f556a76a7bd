"""What runs in processes of its own, so that no client shares an event loop with another or with the harness."""
