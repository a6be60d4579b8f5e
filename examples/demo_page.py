"""The web demo's page: what it shows, and what its buttons do. `demo.py` serves it."""

import html
import json
from contextlib import contextmanager
from pathlib import Path

import gradio as gr
from demo_answers import Answerer
from demo_heatmaps import draw_answer
from demo_html import GUESS, as_figures, as_table, glossary, paragraph
from PIL import Image


REPOSITORY = Path(__file__).parents[1]
IMAGES = REPOSITORY / "examples" / "images"
MAX_QUESTION = 1000  # characters
DELETE_AFTER = 3600  # seconds
NUM_QUESTIONS = 5  # to try

# System fonts: no other server is asked for any. Blue and not orange: white is to be read on it.
THEME = gr.themes.Default(
    primary_hue="blue", font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"]
).set(
    body_text_color_subdued="*neutral_600",
    color_accent="*primary_700",
    slider_color="*primary_700",
    button_primary_background_fill="*primary_700",
    button_primary_background_fill_hover="*primary_800",
    button_primary_background_fill_dark="*primary_700",
    button_primary_background_fill_hover_dark="*primary_800",
)
STYLE = """
.dark { --color-accent: var(--primary-400); }
#picture img { width: 100%; height: 100%; object-fit: contain; }  /* small pictures as large as there is room */
#ask { align-self: end; }
#examples, #examples * { min-height: 0; }
#examples button { aspect-ratio: 1; height: auto; }
#examples .grid-container { grid-template-columns: repeat(4, minmax(0, 1fr)); }
.scope, .guess { border-left: 4px solid var(--color-accent); padding-left: 10px; margin: 0 0 10px; }
.guess { border-color: #D55E00; font-weight: 600; }
.answers { overflow-x: auto; }
.answers table { width: 100%; border-collapse: collapse; }
.answers th, .answers td { text-align: left; padding: 6px; border: 0; }
@media (max-width: 700px) { .answers table { font-size: 13px; } .answers th, .answers td { padding: 4px; } }
.answers tr { border-bottom: 1px solid var(--border-color-primary) !important; }
.heatmaps { display: grid; grid-template-columns: repeat(auto-fill, minmax(125px, 1fr)); gap: 10px; }
.heatmaps figure { margin: 0; }
.heatmaps img { width: 100%; }
"""

# On a phone the results lie below what is seen, and the last answer at the end of its conversation.
SHOW_RESULTS = """() => {
    const results = document.getElementById("results");
    results.scrollIntoView({behavior: "smooth", block: innerWidth < 700 ? "start" : "nearest"});
    for (const chat of results.querySelectorAll("[role=log]")) chat.scrollTop = chat.scrollHeight;
}"""

Turns = list[tuple[str, str, str, str]]  # picture, question, answer, what it took


@contextmanager
def errors_as_messages():
    """What is wrong with the input is shown on the page, until it is closed; what is there already stays."""
    try:
        yield
    except (ImportError, TypeError, ValueError) as error:
        gr.Warning(html.escape(str(error)), duration=None)
    except Exception as error:  # such as a lack of memory; the log has the rest
        raise gr.Error("This could not be answered. Try again, or with fewer tokens.", duration=None) from error


def show(turns: Turns) -> list[dict]:
    """A conversation as the chat displays it."""
    messages = []
    for _, question, answer, note in turns:
        messages.append({"role": "user", "content": question})
        messages.append({"role": "assistant", "content": answer + (f"\n\n{note}" if note else "")})
    return messages


def about(path: str | None, turns: Turns) -> Turns:
    """What was said of a picture. An answer about a new one may begin before the page knows that it has changed."""
    return [turn for turn in turns if turn[0] == path]


