"""Which models a repository's files are, and which of them is meant."""

import pytest

from quant.catalogue import HubSource
from quant.errors import ModelNotFoundError
from quant.hub_files import HubFile, HubModel, choose_model, models_of, names_exactly, quantisation_of

MIB = 1 << 20

QUANTISATIONS = {
    "Qwen3-8B-Q4_K_M.gguf": "Q4_K_M",
    "qwen2.5-0.5b-instruct-q4_k_m.gguf": "Q4_K_M",
    "Llama-3.1-8B.IQ2_XXS.gguf": "IQ2_XXS",
    "Qwen3-8B-UD-Q4_K_XL.gguf": "UD-Q4_K_XL",
    "UD-IQ1_S/DeepSeek-R1-UD-IQ1_S-00001-of-00003.gguf": "UD-IQ1_S",
    "BF16/model-00001-of-00002.gguf": "BF16",
    "gpt-oss-20b-mxfp4.gguf": "MXFP4",
    "model-MXFP4_MOE.gguf": "MXFP4_MOE",
    "model.fp16.gguf": "F16",
    "model-f32.gguf": "F32",
    "model-IQ4_NL.gguf": "IQ4_NL",
    "model-Q4_0_4_8.gguf": "Q4_0_4_8",
    "model-TQ1_0.gguf": "TQ1_0",
    "Q8_0-finetune-of-something.Q5_K_S.gguf": "Q5_K_S",
    "Qwen3-8B.gguf": "",
    "llama-2-7b.gguf": "",
}

SOURCE = HubSource("owner/repo")


def file(name: str, size_mib: int = 1) -> HubFile:
    return HubFile(name, size_mib * MIB, "d" * 64)


def wanting(wanted: str) -> HubSource:
    return HubSource("owner/repo", "main", wanted)


@pytest.mark.parametrize(("name", "quantisation"), QUANTISATIONS.items())
def test_the_quantisation_is_in_the_name(name: str, quantisation: str) -> None:
    assert quantisation_of(name) == quantisation


def test_shards_are_one_model_and_what_is_no_model_is_left_out() -> None:
    big = tuple(file(f"big/m-Q8_0-{number:05}-of-00003.gguf", 4) for number in (1, 2, 3))
    files = (
        *reversed(big),
        file("README.md"),
        file("mmproj-m-F16.gguf"),
        file("m-imatrix.gguf"),
        file("../escape-Q4_0.gguf"),
        file("m-Q4_0.gguf", 3),
        file("half-Q2_K-00002-of-00002.gguf"),
    )
    assert models_of(files) == (
        HubModel("Q2_K", (file("half-Q2_K-00002-of-00002.gguf"),), missing=1),
        HubModel("Q4_0", (file("m-Q4_0.gguf", 3),)),
        HubModel("Q8_0", big),
    )


def test_shards_that_cannot_be_are_left_out_and_many_are_only_counted() -> None:
    names = ("m-Q8_0-00000-of-00002.gguf", "m-Q8_0-00002-of-00002.gguf", "m-Q8_0-00003-of-00002.gguf")
    assert models_of((*map(file, names), file("m-Q4_0-00001-of-00000.gguf"))) == (
        HubModel("Q8_0", (file(names[1]),), missing=1),
    )
    many = models_of(file(f"a{number}-00001-of-99999.gguf") for number in range(5000))
    assert {model.missing for model in many} == {99_998}


def test_what_was_made_with_an_importance_matrix_is_a_model_and_the_matrix_is_none() -> None:
    models = ("Llama-3-8B-imatrix-Q4_K_M.gguf", "m.imatrix.IQ2_M.gguf")
    others = ("m-imatrix.gguf", "imatrix_m.gguf", "m-Q4_K_M.imatrix.gguf", "imatrix-Q4_K_M.gguf", "m-imatrix-wiki.gguf")
    assert {model.name for model in models_of(map(file, (*models, *others)))} == set(models)


def test_a_quantisation_is_named_in_any_case_by_its_file_or_without_its_prefix() -> None:
    models = models_of((file("sub/m-Q4_K_M.gguf"), file("m-UD-Q2_K_XL.gguf"), file("m-Q8_0.gguf")))
    for wanted, name in {
        "q8_0": "m-Q8_0.gguf",
        "sub/m-Q4_K_M.gguf": "sub/m-Q4_K_M.gguf",
        "m-q4_k_m.gguf": "sub/m-Q4_K_M.gguf",
        "Q2_K_XL": "m-UD-Q2_K_XL.gguf",
    }.items():
        choice = choose_model(models, wanting(wanted))
        assert (choice.model.name, choice.remark) == (name, "")


