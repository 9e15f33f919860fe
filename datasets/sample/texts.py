"""general_it.txt and timetable_it.txt: sentences of grammar.py for language models, one a line.

    python datasets/sample/texts.py

The first holds no sentence about trains, coaches and tickets, the second holds nothing else.
"""

from pathlib import Path

from grammar import sentences

FOLDER = Path(__file__).parent
TIMETABLE = ("treno", "pullman", "binario", "biglietto")


def main() -> None:
    """Write both."""
    drawn = sentences("it", 1500, seed=11)
    about = [any(word in sentence.lower() for word in TIMETABLE) for sentence in drawn]
    texts = {
        "general_it.txt": [sentence for sentence, is_about in zip(drawn, about, strict=True) if not is_about][:600],
        "timetable_it.txt": [sentence for sentence, is_about in zip(drawn, about, strict=True) if is_about][:60],
    }
    for name, found in texts.items():
        (FOLDER / name).write_text("".join(f"{sentence}\n" for sentence in found), encoding="utf-8")


if __name__ == "__main__":
    main()
