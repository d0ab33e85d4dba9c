"""pgqueue beside its peers, on one server: `python -m benchmarks.peers`. One file per peer."""
