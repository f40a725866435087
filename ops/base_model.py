"""Where the base model lies, and its kernel. Imports no torch; `learner.base` makes the embedded one."""

from hashlib import blake2b
from pathlib import Path

from feedback.config import Deployment
from ops.errors import NoBaseModel

EMBEDDED = "embedded"
SOURCES = (
    "learner/base.py",
    "learner/corpus.py",
    "learner/tokenizer.py",
    "learner/train_sft.py",
    "ops/simulation/helpdesk.py",
    "ops/simulation/topics.py",
)
"""Everything that decides the embedded model's weights; a change in any of them asks for a new model."""
PARTS = ("config.json", "tokenizer_config.json")
"""Files without which a folder is no model that can chat."""


def resolve(deployment: Deployment) -> Path:
    """The base model's folder, absolute.

    Raises: NoBaseModel when it is not made yet, or is no model directory.
    """
    if deployment.base_model == EMBEDDED:
        path = embedded_path(deployment)
        if not path.is_dir():
            raise NoBaseModel(f"the embedded base model is not made yet ({path}): run `ratchet learn base`")
        return path
    return verified(Path(deployment.base_model))


def embedded_path(deployment: Deployment) -> Path:
    """Where this release's embedded model belongs, made or not."""
    return (deployment.cache_dir / f"base-{fingerprint()}").absolute()


def verified(path: Path) -> Path:
    """`path`, absolute, if it looks like a Hugging Face model with weights and a tokenizer.

    Raises: NoBaseModel saying what is missing.
    """
    if not path.is_dir():
        raise NoBaseModel(f"base model {path}: there is no such folder")
    missing = [part for part in PARTS if not (path / part).is_file()]
    if missing:
        raise NoBaseModel(f"base model {path} has no {missing[0]}: it is no Hugging Face model directory")
    if not any(path.glob("*.safetensors")):
        raise NoBaseModel(f"base model {path} has no *.safetensors: weights in other formats are not loaded")
    return path.absolute()


def attention_kernel(config: object) -> str:
    """The fused one, except where scores are soft-capped (Gemma 2): it would leave the cap out unasked."""
    return "eager" if getattr(config, "attn_logit_softcapping", None) else "sdpa"


def fingerprint() -> str:
    """Twelve hex digits of the source files that the embedded model is made by."""
    root = Path(__file__).parent.parent
    digest = blake2b(digest_size=6)
    for source in SOURCES:
        digest.update(source.encode() + b"\0" + (root / source).read_bytes() + b"\0")
    return digest.hexdigest()
