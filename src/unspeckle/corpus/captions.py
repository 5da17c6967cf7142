"""From a folder to a listing: which images it holds, and which captions belong to each."""

import unicodedata
from pathlib import Path
from typing import Literal, get_args

from unspeckle.corpus import image_files, metadata_files, names_to_captions
from unspeckle.corpus.display import format_count, make_printable, summarize_names
from unspeckle.corpus.folder_listing import CaptionedImage, CaptionSource, FolderListing
from unspeckle.corpus.image_files import FolderScan
from unspeckle.errors import InputError

CaptionMode = Literal["auto", "txt", "metadata", "folders", "names"]

Captions = tuple[str, ...]
SourcedCaptions = tuple[Captions, CaptionSource]


def read_folder(
    folder: str | Path, captions: str = "auto", caption: str | None = None, template: str | None = None
) -> FolderListing:
    """List the images of `folder` and its subfolders with their captions.

    captions: where captions come from.
        "txt": `name.txt` in the folder of `name.jpg`, each line a caption.
        "metadata": metadata.jsonl and metadata.csv.
        "folders": the name of the image's folder, put into `template`.
        "names": the image's file name, put into `template`.
        "auto": metadata, else the .txt file; if these caption fewer than half of the images and at least two folders
        contain images, also the name of the folder.
    caption: one caption for all images, in place of all these.
    template: text around a name, such as "a photo of a {name}", the default.

    Images without a caption are left out. Raises InputError if no captioned image is left, or if an option, the
    folder or a metadata file cannot be used.
    """
    folder = Path(folder)
    _check_options(captions, caption, template)
    scan = image_files.scan_folder(folder)
    if not scan.images:
        suffixes = ", ".join(sorted(image_files.IMAGE_SUFFIXES))
        raise InputError(f"{folder}: contains no images; give a folder with some ({suffixes})")
    reader = _CaptionReader(folder, scan, template or names_to_captions.DEFAULT_TEMPLATE)
    captions_by_path: dict[str, SourcedCaptions]
    if caption is not None:
        captions_by_path = dict.fromkeys(scan.images, ((names_to_captions.clean_caption(caption),), "caption"))
    elif captions == "auto":
        captions_by_path = reader.read_automatically()
    else:
        captions_by_path = reader.read_source(captions)
    images = tuple(CaptionedImage(path, *captions_by_path[path]) for path in scan.images if path in captions_by_path)
    if not images:
        raise InputError(_no_captions_message(folder, captions, len(scan.images)))
    return FolderListing(
        folder,
        images,
        uncaptioned=tuple(path for path in scan.images if path not in captions_by_path),
        missing_files=tuple(reader.missing_files),
        skipped=scan.skipped,
        notes=tuple(reader.notes),
    )


def _check_options(captions: str, caption: str | None, template: str | None) -> None:
    if captions not in get_args(CaptionMode):
        raise InputError(f" {captions}: unknown; choose one of {', '.join(get_args(CaptionMode))}", "captions")
    if template is not None and "{name}" not in template:
        example = names_to_captions.DEFAULT_TEMPLATE
        raise InputError(f' "{template}": does not contain {{name}}; write for example "{example}"', "template")
    if caption is not None and captions != "auto":
        raise InputError(f": cannot be combined with --captions {captions}; give one of the two", "caption")
    if caption is not None and not names_to_captions.clean_caption(caption):
        raise InputError(": is empty; give the caption that all images share", "caption")


