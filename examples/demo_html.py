"""What the web demo shows as HTML: remarks, a table of answers, heatmaps; and what its words mean."""

import base64
import html
import io
from collections.abc import Sequence

from demo_answers import Answer
from PIL import Image


GUESS = "A guess: this picture is nothing like those that the model knows."
TINY = 100_000_000  # parameters; below, starting a step takes longer than its arithmetic
COLUMNS = ("visual tokens", "answer", "GFLOPs", "first word, ms", "whole, ms")


def paragraph(text: str, kind: str) -> str:
    """A remark, which screen readers read out when it appears. Its kind is a class of the page's style."""
    return f'<p class="{kind}" role="status">{html.escape(text)}</p>'


def as_table(answers: Sequence[Answer], rounds: int, is_guess: bool) -> str:
    """
    Answers at several numbers of visual tokens.

    Args:
        rounds: Over how many rounds their times are the medians, 0 before they are timed.
        is_guess: Whether the model does not know such pictures.
    """
    rows = []
    for answer in answers:
        number = f"auto: {answer.num_visual_tokens}" if answer.is_auto else str(answer.num_visual_tokens)
        cells = [answer.text, "unknown" if answer.flops is None else f"{answer.flops / 1e9:.3g}"]
        cells += [f"{1000 * time:.0f}" for time in (answer.first_word, answer.seconds)] if rounds else ["…", "…"]
        row = "".join(f"<td>{html.escape(cell)}</td>" for cell in cells)
        rows.append(f'<tr><th scope="row">{number}</th>{row}</tr>')
    head = "".join(f'<th scope="col">{name}</th>' for name in COLUMNS)
    remark = paragraph(GUESS, "guess") if is_guess else ""
    times = f"Times: the median of {rounds} answers each, in turn, after a first one." if rounds else "Timing …"
    table = f"<table><tr>{head}</tr>{''.join(rows)}</table>"
    return f'{remark}<div class="answers" tabindex="0">{table}</div><p>{times}</p>'


def as_figures(parts: Sequence[tuple[str, Image.Image]], answer: Answer, is_guess: bool) -> str:
    """The heatmaps of an answer's parts, each with its name."""
    figures = []
    for number, (name, picture) in enumerate(parts, start=1):
        file = io.BytesIO()
        picture.save(file, "PNG")
        data, name = base64.b64encode(file.getvalue()).decode(), html.escape(name)
        alternative = f"Heatmap {number} of {len(parts)}: where {name} comes from"
        image = f'<img src="data:image/png;base64,{data}" alt="{alternative}">'
        figures.append(f"<figure>{image}<figcaption>{name}</figcaption></figure>")
    remark = paragraph(GUESS, "guess") if is_guess else ""
    return (
        f"{remark}<p>Answer with {answer.describe_number()}, part by part. Coloured: what makes this part likelier, "
        f'yellow the most. Grey: what plays no role.</p><div class="heatmaps">{"".join(figures)}</div>'
    )


def glossary(model) -> str:
    """What the page's words mean, in Markdown."""
    text = f"""\
- **Visual tokens**: what the language model reads of a picture, as if each were a word. This model makes up to
  {model.config.max_visual_tokens} of a picture. They are in order: the first hold the gist, further ones add detail.
- **Auto**: the model begins with few visual tokens, and takes more while it is not sure of its answer.
- **GFLOPs**: billions of additions and multiplications for one answer. They count the work, whatever the computer.
- **ms**: thousandths of a second, on the computer that serves this page.
"""
    if model.num_parameters() < TINY:
        millions = model.num_parameters() / 1e6
        text += f"""\
- **Why fewer tokens are hardly faster here**: this model is tiny, {millions:.1f} million parameters.
  Starting each step takes longer than its arithmetic. In models of billions of parameters the arithmetic decides, and
  fewer tokens save time too.
"""
    return text
