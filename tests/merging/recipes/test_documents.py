"""YAML read safely: plain values, small and shallow files, and messages with a place."""

import pytest

from adapterhub.merging.errors import RecipeFileError, RecipeTooLarge
from adapterhub.merging.recipes.documents import read_document


def test_a_document_is_plain_values_in_the_order_of_the_text() -> None:
    text = "b: [1, 2.5, true, null, x]\na: {c: 1e-3, d: 2024-01-02}\ne: &one [0.2]\nf: *one\n"
    found = read_document(text)
    assert list(found) == ["b", "a", "e", "f"]
    assert found == {
        "b": [1, 2.5, True, None, "x"],
        "a": {"c": "1e-3", "d": "2024-01-02"},
        "e": [0.2],
        "f": [0.2],
    }


WRONG = {
    "": "holds nothing; expected keys",
    "- 1": "holds a list; expected keys",
    "a: 1\n---\nb: 2": "holds 2 documents, as mergekit-multi reads them",
    "a: 1\na: 2": "a is given twice, in line 2, column 1",
    "a: {b: 1, b: 2}": "b is given twice, in line 1",
    "1: 2": "a key is plain text",
    "? [1]\n: 2": "a key is plain text",
    "a: {<<: {b: 1}}": "a key is plain text",
    "a: !!python/object/apply:os.system [ls]": "could not determine a constructor for the tag",
    "a: !!binary aGk=": "could not determine a constructor for the tag",
    "a: 'x": "found unexpected end of stream",
    "base_model: x\n  - model: a": "mapping values are not allowed here, in line 2, column 10",
    "a: \x00": "special characters are not allowed",
    "a: &x [*x]": "the alias 'x' stands for what has aliases itself",
    "a: &x [1]\nb: &y [*x, *x]\nc: [*y, *y]": "the alias 'y' stands for what has aliases itself",
}


@pytest.mark.parametrize("text", WRONG)
def test_what_is_no_recipe_file_is_refused_with_a_place(text: str) -> None:
    with pytest.raises(RecipeFileError) as caught:
        read_document(text)
    assert WRONG[text] in str(caught.value)
    assert str(caught.value).startswith("recipe file: ")


@pytest.mark.parametrize(
    "text",
    [
        "a: " + "x" * 140_000,
        "a: " + "[" * 30_000,
        "a: " + "{b: " * 30,
        "a: [" + "1, " * 20_001 + "1]",
        "a: &x 1\nb: [" + "*x, " * 65 + "1]",
    ],
    ids=["characters", "lists", "mappings", "parts", "aliases"],
)
def test_a_file_past_a_limit_is_refused(text: str) -> None:
    with pytest.raises(RecipeTooLarge):
        read_document(text)
