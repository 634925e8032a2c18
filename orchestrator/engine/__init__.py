"""The pinned llama.cpp: fetching its source, building, checking, installing it on hosts."""