class _CaptionReader:
    """Reads the captions of one folder from each possible source, and collects what is worth a remark."""

    def __init__(self, folder: Path, scan: FolderScan, template: str) -> None:
        self.folder, self.scan, self.template = folder, scan, template
        self.missing_files: list[str] = []
        self.notes: list[str] = []

    def read_source(self, name: str) -> dict[str, SourcedCaptions]:
        """Captions by image path from one source: "txt", "metadata", "folders" or "names"."""
        source: CaptionSource
        match name:
            case "txt":
                source, captions_by_path = "txt", self._from_txt_files()
            case "metadata":
                source, captions_by_path = "metadata", self._from_metadata()
            case "folders":
                source, captions_by_path = "folders", self._from_folder_names()
            case _:
                source, captions_by_path = "names", self._from_file_names()
        return {path: (captions, source) for path, captions in captions_by_path.items()}

    def read_automatically(self) -> dict[str, SourcedCaptions]:
        """Metadata before .txt files; folder names for the rest if most images have neither."""
        captioned = self.read_source("txt") | self.read_source("metadata")
        if 2 * len(captioned) < len(self.scan.images):
            from_folders = self.read_source("folders")
            if len({names_to_captions.class_from_folders(path) for path in from_folders}) >= 2:
                captioned = from_folders | captioned
        return captioned

    def _from_metadata(self) -> dict[str, Captions]:
        """From metadata.jsonl and metadata.csv in any folder. File names match in any Unicode normalization."""
        path_by_nfc = {unicodedata.normalize("NFC", path): path for path in self.scan.images}
        known_paths = set(self.scan.images)
        captions_by_path: dict[str, list[str]] = {}
        for path in self.scan.metadata_files:
            for name, captions in metadata_files.read_metadata(self.folder, path):
                image_path = name if name in known_paths else path_by_nfc.get(unicodedata.normalize("NFC", name))
                if image_path is None:
                    self.missing_files.append(name)
                else:
                    captions_by_path.setdefault(image_path, []).extend(captions)
        self.missing_files = list(dict.fromkeys(self.missing_files))
        cleaned = _clean_captions(captions_by_path)
        if captions_by_path and not cleaned:
            columns = ", ".join(metadata_files.CAPTION_COLUMNS)
            self.notes.append(f"{summarize_names(self.scan.metadata_files)}: no captions (looked for {columns})")
        return cleaned

    def _from_txt_files(self) -> dict[str, Captions]:
        """From `name.txt` in the folder of `name.jpg`, each line that is not empty a caption."""
        txt_by_stem = {path.rsplit(".", 1)[0]: path for path in self.scan.txt_files}
        captions_by_path: dict[str, list[str]] = {}
        not_utf8: list[str] = []
        for image_path in self.scan.images:
            txt_path = txt_by_stem.get(image_path.rsplit(".", 1)[0])
            if txt_path is None:
                continue
            try:
                raw = (self.folder / txt_path).read_bytes()
            except OSError as error:
                self.notes.append(f"{make_printable(txt_path)}: cannot be read ({error.strerror})")
                continue
            try:
                captions_by_path[image_path] = metadata_files.decode_text(raw).splitlines()
            except UnicodeDecodeError:
                not_utf8.append(txt_path)
                captions_by_path[image_path] = raw.decode("cp1252", "replace").splitlines()
        if not_utf8:
            count, examples = format_count(len(not_utf8), "file"), summarize_names(not_utf8)
            self.notes.append(f"not UTF-8, read as Windows-1252: {count} ({examples})")
        return _clean_captions(captions_by_path)

    def _from_folder_names(self) -> dict[str, Captions]:
        """From the innermost folder whose name is neither a number nor a word like `images`."""
        return self._fill_template({path: names_to_captions.class_from_folders(path) for path in self.scan.images})

    def _from_file_names(self) -> dict[str, Captions]:
        return self._fill_template({path: names_to_captions.words_from_file_name(path) for path in self.scan.images})

    def _fill_template(self, name_by_path: dict[str, str]) -> dict[str, Captions]:
        fill_template = names_to_captions.fill_template
        return {path: (fill_template(self.template, name),) for path, name in name_by_path.items() if name}


def _clean_captions(captions_by_path: dict[str, list[str]]) -> dict[str, Captions]:
    """Cleaned captions without empty ones and duplicates; images of which none is left are dropped."""
    cleaned = {
        path: tuple(dict.fromkeys(filter(None, map(names_to_captions.clean_caption, captions))))
        for path, captions in captions_by_path.items()
    }
    return {path: captions for path, captions in cleaned.items() if captions}


def _no_captions_message(folder: Path, mode: str, image_count: int) -> str:
    hint = {
        "txt": "add name.txt for name.jpg",
        "metadata": 'add a metadata.jsonl with "file_name" and "text"',
        "folders": "put each class into a folder with its name",
        "names": "give the files names with words",
        "auto": 'add name.txt for name.jpg, or a metadata.jsonl, or class folders, or use --caption "…"',
    }[mode]
    return f"{folder}: {format_count(image_count, 'image')} but no captions; {hint}"
