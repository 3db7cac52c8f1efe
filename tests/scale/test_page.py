"""docs/scale.md is a program, too: it runs on a cluster, and shows what it says."""

from tests.test_docs import run_page


def test_the_python_of_the_page_runs_as_shown(cluster, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run_page("docs/scale.md")
