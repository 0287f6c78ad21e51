"""Draw the gallery: scenes for the bundled model, and a receipt, a document, a chart and a street sign for real LLaVA checkpoints.

The photographs for those are files of others (LICENSES.md); here are only their questions.
Run from the checkout: ``python assets/gallery/draw.py``. The same code gives the same files.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parents[1]))

SCENES = ((9, "sea"), (7, "sky"), (4, "beach"), (8, "meadow"), (5, "dots"), (15, "night"))
FONTS = HERE.parent / "fonts"


def font(size: int, name: str = "DejaVuSansCondensed-Bold.ttf") -> ImageFont.FreeTypeFont:
    return ImageFont.truetype(str(FONTS / name), size)


CONVERSATIONS: dict[int, dict[str, list[str]]] = {9: {"conversation": ["What is on the sign?", "What is the price?"]}}
"""Two questions of which A-VL at S=45 C=30 answers the second only with the picture read again; seed of the scene -> entry."""


def scenes() -> list[dict]:
    """Test scenes of fixed seeds, with a few of their questions."""
    from avl.tiny.data.scenes import draw

    entries = []
    for seed, name in SCENES:
        scene = draw(seed, "test")
        file = f"scene-{seed}.png"
        scene.image.save(HERE / file, optimize=True)
        wanted = ["describe", "sign", "price", "where", "colour", "count", "caption"]
        asked: list[list[str]] = []
        for kind in wanted:
            if (kind == "sign" and scene.sign is None) or (kind == "price" and scene.tag is None):
                continue
            found = next((q for q in scene.questions if q.kind == kind), None)
            if found is not None:
                asked.append([found.text[:1].upper() + found.text[1:], found.answer])
        asked = asked or [[q.text, q.answer] for q in scene.questions[:5]]
        entries.append({"key": f"scene-{seed}", "name": name, "file": file, "questions": asked[:5], **CONVERSATIONS.get(seed, {})})
    return entries


def receipt() -> Image.Image:
    """A till receipt on a table."""
    picture = Image.new("RGB", (480, 640), "#8a6f55")
    draw = ImageDraw.Draw(picture)
    for y in range(0, 640, 16):
        draw.line((0, y, 480, y + 10), fill="#836850", width=5)
    draw.polygon([(86, 30), (402, 22), (408, 612), (82, 606)], fill="#fbfaf5")
    mono, bold = font(19, "DejaVuSansMono-Bold.ttf"), font(30)
    draw.text((245, 62), "CORNER BAKERY", font=bold, fill="#222", anchor="mm")
    draw.text((245, 94), "12 Mill Lane", font=mono, fill="#444", anchor="mm")
    lines = [("Rye bread", "4.20"), ("2 x Croissant", "3.60"), ("Apple cake", "5.50"), ("Coffee", "2.80"), ("Jam, plum", "3.90")]
    y = 146
    for name, price in lines:
        draw.text((112, y), name, font=mono, fill="#333")
        draw.text((380, y), price, font=mono, fill="#333", anchor="ra")
        y += 40
    draw.line((112, y + 4, 380, y + 4), fill="#555", width=2)
    draw.text((112, y + 22), "TOTAL", font=bold, fill="#111")
    draw.text((380, y + 22), "20.00", font=bold, fill="#111", anchor="ra")
    draw.text((112, y + 82), "Card **** 4417", font=mono, fill="#444")
    draw.text((112, y + 112), "14 March  09:41", font=mono, fill="#444")
    draw.text((245, y + 180), "thank you!", font=mono, fill="#444", anchor="mm")
    return picture


def document() -> Image.Image:
    """A page of a notice with a heading and a table."""
    picture = Image.new("RGB", (560, 720), "white")
    draw = ImageDraw.Draw(picture)
    head, text, bold = font(30, "DejaVuSerifCondensed-Bold.ttf"), font(17, "DejaVuSansCondensed-Bold.ttf"), font(18)
    draw.rectangle((0, 0, 560, 12), fill="#20506e")
    draw.text((48, 44), "Harbour Library", font=head, fill="#20506e")
    draw.text((48, 92), "Opening hours and fees, from 1 September", font=bold, fill="#333")
    rows = [("Day", "Opens", "Closes"), ("Monday", "closed", ""), ("Tuesday", "10:00", "18:00"), ("Wednesday", "10:00", "20:00"),
            ("Thursday", "10:00", "18:00"), ("Friday", "09:00", "17:00"), ("Saturday", "11:00", "15:00")]  # fmt: skip
    for index, row in enumerate(rows):
        y = 142 + index * 40
        if index % 2 == 0:
            draw.rectangle((40, y, 520, y + 40), fill="#edf2f5")
        for x, cell in zip((56, 240, 390), row, strict=True):
            draw.text((x, y + 9), cell, font=bold if index == 0 else text, fill="#222")
    words = [
        "Membership is free for residents. A lost card",
        "costs 3 euros. Books may be kept for four weeks",
        "and renewed twice, unless another reader waits.",
        "",
        "Room bookings: ask Ms Okafor at the front desk,",
        "telephone 555 0142.",
    ]
    for index, line in enumerate(words):
        draw.text((48, 456 + index * 32), line, font=text, fill="#333")
    return picture


def chart() -> Image.Image:
    """A bar chart with a title, an axis and values."""
    picture = Image.new("RGB", (640, 460), "white")
    draw = ImageDraw.Draw(picture)
    draw.text((40, 24), "Umbrellas sold per month", font=font(27), fill="#222")
    values = [
        ("Jan", 42, "#0072b2"),
        ("Feb", 35, "#0072b2"),
        ("Mar", 51, "#0072b2"),
        ("Apr", 78, "#d55e00"),
        ("May", 60, "#0072b2"),
        ("Jun", 23, "#0072b2"),
    ]
    small = font(18)
    for level in range(0, 101, 20):
        y = 400 - level * 3.1
        draw.line((70, y, 610, y), fill="#d5dae0", width=1)
        draw.text((60, y), str(level), font=small, fill="#555", anchor="rm")
    for index, (month, value, color) in enumerate(values):
        x = 92 + index * 88
        draw.rectangle((x, 400 - value * 3.1, x + 56, 400), fill=color)
        draw.text((x + 28, 400 - value * 3.1 - 14), str(value), font=small, fill="#222", anchor="mm")
        draw.text((x + 28, 422), month, font=small, fill="#222", anchor="mm")
    return picture


def street() -> Image.Image:
    """A street corner with a shop, a sign and a bicycle."""
    picture = Image.new("RGB", (640, 480), "#bcdcf2")
    draw = ImageDraw.Draw(picture)
    draw.rectangle((0, 380, 640, 480), fill="#6f747a")
    draw.rectangle((0, 368, 640, 384), fill="#a9a59b")
    draw.rectangle((60, 120, 420, 370), fill="#b5553f")
    draw.rectangle((60, 100, 420, 128), fill="#7c3527")
    draw.rectangle((90, 210, 250, 340), fill="#f4e6b8", outline="#4b2a20", width=5)
    draw.rectangle((300, 220, 376, 370), fill="#2f5c46", outline="#1d3a2c", width=5)
    draw.ellipse((362, 292, 370, 300), fill="#e8c84a")
    draw.rectangle((92, 144, 388, 194), fill="#20324a")
    draw.text((240, 169), "LUNA BOOKS", font=font(34), fill="#ffd964", anchor="mm")
    draw.text((170, 275), "SALE", font=font(42), fill="#c0392b", anchor="mm")
    draw.rectangle((520, 130, 530, 372), fill="#777")
    draw.polygon([(525, 60), (575, 85), (575, 135), (525, 160), (475, 135), (475, 85)], fill="#c62828", outline="white", width=4)
    draw.text((525, 110), "STOP", font=font(28), fill="white", anchor="mm")
    for x in (452, 560):
        draw.ellipse((x, 350, x + 70, 420), outline="#1b1b1b", width=6)
    draw.line((487, 385, 520, 335, 575, 335, 595, 385, 540, 385, 520, 335), fill="#1565c0", width=6)
    draw.line((575, 335, 570, 315, 590, 315), fill="#1b1b1b", width=6)
    draw.ellipse((560, 20, 620, 80), fill="#ffd54f")
    return picture


REAL = (
    (street, "street", ["What is the name of the shop?", "What does the red sign say?", "Describe this picture in detail."]),
    (receipt, "receipt", ["What is the total on this receipt?", "Which item costs 5.50?", "List all items with their prices."]),
    (document, "document", ["When does the library close on Wednesday?", "Who takes room bookings?", "Summarize this notice."]),
    (chart, "chart", ["In which month were most umbrellas sold?", "How many umbrellas were sold in March?", "Describe the chart."]),
)

DETAIL = "Describe this picture in detail."

PHOTOS = (
    ("coffee", [DETAIL, ("What color is the saucer?", "red"), "How many spoons are there?", "What is the table made of?"]),
    ("astronaut", [DETAIL, ("What color is the suit?", "orange"), "What does the round patch say?", "What is in the background?"]),
    ("rocket", [DETAIL, "How many towers stand around the rocket?", "What time of day is it?"]),
    ("cat", [DETAIL, ("What animal is this?", "cat"), "What color are its eyes?", "Where is it looking?"]),
    ("book", [
        ("What is written at the top of the page?", "Chapter III"), ("What is the caption of the drawing?", "Miss Watson's lecture"),
        "How many people are in the drawing?", "Transcribe the first sentence.", DETAIL,
    ]),
)  # fmt: skip
"""Name and questions of each photograph, with the right answer where there is only one, in one wording: a count may be said in digits."""


def main() -> None:
    real = []
    for name, asked in PHOTOS:
        questions = [[one, ""] if isinstance(one, str) else list(one) for one in asked]
        real.append({"key": name, "name": name, "file": f"{name}.jpg", "questions": questions})
    for make, name, questions in REAL:
        make().save(HERE / f"{name}.png", optimize=True)
        real.append({"key": name, "name": name, "file": f"{name}.png", "questions": [[question, ""] for question in questions]})
    text = json.dumps({"bundled": scenes(), "real": real}, indent=1, ensure_ascii=False)
    (HERE / "examples.json").write_text(text + "\n", "utf-8")


if __name__ == "__main__":
    main()
