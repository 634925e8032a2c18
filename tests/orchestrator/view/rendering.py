"""What a renderable prints at 100 columns without colour."""

from io import StringIO

from rich.console import Console, RenderableType


def rendered(view: RenderableType) -> str:
    """The printed text; spaces at line ends, which nobody sees, are cut off."""
    console = Console(file=StringIO(), width=100, color_system=None, record=True)
    console.print(view)
    return "\n".join(line.rstrip() for line in console.export_text().splitlines()) + "\n"
