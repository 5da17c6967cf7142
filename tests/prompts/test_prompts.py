"""The prompt language: what prompts mean, and that no text breaks the parser."""

import contextlib
import random
import time

import pytest
import torch

import unspeckle
from tiny_models import random_model
from unspeckle.errors import InputError
from unspeckle.generation.conditioning import encode_blends
from unspeckle.output.png import max_pixel_difference
from unspeckle.prompts import HYBRID_METHODS, escape_prompt, parse_prompt, plain_text, predictions
from unspeckle.prompts.syntax_tree import (
    Alternation,
    Break,
    Emphasis,
    Hybrid,
    LoraTag,
    PlainText,
    Prompt,
    PromptEdit,
    Subprompt,
)

DOWN = 1 / 1.1


def tree(*nodes, weight=1.0, loras=()):
    return Prompt(
        (Subprompt(tuple(PlainText(node) if isinstance(node, str) else node for node in nodes), weight),), loras
    )


def text(words):
    return (PlainText(words),) if words else ()


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("", tree()),
        ("a frog on stilts, 12:30", tree("a frog on stilts, 12:30")),
        ("rock and roll, not jazz; a half-frog half-rabbit", tree("rock and roll, not jazz; a half-frog half-rabbit")),
        ("a :) b] c | d", tree("a :) b] c | d")),
        ("C:\\frogs \\(x\\) \\[y\\] \\\\ \\AND \\:", tree("C:\\frogs (x) [y] \\ AND :")),
        ("HANDS BRAND NOTE breaks", tree("HANDS BRAND NOTE breaks")),
        ("a (frog:1.3)", tree("a ", Emphasis(text("frog"), 1.3))),
        ("(frog: .5 )", tree(Emphasis(text("frog"), 0.5))),
        ("((frog))", tree(Emphasis((Emphasis(text("frog"), 1.1),), 1.1))),
        ("[frog] x", tree(Emphasis(text("frog"), DOWN), " x")),
        ("(the film: a frog)", tree(Emphasis(text("the film: a frog"), 1.1))),
        ("(a|b, c)", tree(Emphasis(text("a|b, c"), 1.1))),
        ("[a: b]", tree(Emphasis(text("a: b"), DOWN))),
        ("[frog:rabbit:0.4]", tree(PromptEdit(text("frog"), text("rabbit"), 0.4, False))),
        ("[frog:rabbit:12]", tree(PromptEdit(text("frog"), text("rabbit"), 12, True))),
        ("[frog:0.4]", tree(PromptEdit((), text("frog"), 0.4, False))),
        ("[frog::1.0]", tree(PromptEdit(text("frog"), (), 1.0, False))),
        ("[frog|red (rabbit)|]", tree(
            Alternation((text("frog"), (PlainText("red "), Emphasis(text("rabbit"), 1.1)), ())))),
        ("a BREAK b", tree("a", Break(), "b")),
        ("a hybrid(a frog, a rabbit) x", tree("a ", Hybrid(text("a frog"), text("a rabbit")), " x")),
        ("hybrid( frog ,rabbit, 0.3, switch)", tree(Hybrid(text("frog"), text("rabbit"), 0.3, "switch"))),
        ("hybrid(frog, rabbit, turns)", tree(Hybrid(text("frog"), text("rabbit"), 0.5, "turns"))),
        ("a hybrid (frog, rabbit)", tree("a hybrid ", Emphasis(text("frog, rabbit"), 1.1))),
        ("\\hybrid(frog)", tree("hybrid", Emphasis(text("frog"), 1.1))),
        ("a frog AND a hat :0.5", Prompt((Subprompt(text("a frog")), Subprompt(text("a hat"), 0.5)))),
        ("a:2 AND b NOT c:.5 AND NOT d", Prompt((
            Subprompt(text("a"), 2), Subprompt(text("b")), Subprompt(text("c"), -0.5), Subprompt(text("d"), -1)))),
        ("NOT a frog", tree("a frog", weight=-1)),
        ("a AND b: c", Prompt((Subprompt(text("a")), Subprompt(text("b: c"))))),
        ("a frog <lora:ink>", tree("a frog", loras=(LoraTag("ink"),))),
        ("<lora:ink:0.8> a frog", tree("a frog", loras=(LoraTag("ink", 0.8),))),
        ("a<lora:ink:-1e-1>  big <lora: my ink (v2, [x]) :2> frog ", tree(
            "a  big frog", loras=(LoraTag("ink", -0.1), LoraTag("my ink (v2, [x])", 2)))),
        ("<lora:ink:1.0>", tree(loras=(LoraTag("ink"),))),
        ("a AND b :.5 <lora:ink:.5>", Prompt(
            (Subprompt(text("a")), Subprompt(text("b"), 0.5)), (LoraTag("ink", 0.5),))),
        ("(a:1.2)<lora:x> NOT <lora:y>b", Prompt(
            (Subprompt((Emphasis(text("a"), 1.2),)), Subprompt(text("b"), -1)), (LoraTag("x"), LoraTag("y")))),
        ("frog<lora:x>, red<lora:x>hat<lora:x>hybrid(a, b)", tree(
            "frog, red hat ", Hybrid(text("a"), text("b")), loras=(LoraTag("x"),) * 3)),
        ("(a)<lora:x> frog", tree(Emphasis(text("a"), 1.1), " frog", loras=(LoraTag("x"),))),
        ("I <3 \\<lora:x> and <token> <Lora:x> < lora:x>", tree("I <3 <lora:x> and <token> <Lora:x> < lora:x>")),
    ],
)  # fmt: skip
def test_meaning(source, expected):
    assert parse_prompt(source) == expected
    assert parse_prompt(str(expected)) == expected


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("a (frog on stilts", 'prompt: unclosed "(" (a plain bracket is \\() at character 3: a >>>(frog on stilts'),
        ("a frog :( x", 'unclosed "("'),
        ("x [frog|rabbit", 'unclosed "[" (a plain bracket is \\[) at character 3: x >>>[frog|rabbit'),
        ("hybrid(frog, rabbit", 'unclosed "hybrid("'),
        ("hybrid(frog)", "a hybrid is hybrid(one, other)"),
        ("hybrid(frog, , 0.4)", "a hybrid is"),
        ("hybrid(frog, rabbit, 1.5)", "a share from 0 to 1"),
        ("hybrid(frog, rabbit, 0.5, magic)", "words, embeddings, guesses, switch, turns"),
        ("hybrid(a, b, 0.5, switch, more)", "a hybrid is"),
        ("(ratio 16:9)", "a weight from 0 to 5 (a plain colon is \\:)"),
        ("(frog:-1)", "a weight from 0 to 5"),
        ("[frog:rabbit:1.5]", "a share such as 0.4 or a whole step"),
        ("[frog:rabbit:-1]", "a switch is"),
        ("[a:b:c:0.4]", "a switch is"),
        ("(a AND b)", "AND inside a bracket; write it outside, or \\AND for the word at character 4: (a >>>AND b)"),
        ("a AND", "nothing to draw next to AND or NOT at character 3: a >>>AND"),
        ("AND a", "nothing to draw"),
        ("a AND AND b", "nothing to draw"),
        ("a NOT :2", "nothing to draw"),
        ("a AND b:30", "a weight up to 20"),
        ("a NOT b:-1", "after NOT above 0"),
        ("(" * 50 + ")" * 50, "brackets more than 40 deep at character 41: …((((((((((((((((((((((>>>((((((((("),
        (" AND ".join("abcdefghij"), "more than 8 parts at character 45: …D e AND f AND g AND h >>>AND i AND j"),
        ("hybrid(a, b) " * 5, "more than 4 hybrids at character 53"),
        ("a <lora:ink frog", 'unclosed "<lora:" (a plain one is \\<lora:) at character 3: a >>>'),
        ("a <lora:in\nk> frog", 'unclosed "<lora:"'),
        ("a (frog <lora:ink>:1.2)", "a LoRA inside a bracket; write it outside, as it counts for the whole drawing"),
        ("[a:b<lora:ink>:0.2]", "a LoRA inside a bracket"),
        ("a <lora:ink:strong>", "a LoRA is <lora:name> or <lora:name:strength>, with one strength up to 100"),
        ("a <lora:ink:1:0.5>", "with one strength"),
        ("a <lora:ink:nan>", "with one strength"),
        ("a <lora:ink:>", "with one strength"),
        ("a <lora: :1>", "a LoRA is"),
        ("a <lora:ink:-101>", "up to 100"),
        ("a <lora:../ink>", "that of its file, without folders at character 3: a >>><lora:../ink>"),
        ("a <lora:c\\ink>", "without folders"),
        ("a AND <lora:ink>", "nothing to draw next to AND or NOT"),
        ("<lora:ink> " * 17, "more than 16 LoRA at character 177"),
    ],
)
def test_what_cannot_be_parsed_is_shown_in_one_line(source, message):
    with pytest.raises(InputError) as caught:
        parse_prompt(source)
    assert message in str(caught.value) and str(caught.value).startswith("prompt: ") and "\n" not in str(caught.value)


