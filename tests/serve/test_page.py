"""The page's flows in a browser: files of every kind in by every way, answers, wrong files, the session, the card."""

import base64
import csv
import io
import json
import re
import zipfile
from collections import Counter

import page_states
import pytest
from page_server import CARD, SLICES, dicom, slice_row, volume
from page_states import choose, file, head, pictured, zipped
from playwright.sync_api import expect

pytest_plugins = ["page_fixtures"]
pytestmark = pytest.mark.skipif(page_states.chromium() is None, reason="no chromium on this machine")
DROP = """([target, name, content]) => {
  const files = new DataTransfer();
  files.items.add(new File([Uint8Array.from(atob(content), c => c.charCodeAt(0))], name, {type: "image/png"}));
  const event = target === "paste" ? new ClipboardEvent("paste", {clipboardData: files, bubbles: true})
    : new DragEvent(target, {dataTransfer: files, bubbles: true, cancelable: true});
  document.body.dispatchEvent(event);
}"""


def answer(page):
    return page.locator("#prediction").inner_text()


class TestOneImage:
    def test_says_class_set_and_that_it_is_no_diagnosis(self, page):
        choose(page, file("slice.png", head()))
        expect(page.locator(".verdict.ok .head")).to_have_text("Glioma")
        expect(page.locator("#result-title")).to_have_text("slice.png")
        assert "97.2 %" in answer(page)
        assert "For research, not for diagnosis." in answer(page)
        rows = page.locator(".bars tbody tr").all_inner_texts()
        assert [("✓ in set" in row) for row in rows] == [True, False, False, False]
        assert pictured(page)
        expect(page.locator("#live")).to_contain_text("slice.png: Glioma.")

    def test_the_heatmap_fades_goes_and_changes_class(self, page, server):
        choose(page, file("slice.png", head()))
        heat = page.locator("img.heat")
        expect(heat).to_be_visible()
        page.get_by_label("Opacity").fill("25")
        assert heat.evaluate("image => getComputedStyle(image).opacity") == "0.25"
        page.get_by_label("Show").uncheck()
        expect(heat).to_be_hidden()
        page.get_by_label("Show").check()
        first = heat.get_attribute("src")
        page.get_by_label("Class").select_option("pituitary")
        expect(page.locator("figcaption")).to_contain_text("Pituitary tumour")
        assert heat.get_attribute("src") != first
        assert server.asked[-1][1]["class"] == "pituitary"
        page.get_by_label("Class").select_option("")
        expect(heat).to_have_attribute("src", first)
        assert len(server.asked) == 2  # what was fetched once is kept

    def test_uncertain_looks_and_reads_otherwise_than_ok(self, page):
        choose(page, file("a.png", head()))
        expect(page.locator(".verdict.ok")).to_be_visible()
        looks = "e => [getComputedStyle(e).borderStyle, e.querySelector('svg path').getAttribute('d')]"
        ok = page.locator(".verdict").evaluate(looks)
        choose(page, file("b.png", head("uncertain")))
        expect(page.locator(".verdict.uncertain .head")).to_have_text("Uncertain")
        assert all(one != other for one, other in zip(ok, page.locator(".verdict").evaluate(looks), strict=True))
        assert "May be glioma or meningioma." in answer(page)
        assert page.locator(".bars tr.in").count() == 2

    def test_a_refused_image_shows_no_class(self, page):
        choose(page, file("cat.png", head("refused")))
        expect(page.locator(".verdict.refused .head")).to_have_text("Not classified")
        assert pictured(page)
        shown = (answer(page) + page.locator("#entries").inner_text()).lower()
        assert not [name for name in (*CARD["classes"], "tumour", "%") if name in shown]
        assert "not a brain" not in page.inner_text("body")  # which is not known of it
        for gone in (".bars", "img.heat", ".controls"):
            expect(page.locator(gone)).to_be_hidden()

    def test_a_name_is_text_whatever_it_holds(self, page):
        name = "<img src=x onerror=document.title='hit'>.png"
        choose(page, file(name, head()))
        expect(page.locator("#result-title")).to_have_text(name)
        assert page.title() == "tumorlens"
        assert page.locator("#entries img").count() == 1

    def test_settings_are_sent(self, page, server):
        page.locator(".settings summary").click()
        page.get_by_label("Coverage").select_option("0.99")
        page.get_by_label("NIfTI").select_option("sagittal")
        choose(page, file("slice.png", head()))
        expect(page.locator(".verdict")).to_contain_text("99 % prediction set")
        assert server.asked[0][1] == {"coverage": "0.99", "plane": "sagittal", "heatmap": "png"}


