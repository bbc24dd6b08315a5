"""Numbers of things in notes and messages."""


def number_of(count: int, noun: str) -> str:
    """Return a number with its noun in the singular or plural: "1 image", "2,000 images"."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"