def test_an_error_in_the_negative_prompt_names_it():
    with pytest.raises(InputError, match=r"^negative_prompt: unclosed"):
        parse_prompt("a\n(b", "negative_prompt")


def test_canonical_text():
    for source, canonical in [
        ("a frog (x|y) on  stilts: 3", "a frog (x|y) on  stilts: 3"),
        ("(frog:1.10)[a:0.50][:b:3]", "(frog)[a:0.5][b:3]"),
        ("(a: b)", "(a\\: b)"),
        ("a AND NOT b:1.0 AND c:0.5", "a NOT b AND c :0.5"),
        ("hybrid(a,b,0.5) hybrid(a,b,.25,switch)", "hybrid(a, b) hybrid(a, b, 0.25, switch)"),
        ("<lora:ink:1.00> a frog <lora:b:-5E-1> :3", "a frog :3 <lora:ink> <lora:b:-0.5>"),
        ("(\\<lora:x)", "(\\<lora\\:x)"),
        ("<lora:a:2.00> <lora:b:1E-320>", "<lora:a:2> <lora:b:1e-320>"),
    ]:
        assert str(parse_prompt(source)) == canonical


ALPHABET = [
    "(", ")", "[", "]", ":", "|", ",", "\\", " ", " ", "\n", "AND", "NOT", "BREAK", "hybrid(", "frog", "a", "é🐸", ".",
    "0.4", "1.3", "12", "-", "0", "(frog:1.3)", "[a|b]", "[a:b:0.5]", "hybrid(a, b)", "\\AND", "\\hybrid",
    "<", "lora", ">", "<lora:", "<lora:ink>", "<lora:a b:0.8>", "\\<lora:", "\\<lora",
]  # fmt: skip