class TestWaysIn:
    @pytest.mark.parametrize("way", ["drop", "paste"])
    def test_drop_and_paste(self, page, way):
        name = "image.png" if way == "paste" else "dropped.png"
        content = base64.b64encode(head()).decode()
        if way == "drop":
            page.evaluate(DROP, ["dragenter", name, content])
            expect(page.locator("#veil")).to_be_visible()
        page.evaluate(DROP, [way, name, content])
        expect(page.locator("#result-title")).to_have_text("pasted image" if way == "paste" else name)
        expect(page.locator("#veil")).to_be_hidden()

    def test_the_sample(self, page):
        page.get_by_role("button", name="sample").click()
        expect(page.locator("#result-title")).to_have_text("Generated sample")
        expect(page.locator(".verdict.ok")).to_be_visible()

    def test_several_dicom_files_are_one_series_and_their_names_stay_here(self, page, server):
        choose(page, *(file(f"Mueller_{i}.dcm", dicom(i)) for i in range(8)))
        expect(page.locator(".verdict.ok").first).to_contain_text("Whole volume: Meningioma")
        expect(page.locator("#result-title")).to_have_text("Mueller_0.dcm and 7 more")
        assert pictured(page)
        assert [path for path, *_ in server.asked] == ["/v1/batch", "/v1/predict"]
        assert all(b"Mueller" not in body and b"DICM" in body for *_, body in server.asked)

    def test_a_zip_gives_its_pictures(self, page):
        content = zipped(one=head(), two=head("refused"), three=head("damaged"))
        choose(page, file("study.zip", content))
        expect(page.locator("#entries li")).to_have_count(3)
        expect(page.locator("#result-title")).to_have_text("study.zip/inner/one.png")
        assert pictured(page)
        page.locator("#entries button", has_text="three").click()
        assert "Copy it again." in answer(page)

    def test_an_entry_of_a_zip_is_never_taken_for_another(self, page):
        names = ["b.png", "./a/b.png", "c\\b.png", "d/b.png", "d//b.png", "e/", "e.png\0x"]
        asked = ["/b.png", "/a/b.png", "/c/b.png", "/d/b.png", "/f/b.png", "/e", "/e.png"]
        content = io.BytesIO()
        with zipfile.ZipFile(content, "w") as archive:
            for i, name in enumerate(names):
                info = zipfile.ZipInfo()
                info.filename = name  # as it is: the constructor cuts at a NUL
                archive.writestr(info, str(i))
        found = page.evaluate(
            """async ([bytes, asked]) => {
              const { entryOf } = await import("/zip.js");
              const zip = new Blob([new Uint8Array(bytes)]);
              return Promise.all(asked.map(async (path) => (await entryOf(zip, path))?.text() ?? null));
            }""",
            [list(content.getvalue()), asked],
        )
        assert found == ["0", "1", "2", None, None, None, "6"]  # d/b.png is two

    def test_answers_that_came_before_a_batch_was_cut_off_are_kept(self, page, server):
        server.cut = True
        choose(page, *(file(f"{i}.dcm", dicom(i)) for i in range(8)))
        expect(page.locator("#entries li")).to_have_count(2)
        assert "The response was cut off" in page.locator("#entries").inner_text()
        page.locator("#entries button", has_text="0.dcm and 6 more, 7 slices").click()
        expect(page.locator(".slider output")).to_have_text("Slice 4 of 7")


