"""The web demo's page: what it shows, and what its buttons do. `demo.py` serves it."""

import base64
import html
import io
import json
from contextlib import contextmanager
from pathlib import Path

import gradio as gr
from demo_answers import Answerer


REPOSITORY = Path(__file__).parents[1]
IMAGES = REPOSITORY / "examples" / "images"
MAX_QUESTION = 1000  # characters
DELETE_AFTER = 3600  # seconds
NUM_QUESTIONS = 5  # to try

# Small pictures are shown as large as there is room.
STYLE = "#picture img { width: 100%; height: 100%; object-fit: contain; }"

Turns = list[tuple[str, str, str]]  # question, answer, what it took


@contextmanager
def errors_as_messages():
    """What is wrong with the input is shown on the page, until it is closed."""
    try:
        yield
    except (ImportError, TypeError, ValueError) as error:
        raise gr.Error(str(error), duration=None, print_exception=False) from error
    except Exception as error:  # such as a lack of memory; the log has the rest
        raise gr.Error("This could not be answered. Try again, or with fewer tokens.", duration=None) from error


def show(turns: Turns) -> list[dict]:
    """A conversation as the chat displays it."""
    messages = []
    for question, answer, note in turns:
        messages.append({"role": "user", "content": question})
        messages.append({"role": "assistant", "content": answer + (f"\n\n{note}" if note else "")})
    return messages


def as_image_tag(figure, alternative: str) -> str:
    """A matplotlib figure for the page, with a text for those who do not see it."""
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=100)
    data = base64.b64encode(file.getvalue()).decode()
    return f'<img src="data:image/png;base64,{data}" alt="{html.escape(alternative)}" style="max-width: 100%">'


class Page:
    """The page around an [`Answerer`], and what its buttons do."""

    def __init__(self, answerer: Answerer):
        self.answerer = answerer

    def read(self, path: str | None):
        if not path:
            raise ValueError("Choose a picture first: upload one, take one, or pick an example.")
        return self.answerer.read_image(path)

    def ask(self, path: str | None, turns: Turns, question: str, budget: int, is_auto: bool):
        """The conversation with the new answer as it grows."""
        with errors_as_messages():
            image = self.read(path)
            said = [(asked, answered) for asked, answered, _ in turns]
            for answer in self.answerer.stream(image, said, question, "auto" if is_auto else int(budget)):
                note = ""
                if answer.seconds is not None:
                    # The levels below the chosen one are in its time, but not in its FLOPs.
                    note = f"auto: {answer.describe()} at that number" if is_auto else answer.describe()
                longer = [*turns, (question, answer.text, note)]
                yield show(longer), longer, ""

    def compare(self, path: str | None, question: str, budgets: list[int]):
        """A row for each number of visual tokens, as they come."""
        with errors_as_messages():
            if not budgets:
                raise ValueError("Choose one number of visual tokens at least.")
            image, rows = self.read(path), []
            for answer in self.answerer.compare(image, question, budgets):
                flops = "unknown" if answer.flops is None else f"{answer.flops / 1e9:.3g}"
                times = f"{1000 * answer.first_token:.0f}", f"{1000 * answer.seconds:.0f}"
                rows.append([str(answer.num_visual_tokens), answer.text, *times, flops])
                yield rows

    def explain(self, path: str | None, question: str, budget: int) -> str:
        with errors_as_messages():
            figure, text = self.answerer.heatmap(self.read(path), question, int(budget))
            return as_image_tag(figure, f"Heatmaps over the picture, one for each of the first words of: {text}")

    def check(self, path: str | None) -> None:
        """Says at once what is wrong with a picture."""
        if path:
            with errors_as_messages():
                self.read(path)

    def build(self) -> gr.Blocks:
        most = self.answerer.max_visual_tokens
        budgets = sorted({2**power for power in range(0, most.bit_length(), 1 if most < 64 else 2)} | {most})
        examples = json.loads((IMAGES / "questions.json").read_text())
        paths = [str(IMAGES / name) for name in examples]
        questions = [question for asked in examples.values() for question, _ in asked][:NUM_QUESTIONS]
        with gr.Blocks(title="MQT-LLaVA", analytics_enabled=False, delete_cache=(60, DELETE_AFTER)) as page:
            gr.Markdown(
                "# MQT-LLaVA\nAsk about a picture, and choose how many visual tokens the model may look at: "
                f"1 to {most}. Few are quick and see what is there, many see what stands where."
            )
            turns = gr.State([])
            with gr.Row():
                with gr.Column(min_width=300):
                    picture = gr.Image(
                        label="Picture",
                        type="filepath",
                        sources=["upload", "webcam", "clipboard"],
                        height=320,
                        elem_id="picture",
                        alt_text="The picture that the questions are about",
                    )
                    # Gradio would open the file itself, and of one that it cannot open say where it lies.
                    picture.preprocess = lambda payload: payload and payload.path
                    gr.Markdown("Examples: photos of clothes, which the embedded model knows.")
                    gallery = gr.Gallery(
                        [(path, f"Clothes {number}") for number, path in enumerate(paths, start=1)],
                        label="Examples",
                        show_label=False,
                        columns=4,
                        height=130,
                        allow_preview=False,
                        interactive=False,
                        buttons=[],
                    )
                with gr.Column(min_width=300):
                    budget = gr.Slider(1, most, value=most, step=1, label="Visual tokens")
                    is_auto = gr.Checkbox(label="Auto: as many as the question needs")
                    question = gr.Textbox(
                        label="Question", max_length=MAX_QUESTION, placeholder="What is in the top left?"
                    )
                    gr.Examples([[text] for text in questions], question, label="Questions to try")
            with gr.Tab("Chat"):
                chat = gr.Chatbot(label="Conversation", height=460, render_markdown=False, buttons=["copy"])
                with gr.Row():
                    send = gr.Button("Ask", variant="primary")
                    stop = gr.Button("Stop")
                    clear = gr.Button("New conversation")
            with gr.Tab("Side by side"):
                compared = gr.CheckboxGroup([(str(m), m) for m in budgets], value=budgets, label="Visual tokens")
                compare = gr.Button("Ask with each of these numbers", variant="primary")
                table = gr.Dataframe(
                    headers=["m", "answer", "first token, ms", "all, ms", "GFLOPs"],
                    datatype="str",
                    interactive=False,
                    wrap=True,
                    label="Answers",
                )
            with gr.Tab("Heatmap"):
                explain = gr.Button("Show where the answer comes from", variant="primary")
                heatmap = gr.HTML(label="Heatmap")

            # One answer at a time: they share a model.
            model = {"concurrency_limit": 1, "concurrency_id": "model"}
            answering = gr.on(
                [send.click, question.submit],
                self.ask,
                [picture, turns, question, budget, is_auto],
                [chat, turns, question],
                **model,
            )
            stop.click(None, cancels=answering)
            compare.click(self.compare, [picture, question, compared], table, **model)
            explain.click(self.explain, [picture, question, budget], heatmap, **model)

            def pick(event: gr.SelectData) -> str:
                return paths[event.index]

            gallery.select(pick, None, picture)
            picture.upload(self.check, picture)
            for event in (picture.change, chat.clear, clear.click):
                event(lambda: ([], [], [], ""), None, [chat, turns, table, heatmap])
            is_auto.change(lambda is_auto: gr.update(interactive=not is_auto), is_auto, budget)
        return page
