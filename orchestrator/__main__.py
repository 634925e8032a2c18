"""`python -m orchestrator` and the `meshctl` program."""

from orchestrator.cli.app import main

if __name__ == "__main__":
    main()
