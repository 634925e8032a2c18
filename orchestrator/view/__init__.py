"""What commands print: pure functions from values to renderables."""
