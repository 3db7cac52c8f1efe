"""The pages make a site: without a warning, without a broken link, and with all that the package hands out."""

import json
import os
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

import flatstore as fs
from tests.browser import TELL, needs_a_browser, told_by

ROOT = Path(__file__).parent.parent
INTERNAL = {"JaxMoves", "CardMoves", "CardBreeding", "words", "weighted_seeds", "records", "PerGene"}


LOOK = """<!doctype html><body><script>
const pages = PAGES, found = {};
const scrolls = ".md-typeset__scrollwrap, pre, .md-sidebar, .md-search";
async function look() {
    for (const page of pages) {
        const frame = document.createElement("iframe");
        frame.style = "width: 390px; height: 844px; border: 0";
        frame.src = page;
        const loaded = new Promise(done => frame.onload = done);
        document.body.append(frame);
        await loaded;
        const inside = frame.contentDocument, root = inside.documentElement;
        const pictures = [...inside.querySelectorAll("img[src*=pictures]")];
        await Promise.all(pictures.map(picture => picture.decode().catch(() => {})));
        const blank = pictures.filter(picture => !picture.naturalWidth).map(picture => picture.src);
        const wide = [...inside.querySelectorAll("body *")].filter(element => {
            const box = element.getBoundingClientRect();
            return box.width && box.right > 391 && !element.closest(scrolls);
        }).map(element => element.outerHTML.slice(0, 80));
        if (root.scrollWidth > root.clientWidth || blank.length || wide.length) {
            found[page] = [root.scrollWidth, blank, wide.slice(0, 3)];
        }
        frame.remove();
    }
    tell([pages.length, found]);
}
look();
</script></body>"""
"""Looks at each page on a phone: whether it is wider than the screen, and whether its pictures are there."""


class Page(HTMLParser):
    """The names of a page's elements, and where it leads and loads from."""

    def __init__(self, path):
        super().__init__()
        self.names, self.links, self.loads, self.undescribed = set(), [], [], []
        self.feed(path.read_text())

    def handle_starttag(self, tag, attributes):
        found = dict(attributes)
        self.names |= {found["id"]} if "id" in found else set()
        if tag == "a" and found.get("href"):
            self.links.append(found["href"])
        if tag == "img" and not found.get("alt"):
            self.undescribed.append(found)
        if tag in ("script", "img", "link") and (target := found.get("src") or found.get("href")):
            self.loads.append(target)


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The folder of the site."""
    site = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "-q", "-d", site]
    done = subprocess.run(
        command, cwd=ROOT, env=os.environ | {"NO_MKDOCS_2_WARNING": "1"}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return site


@pytest.fixture(scope="module")
def pages(site):
    return {path.resolve(): Page(path) for path in site.rglob("*.html")}


def test_links_lead_to_what_is_there_and_nothing_is_loaded_from_elsewhere(pages):
    for path, page in pages.items():
        for link in page.links:
            there, _, name = link.partition("#")
            if urlsplit(link).scheme or path.name == "404.html":
                continue
            target = (path.parent / unquote(there)).resolve() if there else path
            target = target / "index.html" if target.is_dir() else target
            assert target in pages, (path, link)
            assert not name or unquote(name) in pages[target].names, (path, link)
        assert not [load for load in page.loads if urlsplit(load).netloc], path
        assert not page.undescribed, path


def test_the_reference_has_all_that_the_package_hands_out(pages):
    names = set().union(*(page.names for page in pages.values()))
    rooms = {"es": fs.es, "ga": fs.ga, "bench": fs.bench}
    for room, module in rooms.items():
        public = {name for name in vars(module) if not name.startswith("_")}
        handed_out = {name for name in public if getattr(vars(module)[name], "__module__", "").startswith("flatstore")}
        missing = {name for name in handed_out - INTERNAL if f"flatstore.{room}.{name}" not in names}
        assert not missing
    top = {name for name in dir(fs) if not name.startswith("_")} - set(fs._ROOMS) - {"TYPE_CHECKING"}
    public = {name for name in top if type(getattr(fs, name)).__name__ != "module"}
    assert not {name for name in public if f"flatstore.{name}" not in names}


def test_no_page_shows_a_fence(pages):
    assert not [path for path in pages if "```" in path.read_text()]


def test_examples_in_docstrings_are_code(pages):
    page = next(path for path in pages if path.parts[-3:] == ("api", "es", "index.html"))
    text = page.read_text()
    assert text.count('<span class="gp">&gt;&gt;&gt; </span>') > 10 and "<blockquote>" not in text


@needs_a_browser
def test_on_a_phone_no_page_scrolls_sideways_and_every_picture_is_there(site):
    names = sorted(str(path.parent.relative_to(site)) + "/" for path in site.rglob("index.html"))
    (site / "look.html").write_text(TELL + LOOK.replace("PAGES", json.dumps(names)))
    (seen, found), errors = told_by(site, "look.html")
    (site / "look.html").unlink()
    assert seen == len(names) > 30
    assert not found and not errors
