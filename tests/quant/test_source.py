"""What a model may be called, and what cannot be a name."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from quant.catalogue import CATALOGUE, SMOLLM2_135M, HubSource
from quant.errors import ModelNameError
from quant.source import HUB_FORM, PathSource, Source, UrlSource, display_name, is_safe_path, read_source, shard_names

DIGEST = "ab" * 32

SOURCES: dict[str, Source] = {
    "smollm2-135m": SMOLLM2_135M,
    "hf:Qwen/Qwen3-8B-GGUF": HubSource("Qwen/Qwen3-8B-GGUF"),
    "hf:Qwen/Qwen3-8B-GGUF:Q4_K_M": HubSource("Qwen/Qwen3-8B-GGUF", "main", "Q4_K_M"),
    "hf:a/b:UD-Q4_K_XL": HubSource("a/b", "main", "UD-Q4_K_XL"),
    "hf:a/b@refs/pr/1:q8_0": HubSource("a/b", "refs/pr/1", "q8_0"),
    "hf:a/b:sub/some file.gguf": HubSource("a/b", "main", "sub/some file.gguf"),
    "https://huggingface.co/a/b": HubSource("a/b"),
    "https://huggingface.co/a/b/blob/main/sub/m.gguf?download=true": HubSource("a/b", "main", "sub/m.gguf"),
    "https://hf.co/a/b/resolve/v1/m.gguf": HubSource("a/b", "v1", "m.gguf"),
    "https://huggingface.co/a/b/tree/main": HubSource("a/b"),
    "https://huggingface.co/a/b/tree/v1/": HubSource("a/b", "v1"),
    "https://huggingface.co/a/b/blob/refs%2Fpr%2F1/sub/m%20n.gguf": HubSource("a/b", "refs/pr/1", "sub/m n.gguf"),
    f"https://huggingface.co/a/b/resolve/main/m.gguf#sha256={DIGEST.upper()}": HubSource(
        "a/b", "main", "m.gguf", DIGEST
    ),
    f"https://huggingface.co/a/b#sha256={DIGEST}": HubSource("a/b", sha256=DIGEST),
    "https://example.org/m.gguf": UrlSource("https://example.org/m.gguf"),
    f"HTTP://[::1]:8/x/m%20n.GGUF?key=1#sha256={DIGEST.upper()}": UrlSource(
        "http://[::1]:8/x/m%20n.GGUF?key=1", DIGEST
    ),
    "m.gguf": PathSource("m.gguf"),
    "/models/my model.gguf": PathSource("/models/my model.gguf"),
    "../m.gguf": PathSource("../m.gguf"),
    "llama": PathSource("llama"),
}

BAD_NAMES = {
    "": "'' is no name of a model",
    "a\nb.gguf": "'a\\nb.gguf' has characters that cannot be shown",
    "hf:": "hf: has no owner and repository",
    "hf:owner": "hf:owner has no owner and repository",
    "hf:owner/": "hf:owner/ has no owner and repository",
    "hf:/repo": "hf:/repo has no owner and repository",
    "hf:owner/re po": "hf:owner/re po: 're po' cannot be a name on the hub",
    "hf:owner/a/b": "hf:owner/a/b: 'a/b' cannot be a name on the hub",
    "hf:../..": "hf:../..: '..' cannot be a name on the hub",
    "hf:owner/a--b": "hf:owner/a--b: 'a--b' cannot be a name on the hub",
    "hf:owner/-b": "hf:owner/-b: '-b' cannot be a name on the hub",
    "hf:owner/b@": "hf:owner/b@: '' is no revision",
    "hf:owner/b@../x": "hf:owner/b@../x: '../x' is no revision",
    "hf:owner/b:": "hf:owner/b:: '' is neither a quantisation nor a .gguf file",
    "hf:owner/b:Q4 K": "hf:owner/b:Q4 K: 'Q4 K' is neither a quantisation nor a .gguf file",
    "hf:owner/b:../../m.gguf": "hf:owner/b:../../m.gguf: '../../m.gguf' is neither a quantisation nor a .gguf file",
    "hf:owner/b:/etc/m.gguf": "hf:owner/b:/etc/m.gguf: '/etc/m.gguf' is neither a quantisation nor a .gguf file",
    "ftp://example.org/m.gguf": "ftp://example.org/m.gguf: ftp:// is not understood",
    "https:///m.gguf": "https:///m.gguf is no link",
    "https://example.org:x/m.gguf": (
        "https://example.org:x/m.gguf is no link: Port could not be cast to integer value as 'x'"
    ),
    "https://me:secret@example.org/m.gguf": "the link to example.org holds a user name or a password",
    "https://example.org/model": "https://example.org/model does not end in .gguf",
    "https://example.org/..%2Fm.gguf": "https://example.org/..%2Fm.gguf does not end in .gguf",
    "https://example.org/m.gguf#md5=1": "https://example.org/m.gguf#md5=1: 'md5=1' is not understood",
    "https://huggingface.co/a": "https://huggingface.co/a is no page of a model",
    "https://huggingface.co/a/b#usage": "https://huggingface.co/a/b#usage: 'usage' is not understood",
    f"https://huggingface.co/a/b/resolve/main/m.gguf#sha256={DIGEST[1:]}": (
        f"https://huggingface.co/a/b/resolve/main/m.gguf#sha256={DIGEST[1:]}: 'sha256={DIGEST[1:]}' is not understood"
    ),
    "https://huggingface.co/a/b/tree/main/sub": "https://huggingface.co/a/b/tree/main/sub is no page of a model",
    "https://example.org/m-00001-of-00000.gguf": "https://example.org/m-00001-of-00000.gguf: there is no shard 1 of 0",
    "https://example.org/m-00000-of-00002.gguf": "https://example.org/m-00000-of-00002.gguf: there is no shard 0 of 2",
    "https://a.org/m%2D00005-of-00003.gguf": "https://a.org/m%2D00005-of-00003.gguf: there is no shard 5 of 3",
    "https://example.org/m-00001-of-99999.gguf": (
        "https://example.org/m-00001-of-99999.gguf is one of 99,999 shards; 1,000 can be fetched by their link"
    ),
    "https://example.org/m-00002-of-00003.gguf": (
        "https://example.org/m-00002-of-00003.gguf is a shard in the middle; a model is named by its first one"
    ),
}


@pytest.mark.parametrize(("name", "source"), SOURCES.items(), ids=SOURCES.keys())
def test_a_name_says_where_the_model_comes_from(name: str, source: Source) -> None:
    assert read_source(name) == source


@pytest.mark.parametrize(("name", "message"), BAD_NAMES.items(), ids=map(repr, BAD_NAMES))
def test_what_cannot_be_a_name_gets_the_next_move(name: str, message: str) -> None:
    with pytest.raises(ModelNameError) as caught:
        read_source(name)
    assert str(caught.value) == message
    assert caught.value.hint


def test_half_a_name_of_a_repository_shows_the_whole_form() -> None:
    with pytest.raises(ModelNameError) as caught:
        read_source("hf:owner")
    assert caught.value.hint == HUB_FORM


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("smollm2-135m", "smollm2-135m"),
        ("hf:a/b-GGUF", "b-GGUF"),
        ("hf:a/b-GGUF@v1:Q8_0", "b-GGUF:Q8_0"),
        ("hf:a/b-GGUF:sub/m.gguf", "b-GGUF:m.gguf"),
        (f"https://example.org/x/m.gguf?key=secret#sha256={DIGEST}", "m.gguf"),
        ("/models/m.gguf", "m.gguf"),
    ],
)
def test_what_a_model_is_called_is_short_and_tells_no_secret(name: str, shown: str) -> None:
    assert display_name(name) == shown


def test_shards_are_named_by_the_first() -> None:
    names = ("m-00001-of-00003.gguf", "m-00002-of-00003.gguf", "m-00003-of-00003.gguf")
    assert shard_names(names[0]) == names
    assert shard_names("m.gguf") == ("m.gguf",)


def test_names_of_the_catalogue_are_themselves_and_its_sources_are_what_a_user_may_write() -> None:
    assert {name: entry.name for name, entry in CATALOGUE.items()} == {name: name for name in CATALOGUE}
    for entry in CATALOGUE.values():
        if isinstance(entry.source, HubSource):
            assert read_source(entry.source.text) == entry.source
            assert len(entry.source.revision) == 40
            assert len(entry.sha256) == 64
        assert entry.suggested_context <= entry.context_length


def test_the_catalogue_lists_the_smallest_first() -> None:
    sizes = [entry.size_bytes for entry in CATALOGUE.values()]
    assert sizes == sorted(sizes)


BEGINNINGS = ("hf:", "hf:a", "hf:a/b", "hf:a/b@", "hf:a/b:", "https://", "http://[")
TEXT = st.text(max_size=12)


@given(
    st.one_of(
        TEXT,
        st.builds("{}{}".format, st.sampled_from(BEGINNINGS), TEXT),
        st.builds("https://{}/{}.gguf{}".format, TEXT, TEXT, TEXT),
        st.from_regex(r"https?://huggingface\.co(/[a-z%.-]{0,5}){0,6}"),
    )
)
def test_whatever_is_written_is_a_source_or_a_clear_error(name: str) -> None:
    try:
        source = read_source(name)
    except ModelNameError:
        return
    if isinstance(source, HubSource):
        assert ".." not in source.repository
        assert is_safe_path(source.revision)
        assert not source.wanted or is_safe_path(source.wanted)
    if isinstance(source, UrlSource):
        assert is_safe_path(source.file_name)
        assert "/" not in source.file_name
    assert "\n" not in display_name(name)
