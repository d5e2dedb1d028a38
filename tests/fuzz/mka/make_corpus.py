"""Write the corpus from the captured MKPDUs: `python tests/fuzz/mka/make_corpus.py`."""

import json
from pathlib import Path

from router.mka.mkpdu import Frame

HERE = Path(__file__).parent
VECTORS = HERE.parents[1] / "vectors" / "mka"
OUR_MI = b"\x55" * 12
"""What the target's entropy gives."""


def main() -> None:
    """One input per kind of frame, and whole conversations in which the target's KaY is the other side."""
    corpus = HERE / "corpus"
    corpus.mkdir(exist_ok=True)
    for path in sorted(VECTORS.glob("mkpdu_*.json")):
        data = json.loads(path.read_text())
        kinds = set()
        for entry in data["frames"]:
            octets = bytes.fromhex(entry["frame"])
            kind = "-".join(str(s["type"]) for s in entry["decoded"]["sets"]) or "basic"
            if kind not in kinds:
                kinds.add(kind)
                (corpus / f"{path.stem}-wire-{kind}").write_bytes(b"\0" + octets)
        mis = {
            frame["decoded"]["sa"]: bytes.fromhex(frame["decoded"]["basic"]["mi"]) for frame in data["frames"]
        }
        mine, other = mis.pop("02000000000b"), mis.pop("02000000000a")
        for name, speaker, listener in (("b", mine, other), ("a", other, mine)):
            talk = b"\1"
            for entry in data["frames"]:
                if bytes.fromhex(entry["decoded"]["basic"]["mi"]) == speaker:
                    mkpdu = Frame.parse(bytes.fromhex(entry["frame"])).mkpdu.replace(listener, OUR_MI)
                    talk += len(mkpdu).to_bytes(2) + mkpdu
            (corpus / f"{path.stem}-talk-{name}").write_bytes(talk[:2000])


if __name__ == "__main__":
    main()
