"""Talk with one host: run words, stream lines, move files; locally or over SSH."""
