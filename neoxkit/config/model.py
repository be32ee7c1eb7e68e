"""ModelConfig: what the network computes, as a small tree of frozen nodes.

An option can only be set where it means something: a rotary base belongs to a rotary position, a
window to attention. Nothing here says how the model is run, or how another library spells it.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator


class Node(BaseModel):
    """A frozen node of a configuration; a key that it does not know is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True)


class Norm(Node):
    """The normalisation of each sublayer and before the head."""

    kind: Literal["layer", "rms"] = Field("layer", description="layer: LayerNorm; rms: RMSNorm.")
    eps: float = Field(1e-5, gt=0, description="Added to the variance.")
    bias: bool = Field(True, description="A bias beside the weight; LayerNorm only.")

    @model_validator(mode="after")
    def _bias_needs_layer_norm(self) -> Norm:
        if self.kind == "rms" and "bias" in self.model_fields_set and self.bias:
            raise ValueError("an RMSNorm has no bias; set bias: false")
        if self.kind == "rms" and self.bias:
            object.__setattr__(self, "bias", False)
        return self


class LinearScaling(Node):
    """Rotary positions divided by `factor` (position interpolation, arXiv 2306.15595)."""

    kind: Literal["linear"] = "linear"
    factor: float = Field(gt=0, description="Positions are divided by this.")


class Llama3Scaling(Node):
    """Llama 3.1's rotary scaling: low frequencies divided by `factor`, high ones kept, a ramp between."""

    kind: Literal["llama3"] = "llama3"
    factor: float = Field(gt=0, description="Low frequencies are divided by this.")
    low_freq_factor: float = Field(gt=0, description="Wavelengths above context / this are low frequencies.")
    high_freq_factor: float = Field(gt=0, description="Wavelengths below context / this are high frequencies.")
    original_context: int = Field(gt=0, description="Tokens of context before the scaling.")

    @model_validator(mode="after")
    def _ordered(self) -> Llama3Scaling:
        if self.high_freq_factor <= self.low_freq_factor:
            raise ValueError("high_freq_factor must be above low_freq_factor")
        return self


Scaling = Annotated[LinearScaling | Llama3Scaling, Field(discriminator="kind")]


class Rotary(Node):
    """Rotary positions (arXiv 2104.09864) over the first part of each head; pairs are (j, j + half)."""

    kind: Literal["rotary"] = "rotary"
    base: float = Field(10000.0, gt=0, description="Frequencies are base^(-2j / rotated dimensions).")
    fraction: float = Field(1.0, gt=0, le=1, description="The part of each head that is rotated.")
    scaling: Scaling | None = Field(None, description="How frequencies are stretched for a longer context.")


class Alibi(Node):
    """Attention scores lowered by distance, with a slope for each head (arXiv 2108.12409)."""

    kind: Literal["alibi"] = "alibi"


class Learned(Node):
    """A learned embedding for each position, added to the token's."""

    kind: Literal["learned"] = "learned"


class NoPosition(Node):
    """No position but what causal attention itself reveals."""

    kind: Literal["none"] = "none"


Position = Annotated[Rotary | Alibi | Learned | NoPosition, Field(discriminator="kind")]


class Attention(Node):
    """Grouped-query attention: kv_heads = heads is multi-head, kv_heads = 1 is multi-query."""

    kind: Literal["attention"] = "attention"
    heads: int = Field(gt=0, description="Query heads.")
    kv_heads: int = Field(gt=0, description="Key/value heads; divides heads. Equal to heads when left out.")
    head_dim: int = Field(gt=0, description="Elements of a head. width / heads when left out.")
    bias: bool = Field(True, description="Biases on the query, key and value projections.")
    out_bias: bool = Field(True, description="A bias on the output projection.")
    window: int | None = Field(
        None, gt=0, description="A token attends to itself and the window - 1 before it; null: to all before it."
    )
    qk_norm: bool = Field(False, description="RMSNorm on queries and keys before the rotation.")
    qk_norm_span: Literal["head", "all"] = Field(
        "head", description="What that norm is taken over: each head by itself, or all heads of a token together."
    )

    @model_validator(mode="after")
    def _groups(self) -> Attention:
        if self.heads % self.kv_heads:
            raise ValueError(f"kv_heads {self.kv_heads} does not divide heads {self.heads}")
        if self.qk_norm_span != "head" and not self.qk_norm:
            raise ValueError("qk_norm_span says how qk_norm is taken; set qk_norm: true")
        return self


