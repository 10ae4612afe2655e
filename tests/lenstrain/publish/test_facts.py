import pytest

from lensprep.errors import ConfigError
from lenstrain.publish.cards import licence
from lenstrain.publish.facts import About, Party
from lenstrain.publish.fit import check_about


@pytest.mark.parametrize(
    ("text", "name", "url", "is_person"),
    [
        ("Lovelace, Ada <0000-0002-1825-0097>", "Ada Lovelace",
         "https://orcid.org/0000-0002-1825-0097", True),
        ("Lovelace, Ada", "Ada Lovelace", "", True),
        ("Ada <https://orcid.org/0000-0002-1825-009X>", "Ada",
         "https://orcid.org/0000-0002-1825-009X", True),
        ("The lens group <https://example.org>", "The lens group", "https://example.org", False),
        ("van der Berg, Jan Piet", "Jan Piet van der Berg", "", True),
    ],
)  # fmt: skip
def test_authors_are_read_with_and_without_an_orcid(text, name, url, is_person):
    (found,) = About(authors=(text,)).people
    assert (found.name, found.url, found.is_person) == (name, url, is_person)


@pytest.mark.parametrize("text", ["", "<0000-0002-1825-0097>", "Ada <0000>", "Ada <ada> x"])
def test_a_name_that_cannot_be_read_is_refused(text):
    with pytest.raises(ConfigError):
        check_about(About(authors=(text,)))


def test_addresses_and_orcids_are_looked_at():
    check_about(About(url="https://doi.org/10.5281/zenodo.1", authors=("A <0000-0002-1694-233X>",)))
    for about, match in (
        (About(url="notaurl"), "url: 'notaurl' is no address"),
        (About(data_url="s3://bucket/a"), "data_url: "),
        (About(authors=("Lovelace, Ada <0000-0002-1825-0098>",)), "0000-0002-1825-0098 is none"),
    ):
        with pytest.raises(ConfigError, match=match):
            check_about(about)


def test_a_publisher_keeps_its_comma_and_has_an_address():
    assert Party.parse("Physics, MIT").name == "Physics, MIT"
    assert Party.parse("  Zenodo <https://zenodo.org>  ") == (
        "Zenodo",
        "https://zenodo.org",
        "",
        "",
    )


@pytest.mark.parametrize("name", ["license", "data_license"])
def test_only_licences_of_spdx_are_taken(name):
    check_about(About(**{name: "CC-BY-4.0"}))
    for text in ("cc-by-4.0", "free", "CC-BY-4.0 or so", "CC BY 4.0"):
        with pytest.raises(ConfigError, match=f"{name}: "):
            check_about(About(**{name: text}))


def test_the_licence_says_what_holds_for_the_stamps():
    text = licence(About(license="CC-BY-4.0", data_license="CC0-1.0"))
    assert "dataset it was drawn from): CC0-1.0." in text
    assert text.count("https://spdx.org/licenses/") == 2
    assert "nobody may use" in licence(About())
