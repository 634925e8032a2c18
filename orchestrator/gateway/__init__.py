"""The HTTP front of a cluster: the only thing users talk to."""
