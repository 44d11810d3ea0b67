"""sepnb-weights: trained weights as a package of their own, so that an installation needs no network afterwards. `make wheels` puts them here and builds it."""
import json
from pathlib import Path

import setuptools

here = Path(__file__).parent
cards = {p.parent.name: json.loads(p.read_text(encoding="utf-8")) for p in sorted((here / "sepnb_weights").glob("*/model.json"))}
if not cards: raise SystemExit("no weights in weights/sepnb_weights: run `make wheels`, or: sepnb weights install spleeter-2stems -o weights/sepnb_weights/spleeter-2stems")
about = [f"## {name}\n\n{card.get('credit', '')}\n\nLicence: {card['licence']}\n\n{card.get('licence_text', '')}" for name, card in cards.items()]
setuptools.setup(
    name="sepnb-weights", version="1.0.0", description=f"Weights for sepnb: {', '.join(cards)}", license=" AND ".join(sorted({c["licence"] for c in cards.values()})),
    long_description="# Weights for sepnb\n\n" + "\n\n".join(about), long_description_content_type="text/markdown",
    packages=["sepnb_weights"], package_data={"sepnb_weights": ["*/model.json", "*/model.safetensors"]}, python_requires=">=3.11", zip_safe=False)
