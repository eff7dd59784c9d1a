"""Explanations of files and folders of them, any number: in threads and processes, and going on where a run stopped."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, nullcontext
from dataclasses import asdict
from pathlib import Path

from pipelines.files import atomic_write, check_folder, sha256
from pipelines.peers import Alone, Peers
from rg.explain.explainer import Explainer, ImageLike
from rg.explain.facts import MOSTLY
from rg.explain.folder import ExplainedFolder, Line, gather, join_folder, open_folder
from rg.explain.image_files import find_images
from rg.explain.lookahead import in_order
from rg.explain.numbers import percent
from rg.explain.pictures import ANSWERS
from rg.explain.spreadsheet import check_table, write_table
from rg.runs.agreement import agree
from rg.runs.folder import PART_PICTURES, WEIGHTS
from rg.runs.part_pictures import read_part_pictures
from rg.runs.progress import image_progress

LONGEST_SIDE = 640  # pixels of a photo, of which pictures show 480 at most
FEW = 20  # images whose labels are logged one by one

logger = logging.getLogger(__name__)


def explain_files(
    run: Path,
    paths: Sequence[Path],
    out: Path,
    *,
    view: str = "auto",
    batch_size: int = 16,
    device: str = "auto",
    pictures: str = "webp",
    table: str = "csv",
    jobs: int = 1,
    overwrite: bool = False,
    write_page: Callable[[Path], object] | None = None,
    peers: Peers | None = None,
) -> None:
    """Explain files and folders of files into a folder (see ``rg.explain.folder``).

    Images that are explained in it already are not explained again. One that cannot be decoded is named and left out.

    Args:
        run: Run folder.
        paths: Files, and folders whose images are taken at any depth.
        out: Folder to write to.
        view: See ``Explainer.explain``.
        batch_size: Images at once, if they have the same shape.
        device: See ``rg.load``.
        pictures: png, webp, or none: neither pictures nor a page. A run without labels gets no page either, which sorts
            images by them.
        table: See ``rg.explain.spreadsheet.write_table``; a run without labels gets none.
        jobs: Threads that decode, and as many that draw.
        overwrite: Begin anew.
        write_page: Writes a page that shows the folder; called at the end, also of a run that is stopped.
        peers: Processes that call this with the same arguments and share the images; the first opens the folder and
            brings together what all have written. Those of a run that was killed are taken in by the next one.

    Raises:
        ValueError: a path does not exist, ``out`` was explained with other settings, or no image could be explained.
    """
    peers = peers or Alone()
    process, processes = peers.ranks.rank, peers.ranks.world_size

    def load() -> tuple[list[Path], Explainer]:
        if pictures not in ("png", "webp", "none"):
            raise ValueError(f"pictures: expected png, webp or none, got {pictures!r}")
        check_table(table)
        check_folder(out, "--out")
        found = find_images(paths, out) if process == 0 else []
        return found, Explainer.load(run, device)

    files, explainer = peers.together(load)
    images = peers.collect(len(files))[0]
    confidence = explainer.confidence_in(explainer.resolve_view(view))
    settings = {
        "run": run.resolve().name,
        "weights": sha256(run / WEIGHTS),
        "parts": [asdict(part) for part in explainer.parts],
        "confidence": confidence and {name: value for name, value in asdict(confidence).items() if name != "shards"},
        "frequencies": explainer.frequencies and list(explainer.frequencies),
        "view": view,
        "pictures": pictures,
    }
    agree(peers, settings)
    labelled = explainer.config.model.kind != "scops"
    row = read_part_pictures(run, len(explainer.parts))
    class_names = () if explainer.classes.multi_label else set(explainer.classes.names)
    with ExitStack() as stack:

        def open_as_first() -> ExplainedFolder | None:
            if process:
                return None
            return stack.enter_context(open_folder(out, files, settings, class_names, overwrite))

        opened = peers.together(open_as_first)
        if opened and row:
            with atomic_write(out / PART_PICTURES) as file:
                file.write(row)
        elif opened:  # those of another run, which was explained here before
            (out / PART_PICTURES).unlink(missing_ok=True)
        plan = opened and [(file, opened.names[str(file)]) for file in opened.to_do]
        named = peers.collect(plan)[0]
        to_do = [file for file, _ in named]
        share, own = to_do[process::processes], {str(file): name for file, name in named[process::processes]}
        writing = join_folder(out, pictures, share, own, class_names, process) if processes > 1 else nullcontext(opened)

        def show() -> None:
            if opened and labelled:
                write_table(out, table)
                if write_page and pictures != "none":
                    write_page(out)

        def finish() -> None:
            if opened and processes > 1:
                gather(out, to_do)
            show()

        try:
            with writing as folder:  # closed before the first process reads what the others have written
                assert folder is not None
                left_out = _explain(explainer, folder, images, len(to_do), view, batch_size, jobs, peers)
        except KeyboardInterrupt:
            show()
            logger.info("stopped; the same command goes on where it stopped")
            raise
        left_out = sum(peers.collect(left_out))
        peers.together(finish)

    def check() -> None:
        if left_out == images:
            raise ValueError(f"none of {images} images could be decoded")

    peers.together(check)
    logger.info("%d images explained in %s, %d left out", images - left_out, out, left_out)


def _explain(
    explainer: Explainer,
    folder: ExplainedFolder,
    total: int,
    to_do: int,
    view: str,
    batch_size: int,
    jobs: int,
    peers: Peers,
) -> int:
    """Explains the share of this process; the number of images that could not be decoded.

    Args:
        total: Of all images.
        to_do: Of those that all processes have to explain.
        peers: The processes, of which the first tells how far all are.
    """
    before, left_out, partly_seen = total - to_do, 0, 0
    finished = peers.counter()
    if before:
        logger.info("%d of %d images are explained already", before, total)

    def leave_out(image: ImageLike, reason: str) -> None:
        nonlocal left_out
        logger.warning("left out: %s", reason)
        folder.leave_out(str(image), reason)
        left_out += 1
        finished(1)

    with image_progress(shown=peers.ranks.rank == 0) as progress, ThreadPoolExecutor(jobs) as pool:
        progress(before, total)
        explanations = explainer.stream(
            folder.to_do, view=view, batch_size=batch_size, failed=leave_out, longest_side=LONGEST_SIDE, jobs=jobs
        )
        for line in in_order(pool, folder.draw, explanations, 2 * jobs):
            folder.append(line)
            partly_seen += line["seen"] < MOSTLY
            progress(before + finished(1), total)
            if total <= FEW:
                _tell(line)
        peers.wait(lambda: progress(before + finished(0), total))
    if partly_seen:
        logger.warning(
            "of %d images the model saw less than %s: the middle of what is very long, or the central square",
            partly_seen,
            percent(MOSTLY, 0),
        )
    return left_out


def _tell(line: Line) -> None:
    """One image in a line of the log."""
    if line["answer"] == "none":
        logger.info("%s: %s", line["source"], ANSWERS["none"])
        return
    answer = f"{ANSWERS[line['answer']]}, " if ANSWERS[line["answer"]] else ""
    seen = f", saw {percent(line['seen'], 0)} of the image" if line["seen"] < MOSTLY else ""
    logger.info("%s: %s (%s%s)%s", line["source"], line["label"], answer, percent(line["probability"]), seen)
