"""`python -m orchestrator` and the `meshctl` program."""

import sys


def main() -> None:
    """The entry point; Ctrl-C while it still loads its own modules leaves as quietly as later on."""
    try:
        from orchestrator.cli.app import main as app_main

        app_main()
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    main()