class TestVolume:
    @pytest.fixture(autouse=True)
    def shown(self, page):
        choose(page, file("brain.nii.gz", volume()))
        expect(page.locator(".verdict").first).to_contain_text("Whole volume: Meningioma")

    def test_several_volumes_of_a_series_have_a_verdict_each(self, page):
        choose(page, file("echoes.nii.gz", volume(2)))
        for number in (1, 2):
            expect(page.get_by_text(f"Volume {number} of 2: Meningioma")).to_be_visible()
        expect(page.locator("#entries button").first).to_contain_text("24 slices, 2 volumes")
        expect(page.get_by_text("Three neighbours decide.")).to_be_visible()  # as the service says

    def test_what_was_not_read_is_beside_the_slices_and_can_be_chosen(self, page, server):
        choose(page, file("bold.nii.gz", volume(0)))
        note = page.locator(".verdict.error")
        expect(note).to_contain_text("Not everything was read")
        expect(note).to_contain_text("Holds 3 volumes, of which the first alone was read.")
        expect(note).to_contain_text("Choose one with volume 1 to volume 3.")
        expect(page.locator(".slider output")).to_contain_text("of 24")
        page.locator(".settings summary").click()
        page.get_by_label("Volume of a file").fill("2")
        choose(page, file("again.nii.gz", volume(0)))
        expect(page.locator("#result-title")).to_have_text("again.nii.gz")
        # Not only the last one: pictures of the first file may be fetched late.
        assert any(asked.get("volume") == "2" for _, asked, _ in server.asked)

    def test_keys_and_chart_move_through_the_slices(self, page, server):
        slider = page.locator("#slice")
        assert slider.get_attribute("aria-valuetext").startswith("Slice 14 of 24: Meningioma")
        slider.focus()
        page.keyboard.press("ArrowRight")
        expect(page.locator(".slider output")).to_have_text("Slice 15 of 24")
        assert pictured(page)
        assert server.asked[-1][1]["slice"] == "14"  # pictures that did not come with the answer are fetched
        page.keyboard.press("Home")
        expect(page.locator(".verdict.small.refused")).to_be_visible()
        expect(page.locator(".bars")).to_have_count(0)
        box = page.locator("svg.chart").bounding_box()
        at = 42 + (box["width"] - 52) * 8 / 23
        page.mouse.click(box["x"] + at, box["y"] + 50)
        assert float(page.locator(".cursor").get_attribute("x1")) == pytest.approx(at, abs=1)
        expect(page.locator(".slider output")).to_have_text("Slice 9 of 24")
        expect(page.locator(".verdict.small.uncertain")).to_be_visible()

    def test_the_chart_draws_each_class_and_each_verdict(self, page):
        chart = page.locator("svg.chart")
        assert chart.locator(".line").count() == 4
        points = chart.locator(".line.c1").get_attribute("points").split()
        assert len(points) == 18  # refused slices have no probability
        highest = min(range(18), key=lambda i: float(points[i].split(",")[1]))
        assert highest == 13 - 3
        verdicts = Counter(slice_row(i, SLICES)["verdict"].split(":")[0] for i in range(SLICES))
        assert {state: chart.locator(f".tick.{state}").count() for state in verdicts} == verdicts
        text = chart.get_attribute("aria-label")
        assert all(f"{n} {state}" in text for state, n in verdicts.items())

    def test_slices_are_named_by_their_own_numbers(self, page):
        rows = [{"slice": at, "verdict": "ok", "probabilities": {"glioma": p, "notumor": 1 - p}}
                for at, p in ((59, 0.2), (119, 1.0))]  # fmt: skip
        text = page.evaluate(
            "async (rows) => (await import('/chart.js')).chartOf(rows, ['glioma', 'notumor'], () => {})"
            ".querySelector('svg.chart').getAttribute('aria-label')", rows)  # fmt: skip
        assert "Glioma at most > 99.9 %, at slice 120" in text


class TestWrongFiles:
    @pytest.mark.parametrize(
        ("content", "title", "cure"),
        [
            (b"hello", "Unsupported file format", "These are read: JPEG"),
            (head("damaged"), "The file could not be read", "Copy it again."),
            (bytes(2_000_001), "Over a limit", "Add less at once"),
            (zipped(), "Nothing to classify", "Add another one."),
        ],
        ids=["format", "damaged", "large", "empty zip"],
    )
    def test_the_reason_and_the_cure_are_shown(self, page, content, title, cure):
        choose(page, file("wrong.bin", content))
        expect(page.locator(".verdict.error .head")).to_have_text(title)
        expect(page.locator(".verdict.error")).to_contain_text(cure)
        expect(page.locator("#live")).to_contain_text(cure)
        expect(page.get_by_role("button", name="Try again")).to_have_count(0)

    def test_the_rest_of_a_choice_goes_on(self, page):
        choose(page, file("no.txt", b"no"), file("yes.png", head()))
        expect(page.locator("#entries li")).to_have_count(2)
        page.locator("#entries button", has_text="yes.png").click()
        expect(page.locator(".verdict.ok")).to_be_visible()

    def test_a_service_that_is_gone_and_back(self, page, server):
        page.route("**/v1/predict*", lambda route: route.abort())
        choose(page, file("slice.png", head()))
        expect(page.locator(".verdict.error .head")).to_have_text("The service does not respond")
        page.unroute("**/v1/predict*")
        page.get_by_role("button", name="Try again").click()
        expect(page.locator("#entries li")).to_have_count(2)
        page.locator("#entries button").first.click()
        expect(page.locator(".verdict.ok")).to_be_visible()

    def test_a_busy_service_is_asked_again(self, page, server):
        server.busy = 1
        choose(page, file("slice.png", head()))
        expect(page.locator(".verdict.ok")).to_be_visible()
        assert len(server.asked) == 2

    def test_what_took_too_long_is_not_sent_again(self, page, server):
        server.busy, server.why = 9, {"type": "/problems/took-too-long", "title": "The request took too long"}
        choose(page, file("slice.png", head()))
        expect(page.locator("#entries")).to_contain_text("The request took too long")
        assert len(server.asked) == 1

    def test_cancelling(self, page):
        choose(page, file("slow.png", head("slow")))
        page.get_by_role("button", name="Cancel slow.png").click()
        expect(page.locator("#queue li")).to_have_count(0)
        choose(page, file("next.png", head()))
        expect(page.locator("#entries li")).to_have_count(1)
        expect(page.locator("#result-title")).to_have_text("next.png")


