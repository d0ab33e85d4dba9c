"""`python -m pgqueue` is the command `pgqueue`."""

from pgqueue.cli.main import main

if __name__ == "__main__":
    main()