class Page:
    """The page around an [`Answerer`], and what its buttons do."""

    def __init__(self, answerer: Answerer):
        self.answerer = answerer

    def read(self, path: str | None) -> Image.Image:
        if not path:
            raise ValueError("Choose a picture first: upload one, take one, or pick an example.")
        return self.answerer.read_image(path)

    def look(self, path: str | None) -> str:
        """What is to be said of a picture before anything is asked about it."""
        known, notes = self.answerer.known_images, []
        if known is not None:
            notes.append(paragraph(f"This model knows only {known.description}, such as the examples.", "scope"))
        if path:
            try:
                if not self.answerer.is_known(self.read(path)):
                    notes.append(paragraph("This picture is nothing like them: every answer is a guess.", "guess"))
            except ValueError as error:
                notes.append(paragraph(str(error), "guess"))
        return "".join(notes)

    def ask(self, path: str | None, turns: Turns, question: str, budget: int, is_auto: bool):
        """The conversation with the new answer as it grows."""
        with errors_as_messages():
            image = self.read(path)
            guess = "" if self.answerer.is_known(image) else f"{GUESS}\n"
            turns = about(path, turns)
            said = [(asked, answered) for _, asked, answered, _ in turns]
            for answer in self.answerer.stream(image, said, question, "auto" if is_auto else int(budget)):
                note = "" if answer.seconds is None else guess + answer.describe()
                longer = [*turns, (path, question, answer.text, note)]
                yield show(longer), longer

    def change(self, path: str | None, turns: Turns):
        """What is left on the page when the picture changes."""
        kept = about(path, turns)
        return show(kept), kept, "", ""

    def compare(self, path: str | None, question: str, numbers: list[int | str]):
        """A row for each number of visual tokens, as they come."""
        with errors_as_messages():
            if not numbers:
                raise ValueError("Choose one number of visual tokens at least.")
            image = self.read(path)
            is_guess = not self.answerer.is_known(image)
            for answers, rounds in self.answerer.compare(image, question, numbers):
                yield as_table(answers, rounds, is_guess)

    def explain(self, path: str | None, question: str, budget: int, is_auto: bool, progress=gr.Progress()):  # noqa: B008
        """The heatmaps of the answer. Gradio passes `progress` to whatever has such a default."""
        with errors_as_messages():
            image, answerer = self.read(path), self.answerer
            answer = answerer.answer(image, question, "auto" if is_auto else int(budget))

            def track(parts):
                return progress.tqdm(parts, desc="Heatmaps, one for each part of the answer")

            parts = draw_answer(
                answerer.model, answerer.processor, image, question, answer.text, answer.num_visual_tokens, track
            )
            return as_figures(parts, answer, not answerer.is_known(image))

    def build(self) -> gr.Blocks:
        most = self.answerer.max_visual_tokens
        budgets = sorted({2**power for power in range(0, most.bit_length(), 1 if most < 64 else 2)} | {most})
        examples = json.loads((IMAGES / "questions.json").read_text())
        paths = [str(IMAGES / name) for name in examples]
        questions = [question for asked in examples.values() for question, _ in asked][:NUM_QUESTIONS]
        with gr.Blocks(title="MQT-LLaVA", analytics_enabled=False, delete_cache=(60, DELETE_AFTER)) as page:
            gr.Markdown(
                "# Ask about a picture\nMQT-LLaVA turns a picture into visual tokens and answers from those. You "
                f"choose how many: 1 to {most}. Fewer take less computation, more show what stands where."
            )
            turns = gr.State([])
            with gr.Row():
                with gr.Column(min_width=300):
                    picture = gr.Image(
                        paths[0],
                        label="Picture",
                        type="filepath",
                        sources=["upload", "webcam", "clipboard"],
                        height=280,
                        elem_id="picture",
                        buttons=["fullscreen"],
                        alt_text="The picture that the questions are about",
                    )
                    # Gradio would open the file itself, and of one that it cannot open say where it lies.
                    picture.preprocess = lambda payload: payload and payload.path
                    notes = gr.HTML(self.look(paths[0]), apply_default_css=False)
                    gallery = gr.Gallery(
                        paths,
                        label="Examples",
                        show_label=False,
                        columns=4,
                        height=None,
                        object_fit="contain",
                        allow_preview=False,
                        interactive=False,
                        buttons=[],
                        elem_id="examples",
                    )
                    to_try = gr.Dataset(
                        components=["textbox"], samples=[[text] for text in questions], label="Questions to try"
                    )
                with gr.Column(min_width=300):
                    budget = gr.Slider(1, most, value=most, step=1, label="Visual tokens")
                    is_auto = gr.Checkbox(label="Auto: as many as the question needs")
                    with gr.Row():
                        question = gr.Textbox(
                            examples[Path(paths[0]).name][-1][0],
                            label="Question",
                            max_length=MAX_QUESTION,
                            scale=4,
                            min_width=260,
                        )
                        send = gr.Button("Ask", variant="primary", scale=1, min_width=80, elem_id="ask")
                    with gr.Tabs(elem_id="results") as tabs:
                        with gr.Tab("Answer", id="answer"):
                            chat = gr.Chatbot(
                                label="Conversation",
                                show_label=False,
                                height=None,
                                min_height=120,
                                max_height=520,
                                placeholder="The answer will be here.",
                                render_markdown=False,
                                buttons=["copy"],
                            )
                            with gr.Row():
                                stop = gr.Button("Stop", size="sm")
                                clear = gr.Button("New conversation", size="sm")
                        with gr.Tab("Side by side", id="compare"):
                            compared = gr.CheckboxGroup(
                                [*((str(m), m) for m in budgets), ("auto", "auto")],
                                value=[*budgets, "auto"],
                                label="Visual tokens",
                            )
                            compare = gr.Button("Ask with each of these numbers", variant="primary")
                            table = gr.HTML(apply_default_css=False)
                        with gr.Tab("Heatmap", id="heatmap"):
                            explain = gr.Button("Show where the answer comes from", variant="primary")
                            heatmap = gr.HTML(apply_default_css=False)
            with gr.Accordion("What do the numbers mean?", open=False):
                gr.Markdown(glossary(self.answerer.model))

            # One answer at a time: they share a model.
            model = {"concurrency_limit": 1, "concurrency_id": "model"}
            asked = [send.click, question.submit]
            gr.on(asked, lambda: gr.Tabs(selected="answer"), None, tabs, queue=False)
            answering = gr.on(asked, self.ask, [picture, turns, question, budget, is_auto], [chat, turns], **model)
            stop.click(None, cancels=answering)
            comparing = compare.click(self.compare, [picture, question, compared], table, **model)
            explaining = explain.click(self.explain, [picture, question, budget, is_auto], heatmap, **model)
            gr.on(asked, None, js=SHOW_RESULTS)
            for event in (answering, comparing, explaining):  # their results are larger
                event.then(None, js=SHOW_RESULTS)
            to_try.click(lambda sample: sample[0], to_try, question, queue=False)

            def pick(event: gr.SelectData) -> str:
                return paths[event.index]

            gallery.select(pick, None, picture, trigger_mode="always_last")
            picture.change(self.look, picture, notes)
            results = [chat, turns, table, heatmap]
            picture.change(self.change, [picture, turns], results)
            gr.on([chat.clear, clear.click], lambda: ([], [], "", ""), None, results)
            is_auto.change(lambda is_auto: gr.update(interactive=not is_auto), is_auto, budget)
        return page
