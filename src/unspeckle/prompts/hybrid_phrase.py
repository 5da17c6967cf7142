"""The "words" method of hybrid(frog, rabbit): "a frog-rabbit hybrid", as the captions of `make-corpus emoji` say it.

Those captions never name a hybrid without a determiner, and a model that was trained on them does not draw one without.
So the phrase gets the same article whatever the prompt has: "hybrid(frog, rabbit)", "the hybrid(a frog, a rabbit)" and
"a hybrid(frog, rabbit)" are all "a frog-rabbit hybrid". Other determiners stay, as in "two hybrid(frog, rabbit)".
"""

import re
from typing import NamedTuple

from unspeckle.corpus.english import indefinite_article


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


_ARTICLES = _words("a an the")
_DETERMINERS = _ARTICLES | _words(
    "one two three four five six seven eight nine ten this that these those my your his her its our their some any no "
    "each every another both several many few all half"
)
# Words after which a new noun phrase starts
_BEFORE_A_PHRASE = _words(
    "and or but of in on at to by with without for from as like into onto over under above below beneath behind "
    "between near around beside inside outside through across along against is are wearing holding riding"
)
_WORD = re.compile(r"[^\W_][\w'’-]*|[^\s\w]|\n")  # a word, a punctuation mark, or the end of a line


class ArticleEdit(NamedTuple):
    """Replace text[start:end], of the text before a hybrid's phrase, by an article. start is the end of that text where
    the article stands directly before the phrase."""

    start: int
    end: int
    article: str  # with a space where one is needed


def article_edit(before: str, phrase: str) -> ArticleEdit | None:
    """The change that gives a hybrid's phrase its article; None where it has another determiner.

    before: the text up to the phrase, such as "the " or "two big ". phrase: without an article. An article directly
    before the phrase is replaced; where the noun phrase has no determiner, an article is inserted at its start."""
    if (noun := re.search(r"\w.*", phrase)) is None:
        return None
    if found := re.search(r"(?<![\w'’-])(a|an|the)(?=\s+\Z)", before, re.IGNORECASE):
        article = indefinite_article(noun[0])
        return ArticleEdit(*found.span(), article.capitalize() if found[0][0].isupper() else article)
    start = len(before)  # of the noun phrase: back over its adjectives
    for word in reversed(list(_WORD.finditer(before))):
        if word[0].lower() in _DETERMINERS or word[0].isdecimal():
            return None
        if word[0].lower() in _BEFORE_A_PHRASE or not word[0][0].isalnum():
            break
        start = word.start()
    return ArticleEdit(start, start, f"{indefinite_article(before[start:] + noun[0])} ")


def without_article(text: str) -> str:
    """The text without "a", "an" or "the" at its start."""
    article, _, noun = text.partition(" ")
    return noun if article.lower() in _ARTICLES and noun.strip() else text
