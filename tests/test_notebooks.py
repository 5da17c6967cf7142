"""What notebooks show of models, requests and films."""

import base64
import io
import re

from PIL import Image

import unspeckle
from tiny_models import model_with_student, random_model


def test_a_model_says_what_it_is() -> None:
    page = model_with_student()._repr_html_()
    assert "16 × 16 pixels" in page and "million, in float32 on cpu" in page and "draws in 1, 2, 4 steps" in page


def test_a_request_shows_what_it_asks_for_and_nothing_can_hide_in_it() -> None:
    page = unspeckle.Request("a <b>frog</b> & co", seed=7, negative_prompt="<script>")._repr_html_()
    assert "a &lt;b&gt;frog&lt;/b&gt; &amp; co" in page and "&lt;script&gt;" in page and "<script>" not in page
    assert re.findall(r"<th [^>]*>(\w+)</th>", page) == ["negative_prompt", "seed"]


def test_a_film_shows_the_steps_of_a_drawing() -> None:
    model = random_model()
    film = unspeckle.film(model, "a frog", seed=3, steps=5)
    found = re.findall(r"data:image/(\w+);base64,([^\"]+)", film._repr_html_())
    assert [kind for kind, _ in found] == ["webp", "png"]
    animation = Image.open(io.BytesIO(base64.b64decode(found[0][1])))
    # Five steps and the result; the last frame is the image that `draw` gives.
    assert getattr(animation, "n_frames", 1) == 6
    animation.seek(5)
    assert animation.convert("RGB").tobytes() == unspeckle.draw(model, "a frog", seed=3, steps=5)[0].tobytes()
