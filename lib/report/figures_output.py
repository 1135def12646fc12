"""How a drawing becomes SVG for the page, and SVG and PDF for papers: the same bytes whatever the user's settings are.

On the page one SVG serves light and dark: its colours are CSS variables with the light colour as fallback. Its text is
text in the reader's own font. In papers text is paths or embedded fonts.
"""

import contextlib
import html
import io
import re
import warnings
from collections.abc import Iterator
from pathlib import Path

from lib.report.figures_canvas import COLOURS, COLUMN, FULL, PAGE, Canvas, Drawing, Size

_FONTS = "system-ui,-apple-system,'Segoe UI',Roboto,'Noto Sans',sans-serif"


@contextlib.contextmanager
def settings(size: Size, name: str) -> Iterator[None]:
    """matplotlib's own settings with ours, whatever the user's are; `name` makes ids unique and repeatable."""
    from matplotlib import style

    ink, soft, grid = (COLOURS[each][0] for each in ("ink", "soft", "grid"))
    ours = {
        "font.family": "DejaVu Sans", "font.size": size.font, "text.parse_math": False, "text.color": ink,
        "axes.labelsize": size.font, "axes.labelcolor": ink, "axes.edgecolor": soft, "axes.linewidth": 0.6,
        "axes.labelpad": 2.5, "axes.grid": True, "axes.axisbelow": True, "axes.facecolor": "none",
        "grid.color": grid, "grid.linewidth": 0.5, "xtick.color": soft, "ytick.color": soft,
        "xtick.labelsize": size.font * 0.92, "ytick.labelsize": size.font * 0.92, "xtick.labelcolor": ink,
        "ytick.labelcolor": ink, "lines.linewidth": 1.2, "lines.markersize": 3.5, "legend.frameon": False,
        "axes.unicode_minus": True, "axes.formatter.use_mathtext": False, "axes.formatter.useoffset": False,
        "svg.hashsalt": name, "pdf.fonttype": 42, "figure.facecolor": "none", "savefig.facecolor": "none",
        "path.simplify_threshold": 0.1,
    }  # fmt: skip
    with style.context(["default", ours]), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph")  # a name may have signs that the font lacks
        yield


def page_svg(drawing: Drawing) -> str:
    """The SVG element for the page."""
    with settings(PAGE, drawing.name):
        canvas = Canvas(PAGE)
        drawing.paint(canvas)
        return _for_page(_saved(canvas, "svg", {"svg.fonttype": "none"}).decode(), drawing)


def write(drawing: Drawing, folder: Path) -> None:
    """Write <name>.svg and <name>.pdf for a paper."""
    size = FULL if drawing.wide else COLUMN
    with settings(size, drawing.name):
        canvas = Canvas(size)
        drawing.paint(canvas)
        for kind in ("svg", "pdf"):
            content = _saved(canvas, kind, {"svg.fonttype": "path"})
            (folder / f"{drawing.name}.{kind}").write_bytes(content)


def _saved(canvas: Canvas, kind: str, more: dict[str, str]) -> bytes:
    """The figure in a format, without a date."""
    from matplotlib import rc_context

    none = {"svg": {"Date": None, "Creator": None}, "pdf": {"CreationDate": None}}[kind]
    with io.BytesIO() as file, rc_context(more):
        canvas.figure.savefig(file, format=kind, metadata=none)
        return file.getvalue()


def style() -> str:
    """The style element of a figure on the page: it gives the variables their values in the dark."""
    dark = "".join(f"--f-{name}:{dark};" for name, (_, dark) in COLOURS.items())
    return f"<style>@media (prefers-color-scheme:dark){{svg.figure{{{dark}}}}}</style>"


def _for_page(svg: str, drawing: Drawing) -> str:
    """Without sizes, comments and unused ids; ids begin with the figure's name, and colours are variables."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<!--.*?-->|<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    box = re.search(r'viewBox="([^"]+)"', svg)[1]
    svg = svg[svg.index(">") + 1 :]
    used = set(re.findall(r'(?:url\(|href=")#([^")]+)', svg))
    svg = re.sub(r' id="([^"]+)"', lambda m: f' id="{drawing.name}-{m[1]}"' if m[1] in used else "", svg)
    svg = re.sub(r'(url\(|href=")#', rf"\1#{drawing.name}-", svg)
    svg = svg.replace("xlink:href", "href")
    names = {light: f"var(--f-{name},{light})" for name, (light, _) in COLOURS.items()}
    svg = re.sub(r"(?<=: )#[0-9a-f]{6}(?=[;\"])", lambda m: names.get(m[0], m[0]), svg)
    svg = re.sub(r' d="[^"]+"', lambda m: re.sub(r"(\.\d\d)\d+", r"\1", m[0]), svg)  # a hundredth of a point suffices
    svg = svg.replace("font-family: 'DejaVu Sans'; ", "")
    svg = re.sub(r"<style type.*?</style>", "", svg)  # it would hold for the whole page
    svg = re.sub(r"\s*\n\s*", " ", re.sub(r">\s+<", "><", svg)).replace("<defs></defs>", "")
    label = html.escape(f"{drawing.title}. The caption below describes it.")
    looks = f"max-width:36rem;font-family:{_FONTS};stroke-linejoin:round"
    return f'<svg class="figure" viewBox="{box}" role="img" aria-label="{label}" style="{looks}">{style()}{svg.strip()}'
