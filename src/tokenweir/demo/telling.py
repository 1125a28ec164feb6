"""What the demo says: rich on a terminal, plain lines elsewhere."""

from __future__ import annotations

import contextlib
from collections.abc import Generator, Sequence

from rich.console import Console
from rich.text import Text


class Teller:
    """Tells a story in numbered steps."""

    def __init__(self, console: Console, *, steps: int) -> None:
        self._console = console
        self._steps = steps
        self._step = 0

    def step(self, title: str, why: str) -> None:
        """Begin the next step."""
        self._step += 1
        self._console.print()
        self._line(Text(f"{self._step}/{self._steps}  {title}", style="bold cyan"))
        self._line(Text(f"     {why}", style="dim"))

    def command(self, line: str) -> None:
        """Show a command that is about to run, as it can be typed."""
        self._line(Text(f"     $ {line}", style="green"))

    def note(self, text: str, *, style: str = "") -> None:
        """Say one thing."""
        self._line(Text(f"     {text}", style=style))

    def warn(self, text: str) -> None:
        """Say one thing that the user should not overlook."""
        self._line(Text(f"     ! {text}", style="yellow"))

    def text(self, block: str) -> None:
        """Show what a command printed, line by line."""
        for line in block.strip("\n").splitlines():
            self._line(Text(f"     │ {line}"))

    def table(self, header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        """Show a table; the first column is text, the others numbers."""
        widths = [max(len(cell) for cell in column) for column in zip(header, *rows, strict=True)]
        for number, row in enumerate((header, *rows)):
            first, *others = zip(row, widths, strict=True)
            cells = [first[0].ljust(first[1]), *(cell.rjust(width) for cell, width in others)]
            self.note("  ".join(cells).rstrip(), style="" if number else "bold")

    @contextlib.contextmanager
    def busy(self, text: str) -> Generator[None]:
        """Show on a terminal that something goes on while the block runs; elsewhere say it once."""
        if self._console.is_terminal:
            with self._console.status(text):
                yield
        else:
            self.note(text)
            yield

    def _line(self, text: Text) -> None:
        # Long lines hold paths and commands: whoever copies them wants them whole.
        self._console.print(text, soft_wrap=True)