def test_a_name_is_exact_if_it_says_the_whole_quantisation_or_a_file() -> None:
    (model,) = models_of((file("sub/m-UD-Q2_K.gguf"),))
    exact = ("ud-q2_k", "UD-Q2_K", "sub/m-UD-Q2_K.gguf", "m-ud-q2_k.gguf")
    assert [name for name in (*exact, "Q2_K", "", "Q8_0", "m.gguf") if names_exactly(name, model)] == list(exact)
    (model,) = models_of((file("m.gguf"),))
    assert not names_exactly("", model)


@pytest.mark.parametrize(
    ("names", "taken"),
    [
        (("m-Q8_0.gguf", "m-Q4_K_M.gguf", "m-UD-Q4_K_XL.gguf", "m-F16.gguf"), "m-Q4_K_M.gguf"),
        (("m-Q8_0.gguf", "m-F16.gguf", "m-Q2_K.gguf"), "m-Q8_0.gguf"),
        (("m-F32.gguf", "m-F16.gguf"), "m-F16.gguf"),
        (("m-Q4_K_M-00001-of-00002.gguf", "m-Q5_K_M.gguf"), "m-Q5_K_M.gguf"),
    ],
)
def test_where_none_is_asked_for_a_usual_one_is_taken(names: tuple[str, ...], taken: str) -> None:
    sizes = {"Q2_K": 2, "Q4_K_M": 4, "UD-Q4_K_XL": 4, "Q5_K_M": 5, "Q8_0": 8, "F16": 16, "F32": 32}
    models = models_of(file(name, sizes[quantisation_of(name)]) for name in names)
    assert choose_model(models, SOURCE).model.name == taken


def test_the_choice_is_said_with_what_else_there_is() -> None:
    choice = choose_model(models_of((file("m-Q8_0.gguf", 8), file("m-Q4_K_M.gguf", 4))), SOURCE)
    assert choice.remark == "taking Q4_K_M (4.0 MiB) of 2: Q4_K_M (4.0 MiB), Q8_0 (8.0 MiB)"


def test_the_only_model_needs_no_words() -> None:
    assert choose_model(models_of((file("model.gguf"),)), SOURCE).remark == ""


REFUSED = {
    "none": (
        (),
        "",
        "hf:owner/repo: the repository has no GGUF models",
        "a model's GGUF files are often in a repository",
    ),
    "unknown": (
        ("m-Q8_0.gguf", "m-Q4_K_M.gguf"),
        "Q5_K_M",
        "hf:owner/repo:Q5_K_M: the repository has no Q5_K_M",
        "choose one of Q4_K_M (1.0 MiB), Q8_0 (1.0 MiB)",
    ),
    "several": (
        ("a-Q8_0.gguf", "b-Q8_0.gguf"),
        "Q8_0",
        "hf:owner/repo:Q8_0 can be any of 2 models",
        "choose one of hf:owner/repo:a-Q8_0.gguf (1.0 MiB), hf:owner/repo:b-Q8_0.gguf (1.0 MiB)",
    ),
    "several of the default": (
        ("a-Q8_0.gguf", "b-Q8_0.gguf"),
        "",
        "hf:owner/repo can be any of 2 models",
        "choose one of hf:owner/repo:a-Q8_0.gguf (1.0 MiB), hf:owner/repo:b-Q8_0.gguf (1.0 MiB)",
    ),
    "half": (
        ("m-Q8_0-00001-of-00003.gguf",),
        "Q8_0",
        "hf:owner/repo:Q8_0: the repository has 1 of 3 shards of m-Q8_0-00001-of-00003.gguf",
        "choose another repository, or wait until its owner has sent the rest",
    ),
}


@pytest.mark.parametrize(("names", "wanted", "message", "hint"), REFUSED.values(), ids=REFUSED)
def test_what_is_not_one_model_is_an_error_with_the_choices(
    names: tuple[str, ...], wanted: str, message: str, hint: str
) -> None:
    with pytest.raises(ModelNotFoundError) as caught:
        choose_model(models_of(map(file, names)), wanting(wanted))
    assert str(caught.value) == message
    assert caught.value.hint.startswith(hint)
