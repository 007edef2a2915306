"""Options of the network."""

from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

from margin_jax.choices import OWN, check_choice, one_of
from margin_jax.config.option import Option
from margin_jax.models import DTYPES, ENCODERS, PRETRAINED, parse_encoder, resolve_encoder

# Parameters of encoders that have an option of their own, with what they are unless they are said.
_ENCODER_OPTIONS = {"width": 1.0, "small_stem": False, "dtype": "float32"}
_WIDEST = 100
_WITHOUT_A_TRUNK = ("small_cnn", "head", "linear")


def free_of_encoder(encoder: str | None) -> dict[str, Any]:
    """Options that its text says, with their usual values: what is left when another takes over.

    Raises:
        ValueError: as :func:`~margin_jax.models.resolve_encoder`.
    """
    said = {} if encoder in (None, OWN) else parse_encoder(str(encoder))[1]
    return {option: usual for option, usual in _ENCODER_OPTIONS.items() if option in said}


@dataclass(frozen=True, kw_only=True)
class NetworkConfig:
    """The encoder and the weights that it begins with."""

    PANEL: ClassVar[str] = "Network"

    encoder: Annotated[
        str | None,
        Option(
            "The network: NAME or NAME:KEY=VALUE,..., as in nn2:small_stem=true; small_stem, "
            "width and dtype are also options. Default of train: small_cnn; head for vectors. "
            f"{one_of(ENCODERS)}",
        ),
    ] = None
    pretrained: Annotated[
        bool,
        Option(
            "Start from pretrained weights of the Hugging Face hub. Available for "
            f"{', '.join(PRETRAINED)}.",
        ),
    ] = False
    weights: Annotated[
        str | None,
        Option("Start from the weights in a safetensors file with the same tensors.", is_path=True),
    ] = None
    freeze: Annotated[
        int,
        Option("Train only the head for this many epochs, then the whole network."),
    ] = 0
    small_stem: Annotated[
        bool,
        Option(
            "For 28 to 64 pixels: no downsampling in the first layer (most convolutional encoders)."
        ),
    ] = False
    width: Annotated[float, Option("small_cnn: multiplies its 32, 64, 128 and 128 channels.")] = 1.0
    dtype: Annotated[str, Option(f"The dtype of the computation. {one_of(DTYPES)}")] = "float32"
    embedding_size: Annotated[int, Option("Length of an embedding.", 1, 2**16)] = 128

    def _check_network(self) -> None:
        """Also that options are ones that the encoder has; and keeps what its text says of them."""
        own = self.encoder == OWN
        if self.encoder_name in _WITHOUT_A_TRUNK and self.freeze:
            raise ValueError(
                f"freeze is for encoders with a head of their own; got {self.encoder_name}"
            )
        name, values = (OWN, {}) if own else self.encoder_parameters()
        for option, usual in _ENCODER_OPTIONS.items():
            given = getattr(self, option)
            if option in values and given in (usual, values[option]):
                object.__setattr__(self, option, values[option])
            elif option in values:
                raise ValueError(
                    f"{option} must be {values[option]}, as encoder {self.encoder} says; "
                    f"got {given}"
                )
            elif given != usual:
                having = [n for n, named in ENCODERS.items() if option in named.parameters]
                raise ValueError(
                    f"{option} is for {', '.join(having or ENCODERS)}; got it with encoder {name}"
                )
        check_choice("dtype", self.dtype, DTYPES)
        if not 0 < self.width <= _WIDEST:
            raise ValueError(f"width must be above 0 and at most {_WIDEST}; got {self.width}")
        if self.begins_with_weights:
            check_choice("--encoder with pretrained weights", self.encoder_name, PRETRAINED)
        if self.pretrained and self.weights is not None:
            raise ValueError("pretrained and weights cannot be used together")

    @property
    def encoder_name(self) -> str:
        """The encoder's name, or "own"."""
        return str(self.encoder).partition(":")[0]

    def encoder_parameters(self) -> tuple[str, dict[str, Any]]:
        """The encoder's name, and the value of each of its parameters; not of one's own."""
        options = {name: getattr(self, name) for name in _ENCODER_OPTIONS}
        return resolve_encoder(str(self.encoder), options)

    @property
    def begins_with_weights(self) -> bool:
        """Whether the network is not drawn at random."""
        return self.pretrained or self.weights is not None
