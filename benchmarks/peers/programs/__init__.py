"""Programs that run inside a peer's own environment: its worker, and a producer that takes orders from the harness.

They import the peer and the standard library only: nothing of pgqueue's, except pgqueue's own program.
"""
