"""Images within a page, for notebooks."""

import base64


def image_html(data: bytes, media_type: str) -> str:
    """An <img> that holds the image itself, such as a PNG ("image/png")."""
    encoded = base64.b64encode(data).decode("ascii")
    return f'<img src="data:{media_type};base64,{encoded}" style="max-width: 100%">'
