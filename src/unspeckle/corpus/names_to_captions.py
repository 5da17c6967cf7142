"""Captions from the names of files and folders, with the right article."""

import re
import unicodedata

from unspeckle.corpus.english import indefinite_article, is_plural

MAX_CAPTION_LENGTH = 10_000
"""Characters of a caption; no text encoder reads that far."""
DEFAULT_TEMPLATE = "a photo of a {name}"

_GENERIC_FOLDER = re.compile(
    r"(?:image|picture|photo|file|pic|img)s?|data(?:set)?|raw|all|jpe?g|png|train(?:ing)?|test|val(?:id(?:ation)?)?",
    re.IGNORECASE,
)


def clean_caption(text: str) -> str:
    """The text as one line of at most MAX_CAPTION_LENGTH characters.

    White space is joined, control characters are removed, unpaired surrogates replaced, Unicode composed (NFC).
    """
    text = text[: 4 * MAX_CAPTION_LENGTH]
    valid_text = text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    printable = "".join(c for c in valid_text if c.isspace() or unicodedata.category(c) != "Cc")
    return unicodedata.normalize("NFC", " ".join(printable.split()))[:MAX_CAPTION_LENGTH].rstrip()


def words_from_name(name: str) -> str:
    """A name as words: `african_elephant` becomes `african elephant`, `004.laysan-albatross` `laysan albatross`.

    The hyphen after a single letter is kept (`t-shirt`, `x-ray`). The result is empty if it would contain no letter.
    """
    name = re.sub(r"^\d+[._\- ]+(?=\D)", "", clean_caption(name))
    name = re.sub(r"(?<![^\W_])([^\W\d_])-(?=[^\W\d_]{2})", "\\1\0", name)
    words = " ".join(re.sub(r"[_\-]+", " ", name).split()).replace("\0", "-")
    return words if any(c.isalpha() for c in words) else ""


def class_from_folders(path: str) -> str:
    """The class of an image: the words of its innermost folder that is neither a number nor a word like `images`."""
    for folder in reversed(path.split("/")[:-1]):
        words = words_from_name(folder)
        if words and not _GENERIC_FOLDER.fullmatch(words):
            return words
    return ""


def words_from_file_name(path: str) -> str:
    """A file's name as words, without suffix and running number: `cats/red_cat (3).jpg` becomes `red cat`."""
    stem = path.rsplit("/", 1)[-1].rsplit(".", 1)[0]
    return words_from_name(re.sub(r"[\s_\-.]*(\(\d+\)|(?<=[\s_\-.])\d+)$", "", stem.strip()))


def fill_template(template: str, name: str) -> str:
    """Put `name` in place of `{name}`. An article right before it becomes a, an or, before a plural, nothing."""

    def replace_article(match: re.Match[str]) -> str:
        if is_plural(name):
            return name
        article = indefinite_article(name)
        return f"{article.capitalize() if match[1][0].isupper() else article} {name}"

    filled = re.sub(r"\b([Aa]n?) \{name\}", replace_article, template)
    return clean_caption(filled.replace("{name}", name))
