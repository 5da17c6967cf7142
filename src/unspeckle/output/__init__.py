"""Images as files and on the screen: PNG with metadata, film strips, the terminal view."""
