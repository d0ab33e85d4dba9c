"""What a job can do beyond running: each in files of its own, unknown to the engine and to each other."""