class Mlp(Node):
    """The feed-forward sublayer: down(act(up x)), or down(act(gate x) * up x) when gated."""

    hidden: int = Field(gt=0, description="Rows of up (and of gate). 4 x width when left out.")
    gated: bool = Field(False, description="A gate beside the up projection (SwiGLU and the like).")
    activation: Literal["gelu", "gelu_tanh", "silu", "relu"] = Field(
        "gelu", description="gelu: the exact one (erf); gelu_tanh: the tanh approximation."
    )
    bias: bool = Field(True, description="Biases on all projections of the MLP.")


class SpecialTokens(Node):
    """Token ids that begin and end a text. They belong to the model: its weights were trained with them."""

    bos: int | None = Field(None, ge=0, description="Begins a text.")
    eos: tuple[int, ...] = Field((), description="Each ends a text.")
    pad: int | None = Field(None, ge=0, description="Fills a batch.")


class ModelConfig(Node):
    """A decoder-only language model.

    Raises pydantic's ValidationError, which `neoxkit.config.load` turns into a ConfigError with the
    file and line.
    """

    family: str = Field(description="The family whose spelling `export` uses unless told otherwise.")
    depth: int = Field(gt=0, description="Layers.")
    width: int = Field(gt=0, description="Elements of the residual stream.")
    vocab: int = Field(gt=0, description="Rows of the embedding, unpadded.")
    context: int = Field(gt=0, description="Tokens of the longest sequence.")
    tied: bool = Field(False, description="The head is the embedding, transposed.")
    residual: Literal["sequential", "parallel", "shared", "post"] = Field(
        "sequential",
        description="sequential: x += attn(norm1 x); x += mlp(norm2 x). parallel: x += attn(norm1 x) + mlp(norm2 x). "
        "shared: x += attn(norm1 x) + mlp(norm1 x). post: x += norm1(attn x); x += norm2(mlp x).",
    )
    embed_norm: bool = Field(False, description="A norm on the embedding too, before the first layer.")
    norm: Norm = Norm()
    position: Position = Rotary()
    mixer: Attention = Field(description="How tokens exchange information.")
    mlp: Mlp = Field(description="What is done to each token alone.")
    tokens: SpecialTokens = SpecialTokens()

    @model_validator(mode="before")
    @classmethod
    def _derive(cls, given: object) -> object:
        """Fill in what follows from the rest: kv_heads, head_dim, mlp.hidden."""
        if not isinstance(given, dict):
            return given
        data = dict(given)
        width, mixer, mlp = data.get("width"), data.get("mixer"), data.get("mlp", {})
        if isinstance(mixer, dict):
            mixer = dict(mixer)
            heads = mixer.get("heads")
            mixer.setdefault("kv_heads", heads)
            if isinstance(width, int) and isinstance(heads, int) and heads > 0 and "head_dim" not in mixer:
                if width % heads:
                    raise ValueError(f"width {width} does not divide into {heads} heads; set mixer.head_dim")
                mixer["head_dim"] = width // heads
            data["mixer"] = mixer
        if isinstance(mlp, dict) and isinstance(width, int):
            data["mlp"] = {"hidden": 4 * width, **mlp}
        return data

    @model_validator(mode="after")
    def _related(self) -> ModelConfig:
        if isinstance(self.position, Rotary):
            try:
                rotated = self.rotated
            except OverflowError:  # beyond 1e308, and no ValueError
                raise ValueError("mixer.head_dim is beyond all reason; lower it") from None
            if rotated < 2 or rotated % 2:
                raise ValueError(
                    f"position.fraction {self.position.fraction} of head_dim {self.mixer.head_dim} "
                    f"is {rotated} dimensions; rotary needs an even number of at least 2"
                )
        for name in ("bos", "pad"):
            token = getattr(self.tokens, name)
            if token is not None and token >= self.vocab:
                raise ValueError(f"tokens.{name} {token} is not below vocab {self.vocab}")
        return self

    @property
    def rotated(self) -> int:
        """Dimensions of each head that rotary positions turn; 0 with other positions."""
        if not isinstance(self.position, Rotary):
            return 0
        return int(self.mixer.head_dim * self.position.fraction)
