"""What a renderable prints without colour."""

from io import StringIO

from rich.console import Console, RenderableType


def rendered(view: RenderableType, width: int = 100) -> str:
    """The printed text; spaces at line ends, which nobody sees, are cut off."""
    console = Console(file=StringIO(), width=width, color_system=None, record=True)
    console.print(view)
    return "\n".join(line.rstrip() for line in console.export_text().splitlines()) + "\n"