def test_random_marks_are_refused_in_one_line_or_print_and_parse_the_same():
    rng, parsed = random.Random(0), 0
    for _ in range(3000):
        source = "".join(rng.choices(ALPHABET, k=rng.randrange(12)))
        try:
            found = parse_prompt(source)
        except InputError as e:
            assert "\n" not in str(e)
            continue
        parsed += 1
        printed = str(found)
        assert parse_prompt(printed) == found and str(parse_prompt(printed)) == printed, source
        for step in (0, 2):
            assert sum(1 for _ in predictions(found, step, 3, "words")) >= 1
    assert parsed > 1000


def test_any_characters_at_all():
    rng = random.Random(1)
    for _ in range(1000):
        source = "".join(
            chr(rng.choice([rng.randrange(32, 128), rng.randrange(0x2FFF)])) for _ in range(rng.randrange(20))
        )
        assert parse_prompt(escape_prompt(source)) == tree(*([source] if source else []))
        with contextlib.suppress(InputError):
            assert parse_prompt(str(parse_prompt(source))) == parse_prompt(source)


def test_parsing_takes_linear_time():

    def seconds(source):
        start = time.process_time()
        with contextlib.suppress(InputError):  # too many guesses
            predictions(parse_prompt(str(parse_prompt(source))), 0, 1, "words")
        return time.process_time() - start

    for one in ("frog (x:1.2) ", "[a|b]", "x:", "\\", "AND x ", "a ", "BREAK ", "<lora:", "<"):
        short, long = (min(seconds(one * (length // len(one))) for _ in range(3)) for length in (2_000, 16_000))
        assert long < 30 * short + 0.1, one


def test_spans_point_at_the_source():
    source = "a \\(big\\) (green [frog:rabbit:0.4]:1.3) AND hybrid(cat, dog)"
    first, second = parse_prompt(source).subprompts
    plain, weighted = first.content
    assert source[slice(*plain.span)] == "a \\(big\\) " and plain.text == "a (big) "
    assert source[slice(*weighted.span)] == "(green [frog:rabbit:0.4]:1.3)"
    assert source[slice(*weighted.content[1].span)] == "[frog:rabbit:0.4]"
    assert source[slice(*second.content[0].span)] == "hybrid(cat, dog)"
    assert source[slice(*second.span)].strip() == "AND hybrid(cat, dog)"
    source = "a <lora:ink:0.8> frog"
    assert source[slice(*parse_prompt(source).lora_tags[0].span)] == "<lora:ink:0.8>"


def test_plain_text_is_all_words():
    prompt = r"a (frog:1.3)s [cat:dog:0.4] [fox|pig] hybrid(lion, bear) AND \(hat\) :0.5 NOT x BREAK y"
    words = ["a", "frog", "s", "cat", "dog", "fox", "pig", "lion", "bear", "(hat)", "x", "y"]
    assert plain_text(parse_prompt(prompt)).split() == words


def captions(source, step=0, steps=10, hybrid="words"):
    """What is encoded at a step, without weights of words: {caption: its share of the prediction}."""
    return {
        " BREAK ".join("".join(run for run, _ in chunk) for chunk in caption): weight * share
        for weight, blend in predictions(parse_prompt(source), step, steps, hybrid)
        for share, caption in blend
    }


def test_switches_and_turns_at_their_steps():
    def when(source, steps=10):
        return "".join(next(iter(captions(source, step, steps)))[:1] or "-" for step in range(steps))

    assert when("[a:b:0.4]") == "aaaabbbbbb"
    assert when("[a:b:3]") == "aaabbbbbbb"
    assert when("[a:b:0.0]") == when("[a:b:0]") == "bbbbbbbbbb"
    assert when("[a:b:1.0]") == when("[a:b:10]") == when("[a:b:99]") == "aaaaaaaaaa"
    assert when("[a:b:1]") == "abbbbbbbbb"
    assert when("[a:0.5]") == "-----aaaaa" and when("[a::0.5]") == "aaaaa-----"
    assert when("[a|b|c]") == "abcabcabca"
    assert when("[[a|b]:c:0.4]") == "ababcccccc"
    assert when("[a:b:0.29]", 100) == "a" * 29 + "b" * 71
    assert when("hybrid(a, b, 0.3, switch)") == "aaaaaaabbb"
    assert when("hybrid(a, b, turns)") == "ababababab"
    assert when("hybrid(a, b, 0.25, turns)").count("b") == 2


def test_weights_multiply_and_brackets_separate_words():
    [(_, [(_, [chunk])])] = predictions(parse_prompt("a (big (red:0.5) frog:1.2) [hat]s (plain:1)ly"), 0, 1, "words")
    assert chunk == (
        ("a ", 1.0), ("big ", 1.2), ("red", 0.6), (" frog", 1.2), (" ", 1.0), ("hat", DOWN), (" s plain ly", 1.0),
    )  # fmt: skip


def test_break_separates_chunks_and_empty_ones_are_left_out():
    assert list(captions("a BREAK b BREAK BREAK")) == ["a BREAK b"]
    assert list(captions("BREAK")) == [""]
    assert list(captions("(a BREAK b:1.3)")) == ["a BREAK b"]


def test_hybrids_by_their_methods():
    assert captions("a hybrid(frog, a rabbit) on stilts") == {"a frog-rabbit hybrid on stilts": 1}
    both = {"a frog on stilts": 0.75, "a rabbit on stilts": 0.25}
    for method in ("embeddings", "guesses"):
        assert captions(f"a hybrid(frog, rabbit, 0.25, {method}) on stilts") == both
        assert captions("a hybrid(frog, rabbit, 0.25) on stilts", hybrid=method) == both
    assert len(predictions(parse_prompt("hybrid(a, b, guesses)"), 0, 1, "words")) == 2
    assert len(predictions(parse_prompt("hybrid(a, b, embeddings)"), 0, 1, "words")) == 1
    for method in HYBRID_METHODS:
        assert captions(f"hybrid(frog, rabbit, 0, {method})") == {"frog": 1}
        assert captions(f"hybrid(frog, rabbit, 1, {method})") == {"rabbit": 1}
    quarters = captions("(hybrid(a, hybrid(b, c, 0.5, guesses), 0.5, guesses) x:1.2) AND d :-2")
    assert quarters == {"a x": 0.5, "b x": 0.25, "c x": 0.25, "d": -2}


@pytest.mark.parametrize(
    ("source", "caption"),
    [
        ("hybrid(frog, rabbit)", "a frog-rabbit hybrid"),
        ("a hybrid(frog, rabbit)", "a frog-rabbit hybrid"),
        ("the hybrid(a frog, the rabbit)", "a frog-rabbit hybrid"),
        ("An hybrid(frog, rabbit)", "A frog-rabbit hybrid"),
        ("a hybrid(owl, frog)", "an owl-frog hybrid"),
        ("hybrid(an owl, a frog)", "an owl-frog hybrid"),
        ("two hybrid(frog, rabbit)", "two frog-rabbit hybrid"),
        ("3 hybrid(frog, rabbit)", "3 frog-rabbit hybrid"),
        ("my big hybrid(frog, rabbit)", "my big frog-rabbit hybrid"),
        ("a big hybrid(frog, rabbit)", "a big frog-rabbit hybrid"),
        ("orange hybrid(frog, rabbit) on stilts", "an orange frog-rabbit hybrid on stilts"),
        ("hybrid(green frog, rabbit)", "a green frog-rabbit hybrid"),
        ("a hat and hybrid(frog, rabbit)", "a hat and a frog-rabbit hybrid"),
        ("a picture of hybrid(frog, rabbit)", "a picture of a frog-rabbit hybrid"),
        ("red, hybrid(frog, rabbit)", "red, a frog-rabbit hybrid"),
        ("a hat behind hybrid(frog, rabbit)", "a hat behind a frog-rabbit hybrid"),
        ("hybrid(frog, rabbit), the hybrid(owl, bee)", "a frog-rabbit hybrid, an owl-bee hybrid"),
        ("x BREAK hybrid(frog, rabbit)", "x BREAK a frog-rabbit hybrid"),
        ("[a|hybrid(frog, rabbit)]", "a"),
        ("(hybrid(frog, rabbit):1.2)", "a frog-rabbit hybrid"),
        ("the (big hybrid(frog, rabbit):1.2)", "the big frog-rabbit hybrid"),
        ("hybrid((a frog:1.2), rabbit)", "a frog-rabbit hybrid"),
        ("hybrid(hybrid(owl, bee), the cat)", "an owl-bee hybrid-cat hybrid"),
        ("hybrid(-, -)", "a --- hybrid"),
    ],
)
def test_the_phrase_of_a_hybrid_has_one_article_whatever_is_written(source, caption):
    """The captions of `make-corpus emoji` have no hybrid without one, so models do not draw it without one."""
    assert captions(source) == {caption: 1}


def test_articles_of_hybrids_keep_their_weights():
    def runs(source):
        [(_, [(_, [chunk])])] = predictions(parse_prompt(source), 0, 1, "words")
        return chunk

    assert runs("the (hybrid(frog, rabbit):1.2)") == (("a ", 1.0), ("frog-rabbit hybrid", 1.2))
    assert runs("(hybrid(frog, rabbit):1.2)") == (("a frog-rabbit hybrid", 1.2),)
    assert runs("(the:1.3) hybrid(owl, bee)") == (("an", 1.3), (" owl-bee hybrid", 1.0))
    assert runs("(big:1.3) hybrid(owl, bee)") == (("a big", 1.3), (" owl-bee hybrid", 1.0))


def test_the_embedded_model_draws_a_hybrid_without_an_article():
    model = unspeckle.load()
    plain, with_article = (
        unspeckle.draw(model, prompt, seed=20, count=2, steps=4)
        for prompt in ("hybrid(frog, rabbit)", "a hybrid(frog, rabbit)")
    )
    assert [image.tobytes() for image in plain] == [image.tobytes() for image in with_article]
    rabbit = unspeckle.draw(model, "a rabbit", seed=20, steps=4)[0]
    assert max_pixel_difference(plain[0], rabbit) > 100


def test_a_weight_moves_embeddings_about_their_mean():
    """Token by token; neighboring words and the padding stay as they are."""
    model = random_model()
    source = "a blue rabbit left of a pizza"
    plain = encode(model, source)
    heavy = encode(model, "a (blue:1.5) rabbit left of a (pizza:0)")
    length = int(plain.mask.sum())
    mean = sum(plain.tokens[0, i] for i in range(length)) / length
    for place, (start, end) in enumerate(model.tokenizer.character_spans(source)):
        word = source[start:end].strip()
        weight = {"blue": 1.5, "pizza": 0.0}.get(word, 1.0) if word else 1.0
        inside = [1.5 if 2 <= end - 1 < 6 else 0.0 if end - 1 >= 24 else 1.0][0] if end else 1.0
        assert weight == inside or len(word) < 4  # a word may be several tokens
        torch.testing.assert_close(heavy.tokens[0, place], mean + inside * (plain.tokens[0, place] - mean))
    assert torch.equal(heavy.vector, plain.vector) and torch.equal(heavy.mask, plain.mask)
    assert torch.equal(encode(model, "a (blue:1) rabbit left of a pizza").tokens, plain.tokens)


def encode(model, source, hybrid="words", longer=()):
    """The Conditioning of a prompt in a drawing that has longer ones too."""
    blends = [predictions(parse_prompt(one), 0, 1, hybrid)[0][1] for one in (source, *longer)]
    with torch.no_grad():
        return encode_blends(model, blends)[blends[0]]


def test_chunks_are_encoded_alone_and_shorter_prompts_are_padded_by_masked_tokens():
    model = random_model()
    one, other = encode(model, "a blue rabbit"), encode(model, "(two:1.2) frogs")
    both = encode(model, "a blue rabbit BREAK (two:1.2) frogs")
    assert torch.equal(both.tokens, torch.cat([one.tokens, other.tokens], 1))
    assert torch.equal(both.mask, torch.cat([one.mask, other.mask], 1))
    torch.testing.assert_close(both.vector, (one.vector + other.vector) / 2)
    padded = encode(model, "a blue rabbit", longer=["x BREAK y"])
    length = one.tokens.shape[1]
    assert torch.equal(padded.tokens[:, :length], one.tokens) and padded.tokens.shape[1] == 2 * length
    assert torch.equal(padded.mask[:, :length], one.mask) and not padded.mask[:, length:].any()


def test_without_a_mask_shorter_prompts_are_padded_by_empty_chunks():
    """As A1111 does: all 77 tokens of an empty chunk are attended to."""
    model = random_model()
    text = model.text_encoder.forward
    model.text_encoder.forward = lambda ids: text(ids)._replace(mask=None)
    padded, empty = encode(model, "a frog", longer=["x BREAK y"]), encode(model, "")
    assert padded.mask is None
    assert torch.equal(padded.tokens, torch.cat([encode(model, "a frog").tokens, empty.tokens], 1))


def test_mixed_embeddings_are_means_of_the_prompts_that_have_a_token():
    model = random_model()
    short, long = encode(model, "a frog"), encode(model, "two red rabbits on stilts")
    mixed = encode(model, "hybrid(a frog, two red rabbits on stilts, 0.25, embeddings)")
    shared, length = int(short.mask.sum()), int(long.mask.sum())
    assert shared < length and torch.equal(mixed.mask, long.mask)
    mean = 0.75 * short.tokens + 0.25 * long.tokens
    torch.testing.assert_close(mixed.tokens[:, :shared], mean[:, :shared])
    torch.testing.assert_close(mixed.tokens[:, shared:length], long.tokens[:, shared:length])
    torch.testing.assert_close(mixed.vector, 0.75 * short.vector + 0.25 * long.vector)
