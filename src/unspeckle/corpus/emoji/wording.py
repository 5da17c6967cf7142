"""Captions made from names: a folder's or a file's, with the right article."""

import re
import unicodedata

MAX_CAPTION_LENGTH = 10_000  # characters of a caption: no text encoder reads so far
DEFAULT_TEMPLATE = "a photo of a {name}"
_GENERIC_FOLDER = re.compile(
    r"(?:image|picture|photo|file|pic|img)s?|data(?:set)?|raw|all|jpe?g|png|train(?:ing)?|test|val(?:id(?:ation)?)?",
    re.IGNORECASE,
)
_SINGULAR_S = frozenset(["lens", "gas", "atlas", "canvas", "pancreas", "christmas", "texas", "series", "species"])


def clean_caption(text: str) -> str:
    """One line of text: white space joined, control characters and half surrogates out, Unicode composed (NFC). Of more
    than MOST characters the first."""
    text = text[: 4 * MAX_CAPTION_LENGTH]
    valid_text = text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    printable = "".join(c for c in valid_text if c.isspace() or unicodedata.category(c) != "Cc")
    return unicodedata.normalize("NFC", " ".join(printable.split()))[:MAX_CAPTION_LENGTH].rstrip()


def words_from_name(name: str) -> str:
    """A name as words: `african_elephant`, `004.laysan-albatross` -> `african elephant`, `laysan albatross`.

    The dash after a single letter stays (`t-shirt`, `x-ray`). Empty where nothing but digits and signs is left.
    """
    name = re.sub(r"^\d+[._\- ]+(?=\D)", "", clean_caption(name))
    name = re.sub(r"(?<![^\W_])([^\W\d_])-(?=[^\W\d_]{2})", "\\1\0", name)
    words = " ".join(re.sub(r"[_\-]+", " ", name).split()).replace("\0", "-")
    return words if any(c.isalpha() for c in words) else ""


def class_from_folders(path: str) -> str:
    """The class of a picture by its folders: the innermost one that is a name and neither a number nor `images`."""
    for folder in reversed(path.split("/")[:-1]):
        words = words_from_name(folder)
        if words and not _GENERIC_FOLDER.fullmatch(words):
            return words
    return ""


def words_from_file_name(path: str) -> str:
    """A file's name as words, without suffix and running number: `cats/red_cat (3).jpg` -> `red cat`."""
    stem = path.rsplit("/", 1)[-1].rsplit(".", 1)[0]
    return words_from_name(re.sub(r"[\s_\-.]*(\(\d+\)|(?<=[\s_\-.])\d+)$", "", stem.strip()))


def fill_template(template: str, name: str) -> str:
    """Put `name` into `template`; an article right before `{name}` becomes a, an or nothing (`shoes`)."""

    def replace_article(match: re.Match[str]) -> str:
        article = _article_for(name)
        if match[1][0].isupper():
            article = article.capitalize()
        return f"{article} {name}" if article else name

    filled = re.sub(r"\b([Aa]n?) \{name\}", replace_article, template)
    return clean_caption(filled.replace("{name}", name))


def _article_for(name: str) -> str:
    last_word = name.split()[-1].lower()
    if last_word.endswith("s") and not last_word.endswith(("ss", "us", "is")) and last_word not in _SINGULAR_S:
        return ""
    first_word = re.split(r"[\s\-]", name)[0]
    if len(first_word) == 1 or (first_word.isupper() and len(first_word) <= 4):  # spelt out: an x-ray, an SUV, a UFO
        return "an" if first_word[0].lower() in "aefhilmnorsx" else "a"
    lower_word = first_word.lower()
    if re.match(r"(?:hour|heir|honest|honou?r)", lower_word):
        return "an"
    if re.match(r"(?:uni(?!n|m)|us[aeiu]|ut[ei]|eu|ewe|one|once|ukulele|ura)", lower_word):
        return "a"
    return "an" if lower_word[0] in "aeiou" else "a"
