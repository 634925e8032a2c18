"""What a file that is no GGUF may be instead, by its first bytes: so that the message helps. Reads nothing."""

_OTHER_FORMATS = (
    (b"version https://git-lfs", "a Git LFS pointer, which stands for the real file"),
    (b"<!doctype", "an HTML page"),
    (b"<html", "an HTML page"),
    (b"<?xml", "an XML page"),
    (b"PK\x03\x04", "a zip archive or a PyTorch checkpoint"),
    (b"\x1f\x8b", "a gzip archive"),
    (b"\x28\xb5\x2f\xfd", "a zstd archive"),
    (b"\x80\x02", "a Python pickle"),
    (b"lmgg", "a GGML file, the format before GGUF"),
    (b"fmgg", "a GGML file, the format before GGUF"),
    (b"tjgg", "a GGML file, the format before GGUF"),
    (b"algg", "a GGML adapter, the format before GGUF"),
    (b"{", "a JSON file"),
    (b"\0" * 16, "an unfinished download: it starts with zeros"),
)


def seems(start: bytes) -> str:
    """What else the file seems to be, for the message; "" when nothing known fits."""
    if start[8:10] == b'{"':
        return "; it seems to be a safetensors file"
    text = start.lstrip(b"\xef\xbb\xbf \t\r\n")
    for opening, name in _OTHER_FORMATS:
        if start.startswith(opening) or text.lower().startswith(opening):
            return f"; it seems to be {name}"
    return ""