class TestSession:
    def test_list_and_downloads(self, page):
        for name, content in (("=1+1.png", head()), ("b.png", head("refused")), ("c.nii.gz", volume())):
            choose(page, file(name, content))
            expect(page.locator("#result-title")).to_have_text(name)
        assert [text.split("\n")[0] for text in page.locator("#entries button").all_inner_texts()] == [
            "c.nii.gz, 24 slices", "b.png", "=1+1.png",
        ]  # fmt: skip
        page.locator("#entries button").nth(1).click()
        expect(page.locator("#result-title")).to_have_text("b.png")
        expect(page.locator("#entries button").nth(1)).to_have_attribute("aria-current", "true")
        expect(page.locator("#entries button").nth(1)).to_be_focused()
        with page.expect_download() as saved:
            page.get_by_role("button", name="Save CSV").click()
        rows = list(csv.DictReader(io.StringIO(saved.value.path().read_text("utf-8"))))
        assert len(rows) == 1 + 1 + 24 + 1
        assert rows[0]["file"] == "'=1+1.png"  # no formula in a spreadsheet
        assert (rows[0]["class"], rows[0]["set"], float(rows[0]["p_glioma"])) == ("glioma", "glioma", 0.972)
        assert rows[1]["class"] == rows[1]["p_glioma"] == ""
        assert list(rows[0])[:6] == ["kind", "file", "series", "slice", "instance", "class"]
        with page.expect_download() as saved:
            page.get_by_role("button", name="Save JSON").click()
        content = json.loads(saved.value.path().read_text("utf-8"))
        assert content["notice"] == "For research, not for diagnosis."
        assert [row["verdict"] for row in content["rows"]] == [row["verdict"] for row in rows]
        assert {row["model"] for row in content["rows"]} == {CARD["model"]}
        page.get_by_role("button", name="Clear").click()
        expect(page.locator("#history-empty")).to_be_visible()
        expect(page.locator("#intro")).to_be_visible()

    def test_a_token_is_asked_for_and_kept_nowhere(self, blank, server):
        server.token = "long-enough-token"
        blank.goto(server.url)
        field = blank.get_by_role("textbox", name="Token")
        field.fill("wrong")
        blank.keyboard.press("Enter")
        expect(blank.locator("#ask-why")).to_contain_text("not accepted")
        field.fill(server.token)
        blank.keyboard.press("Enter")
        expect(blank.locator("#card .measured")).to_be_visible()
        choose(blank, file("slice.png", head()))
        expect(blank.locator(".verdict.ok")).to_be_visible()
        kept = blank.evaluate("JSON.stringify([localStorage, sessionStorage, document.cookie, location.href])")
        assert server.token not in kept + blank.content()
        blank.reload()
        expect(blank.locator("#ask")).to_be_visible()


class TestCard:
    def test_the_twin_free_figure_stands_beside_the_official_one(self, page):
        rows = page.locator(".measured tbody tr").all_inner_texts()
        assert [re.search(r"[\d.]+ %", row.split("from.")[-1]).group() for row in rows[:2]] == ["98.4 %", "96.9 %"]
        assert "94.4 % to 98.3 %" in rows[1]
        assert "985 of them have a near-duplicate" in rows[0]
        card = page.locator("#card").inner_text()
        assert "Not for diagnosis" in card
        assert "It knows its classes and nothing else." in card

    @pytest.mark.parametrize(
        ("source", "name"), [("folder", "Official test images"), ("fold", "Test fold"), ("", "Test")]
    )
    def test_the_test_part_bears_its_own_name(self, blank, server, source, name):
        server.card = CARD | {"split": {"source": "x", "test_source": source}}
        blank.goto(server.url)
        expect(blank.locator(".measured tbody tr").first).to_contain_text(name)
        assert blank.get_by_text("Official test images").count() == (source == "folder")

    @pytest.mark.parametrize(
        ("changed", "text"),
        [
            ({"measured": None}, "The accuracy is not known."),
            ({"measured": {"test": CARD["measured"]["test"]}}, "The accuracy without twins is missing."),
            ({"dataset": {"sheet": "phantom"}}, "Trained on generated slices."),
        ],
    )
    def test_what_is_not_known_is_stated(self, blank, server, changed, text):
        server.card = CARD | changed
        blank.goto(server.url)
        expect(blank.locator("#card .caution")).to_contain_text(text)
