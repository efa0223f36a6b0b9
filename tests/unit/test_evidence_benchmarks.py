"""The benchmarks that compare trainings: their rows are valid and cost the same; their pictures are right."""

from __future__ import annotations

import importlib
import io
import json
import sys
import tarfile
from pathlib import Path

import pytest
from PIL import Image

from mpdit_core import presets
from mpdit_core.model.compute import training_macs
from mpdit_core.settings import parse_assignments


@pytest.fixture
def import_benchmark(monkeypatch):
    """Imports a benchmark by its name."""
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "benchmarks"))
    return importlib.import_module


def test_every_row_of_the_ablation_costs_the_same(import_benchmark):
    ablation = import_benchmark("ablation")
    for name, row in ablation.ROWS.items():
        config = presets.layers(preset="s-32", settings=parse_assignments([*ablation.BASE, *row.settings])).config()
        steps = ablation.steps_of(config, flops=1e12, multiple_of=3)
        assert steps % 3 == 0
        assert 2 * training_macs(config.model) * config.train.batch_size * steps == pytest.approx(1e12, rel=0.01), name


def test_rows_are_added_to_a_result_of_the_same_settings_only(import_benchmark, tmp_path):
    result, shared = tmp_path / "result.json", {"teraflops": 1.0, "base": ["a=1"]}
    result.write_text(json.dumps(shared | {"rows": [{"name": "mpdit"}], "date": "2026"}), encoding="utf-8")
    assert import_benchmark("ablation").rows_of(result, shared) == {"mpdit": {"name": "mpdit"}}
    with pytest.raises(SystemExit, match="base"):
        import_benchmark("ablation").rows_of(result, shared | {"base": ["a=2"]})


def test_differences_at_each_third_are_those_of_the_same_seed(import_benchmark):
    first = {"name": "mpdit", "curves": {"0": [(1, 9.0), (2, 8.0), (3, 7.0)], "1": [(1, 5.0), (2, 5.0), (3, 5.0)]}}
    other = {"name": "dense", "curves": {"0": [(1, 10.0), (2, 8.0), (3, 6.0)], "1": [(1, 6.0), (2, 5.0), (3, 4.0)]}}
    once = {"name": "rms", "curves": {"0": [(3, 7.0)]}}
    *_, row = import_benchmark("ablation").thirds([first, other, once]).splitlines()
    assert [cell.partition("(")[2] for cell in row.split("|")[2:-1]] == ["1.0 ± 0.0) ", "0.0 ± 0.0) ", "-1.0 ± 0.0) "]


def test_what_is_made_goes_between_the_marks_of_its_script(import_benchmark, tmp_path):
    page, mark = tmp_path / "page.md", "<!-- made by benchmarks/a.py -->"
    page.write_text(f"before\n{mark}\nold\n{mark}\nafter\n", encoding="utf-8")
    import_benchmark("ablation").fill(page, "new", by="a.py")
    assert page.read_text(encoding="utf-8") == f"before\n{mark}\n\nnew\n\n{mark}\nafter\n"


def test_emoji_become_class_folders_on_white(import_benchmark, tmp_path, monkeypatch):
    drawn = io.BytesIO()
    picture = Image.new("RGBA", (2, 1))
    picture.putpixel((1, 0), (255, 0, 0, 255))
    picture.save(drawn, "png")
    emoji = [
        {"category": category, "image": "1.png", "has_img_google": there}
        for category, there in (("Flags", True), ("Food & Drink", False), ("Symbols", True))
    ]
    files = {"package.json": {"name": "emoji-datasource-google"}, "emoji.json": emoji}
    contents = {name: json.dumps(value).encode() for name, value in files.items()}
    contents["img/google/64/1.png"] = drawn.getvalue()
    with tarfile.open(tmp_path / "a.tgz", "w:gz") as archive:
        for name, data in contents.items():
            member = tarfile.TarInfo(f"package/{name}")
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    monkeypatch.setattr(sys, "argv", ["colour_pictures.py", str(tmp_path / "a.tgz"), "--out", str(tmp_path / "out")])
    import_benchmark("colour_pictures").main()
    (written,) = (tmp_path / "out").rglob("*.png")
    assert written.relative_to(tmp_path / "out").as_posix() == "flags/google-1.png"
    with Image.open(written) as image:
        assert (image.mode, image.getpixel((0, 0)), image.getpixel((1, 0))) == ("RGB", (255, 255, 255), (255, 0, 0))
