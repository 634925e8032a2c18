"""The command line. Modules here import what they need inside each command, so that `--help` stays fast."""
