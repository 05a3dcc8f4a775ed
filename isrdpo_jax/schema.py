"""What can be configured: one strict model per section, each field with its meaning.

Pure declarations; `config.py` reads files into them. Unknown keys, numbers written as strings, booleans for numbers,
infinities and NaN are refused. All sections are frozen; the model's is hashable, to be a static argument of `jax.jit`.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

Positive = Annotated[int, Field(ge=1)]
NonNegative = Annotated[int, Field(ge=0)]
PositiveFloat = Annotated[float, Field(gt=0)]
NonNegativeFloat = Annotated[float, Field(ge=0)]
Fraction = Annotated[float, Field(ge=0, le=1)]
AxisSize = Annotated[int, Field(ge=-1)]
AttentionKind = Literal["auto", "xla", "cpu", "splash", "cudnn"]
Remat = Literal["none", "dots", "full"]


# CLIP's channel statistics, RGB, of pixels in [0, 1] (arXiv 2103.00020): what every tower here was trained with.
PIXEL_MEAN = (0.48145466, 0.4578275, 0.40821073)
PIXEL_STD = (0.26862954, 0.26130258, 0.27577711)


class Section(BaseModel):
    """Base of every section: strict types, no unknown keys, immutable, finite numbers."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True, allow_inf_nan=False, protected_namespaces=())


class VisionConfig(Section):
    """A tower: a CLIP-style ViT, for videos with an optional temporal attention in every layer (LanguageBind)."""

    image_size: Positive = Field(224, description="Side of the square that the tower sees, pixels.")
    patch_size: Positive = Field(14, description="Side of a patch, pixels.")
    hidden_size: Positive = 1024
    intermediate_size: Positive = 4096
    num_layers: Positive = Field(
        24, description="Layers of the published tower; those behind the tapped one are not built."
    )
    num_heads: Positive = 16
    num_frames: Positive = Field(8, description="Frames per video (t).")
    temporal_attention: bool = True
    hidden_act: Literal["gelu", "quick_gelu"] = "gelu"
    layer_norm_eps: PositiveFloat = 1e-5
    feature_layer: int = Field(-2, description="Index into [embeddings, layer 1, ...]; -2 taps the last layer but one.")
    keep_cls: bool = Field(
        False, description="Keep the class token of every frame (2056 instead of 2048 visual tokens)."
    )

    @property
    def patches_per_frame(self) -> int:
        return (self.image_size // self.patch_size) ** 2

    @property
    def tokens_per_video(self) -> int:
        return self.num_frames * (self.patches_per_frame + int(self.keep_cls))

    @property
    def layers_built(self) -> int:
        """How many layers the tapped feature needs."""
        return range(self.num_layers + 1)[self.feature_layer]

    @model_validator(mode="after")
    def _check(self) -> VisionConfig:
        if self.image_size % self.patch_size:
            raise ValueError(f"image_size {self.image_size} is not a multiple of patch_size {self.patch_size}")
        if self.hidden_size % self.num_heads:
            raise ValueError(f"hidden_size {self.hidden_size} is not a multiple of num_heads {self.num_heads}")
        if not -self.num_layers - 1 <= self.feature_layer <= self.num_layers or self.layers_built == 0:
            raise ValueError(f"feature_layer {self.feature_layer} names no layer of {self.num_layers}")
        return self


class LlamaConfig(Section):
    """The LLaMA decoder."""

    vocab_size: Positive = 32000
    hidden_size: Positive = 4096
    intermediate_size: Positive = 11008
    num_layers: Positive = 32
    num_heads: Positive = 32
    num_kv_heads: Positive = 32
    rms_norm_eps: PositiveFloat = 1e-5
    rope_theta: PositiveFloat = 10000.0
    max_positions: Positive = Field(4096, description="Context window, positions (visual and text).")

    @property
    def head_dim(self) -> int:
        return self.hidden_size // self.num_heads

    @model_validator(mode="after")
    def _check(self) -> LlamaConfig:
        if self.hidden_size % self.num_heads or self.head_dim % 2:
            raise ValueError(f"hidden_size {self.hidden_size} does not give {self.num_heads} heads of an even size")
        if self.num_heads % self.num_kv_heads:
            raise ValueError(f"num_heads {self.num_heads} is not a multiple of num_kv_heads {self.num_kv_heads}")
        return self


class LoraConfig(Section):
    """Low-rank adapters of the decoder (arXiv 2106.09685), trained instead of it and merged into it at the end."""

    rank: Positive = Field(64, description="r; LLaVA-Hound's, where its recipe is told to use adapters.")
    alpha: PositiveFloat = Field(16.0, description="The adapters' product counts alpha / rank.")
    targets: tuple[Literal["q", "k", "v", "out", "gate", "up", "down"], ...] = Field(
        ("q", "k", "v", "out", "gate", "up", "down"), min_length=1, description="The matrices that get adapters."
    )

    @property
    def scale(self) -> float:
        return self.alpha / self.rank


class ModelConfig(Section):
    """A Video-LLaVA model: towers, two-layer GELU projector, decoder."""

    vision: VisionConfig = Field(VisionConfig(), description="The video tower.")
    image: VisionConfig | None = Field(
        None, description="The image tower: one frame, no temporal attention; none = the model has none."
    )
    llama: LlamaConfig = LlamaConfig()
    compute_dtype: Literal["float32", "bfloat16"] = Field(
        "float32", description="Dtype of matmuls; softmax, log-probs and losses are float32."
    )
    unroll_layers: bool = Field(
        False, description="Unroll the layer scan when compiling: slower to compile; may help small decoders on a CPU."
    )
    remat: Remat = Field(
        "none", description="What the backward pass computes again of each layer: nothing, all but matmuls, everything."
    )
    attention: AttentionKind = Field(
        "auto",
        description="Attention over whole rows: dense, few heads at a time (CPU), splash (TPU), cuDNN (GPU), or auto.",
    )

    lora: LoraConfig | None = Field(None, description="Adapters beside the decoder's matrices, while they are trained.")

    @model_validator(mode="after")
    def _check(self) -> ModelConfig:
        if self.image is None:
            return self
        if self.image.num_frames != 1 or self.image.temporal_attention:
            raise ValueError("image: the image tower has num_frames 1 and temporal_attention false")
        if self.image.hidden_size != self.vision.hidden_size:
            raise ValueError(
                f"image.hidden_size {self.image.hidden_size} is not vision.hidden_size {self.vision.hidden_size}: "
                "one projector serves both towers"
            )
        return self

    def on(self, platform: str) -> ModelConfig:
        """The model with `attention: auto` decided for a platform: `cpu`, or splash on a TPU that takes these heads.

        cuDNN is never chosen unasked: it has not been compared on a GPU yet.
        """
        if self.attention != "auto":
            return self
        splash = platform == "tpu" and self.llama.head_dim % 128 == 0
        return self.model_copy(update={"attention": "splash" if splash else "cpu" if platform == "cpu" else "xla"})


class ComputeConfig(Section):
    """How a run computes with its start policy's model; null is as that policy's `model.json` says."""

    dtype: Literal["float32", "bfloat16"] | None = Field(None, description="Dtype of matmuls (model.compute_dtype).")
    unroll_layers: bool | None = Field(None, description="Unroll the layer scan when compiling.")
    remat: Remat | None = Field(None, description="What the backward pass computes again (model.remat).")
    attention: AttentionKind | None = Field(None, description="Attention over whole rows (model.attention).")

    def applied_to(self, model: ModelConfig) -> ModelConfig:
        ours = {
            "compute_dtype": self.dtype,
            "unroll_layers": self.unroll_layers,
            "remat": self.remat,
            "attention": self.attention,
        }
        return model.model_copy(update={key: value for key, value in ours.items() if value is not None})


class RunConfig(Section):
    name: str = Field("run", min_length=1, pattern=r"^[A-Za-z0-9._-]+$", description="Folder name of the run.")
    dir: str = Field("runs", description="Where runs are kept.")
    seed: NonNegative = 0
    iterations: Positive = Field(9, description="N: how often the policy is improved. The paper uses nine.")


HoundTestSet = Literal[
    "webvid", "vidal", "actnet", "msvd", "msrvtt", "tgif", "ssv2", "msvd_official", "msrvtt_official", "tgif_official"
]
"""LLaVA-Hound's held-out questions; the official ones have short answers and no captions."""


class DataConfig(Section):
    dataset: Literal["shapes_world", "video_qa", "llava_hound"] = "shapes_world"
    dir: str = Field("data", description="Where prepared data sets (ArrayRecord) are kept.")
    path: str | None = Field(
        None,
        description="video_qa: JSONL or CSV of `video, question[, id, answer, caption]`; videos relative to it. "
        "llava_hound: the folder with its video_data and video_instruction.",
    )
    eval_path: str | None = Field(None, description="video_qa: the same for held-out questions; none = no evaluation.")
    test_sets: tuple[HoundTestSet, ...] = Field(
        (), description="llava_hound: the held-out questions; none = no evaluation."
    )
    train_videos: Positive = Field(512, description="shapes_world: videos in the training split.")
    eval_videos: NonNegative = Field(256, description="shapes_world: videos in the held-out split.")
    sft_videos: NonNegative = Field(0, description="shapes_world: videos in the split for supervised training.")
    world_seed: NonNegative = Field(0, description="shapes_world: seed of the scenes.")
    on_bad_record: Literal["skip", "fail"] = Field(
        "skip", description="A bad row or video: skip and count it, or stop with file and line."
    )
    max_bad_fraction: Fraction = Field(
        0.05, description="More bad rows or videos than this share stop the run before compute is spent."
    )
    decode_timeout_s: PositiveFloat = Field(30.0, description="Seconds a decoder may take for one video.")
    feature_cache: PositiveFloat | None = Field(
        None,
        description="GiB of disk under data.dir for the tower's features, 4 MB a video at 7B; none = no cache. Not "
        "used where mesh.tensor spans processes.",
    )

    @property
    def heldout(self) -> bool:
        """Whether there are held-out videos."""
        if self.dataset == "shapes_world":
            return self.eval_videos > 0
        return self.eval_path is not None if self.dataset == "video_qa" else bool(self.test_sets)


class PromptsConfig(Section):
    dir: str | None = Field(None, description="A folder whose files replace the packaged prompts of the same name.")


class SamplingConfig(Section):
    temperature: NonNegativeFloat = Field(1.0, description="0 is greedy.")
    top_p: Annotated[float, Field(gt=0, le=1)] = 0.95
    top_k: NonNegative = Field(0, description="0 keeps all.")
    min_p: Fraction = Field(0.0, description="Tokens less likely than this share of the likeliest are left out.")
    repetition_penalty: PositiveFloat = Field(
        1.0, description="Divides positive logits of tokens that the response has, multiplies negative ones; 1 = off."
    )
    stop: tuple[str, ...] = Field((), description="Strings that end a response; they are not part of it.")
    max_new_tokens: Positive = 256
    keep_unfinished: bool = Field(False, description="Let responses that hit max_new_tokens enter pairs.")


class DescribeConfig(Section):
    temperature: NonNegativeFloat = Field(0.0, description="0 is greedy.")
    top_p: Annotated[float, Field(gt=0, le=1)] = 0.95
    max_new_tokens: Positive = Field(256, description="Length limit of c_t; what is cut is counted.")


class JudgeConfig(Section):
    mode: Literal["letters", "text", "rubric", "truth", "random"] = Field(
        "letters",
        description="Log-probs of the two answer letters, a generated verdict, or a score of each response, 1 to 5; "
        "as a ceiling and a control, the data set's ground truth, or a coin.",
    )
    context: Literal["retrospective", "fresh", "none", "truth"] = Field(
        "retrospective",
        description="ISR-DPO | describe without c_{t-1} | the self-rewarding baseline | the data set's ground truth.",
    )
    video: Literal["true", "blank", "shuffled"] = Field(
        "true", description="Control: does the judge look at the video?"
    )
    inconsistent: Literal["average", "drop"] = Field(
        "average", description="letters, text: when the two orders disagree, average their log-odds, or drop the pair."
    )
    tie_margin: NonNegativeFloat = Field(
        0.0, description="An averaged |log-odds| (rubric: difference of scores) under this is a tie and gives no pair."
    )

    @property
    def describes(self) -> bool:
        """Whether the policy describes every video."""
        return self.context in ("retrospective", "fresh")

    @property
    def asks_policy(self) -> bool:
        """Whether the policy judges."""
        return self.mode not in ("truth", "random")

    @property
    def knows_truth(self) -> bool:
        """Whether verdicts or contexts come from the data set's ground truth."""
        return "truth" in (self.mode, self.context)


class DpoConfig(Section):
    beta: PositiveFloat = 0.1
    loss: Literal["sigmoid", "ipo", "hinge", "robust"] = "sigmoid"
    label_smoothing: Annotated[float, Field(ge=0, lt=0.5)] = Field(
        0.0, description="robust, sigmoid: share of flipped labels."
    )
    sft_weight: NonNegativeFloat = Field(0.0, description="Weight of the chosen responses' token-mean cross-entropy.")
    ld_alpha: Fraction = Field(
        1.0, description="Length control (LD-DPO): weight of log-probs past the shorter response's length; 1 is DPO."
    )
    lora: LoraConfig | None = Field(None, description="Train adapters of the decoder; none = all its parameters.")
    reference: Literal["previous", "initial"] = Field("previous", description="π_t, or π_1 in every iteration.")
    epochs: Positive = 1
    batch_size: Positive = Field(128, description="Pairs per update.")
    accumulation_steps: Positive = Field(1, description="Micro-batches per update; must divide batch_size.")
    learning_rate: PositiveFloat = 5e-7
    warmup_fraction: Fraction = 0.1
    weight_decay: NonNegativeFloat = 0.0
    b1: Annotated[float, Field(ge=0, lt=1)] = 0.9
    b2: Annotated[float, Field(ge=0, lt=1)] = 0.999
    eps: PositiveFloat = 1e-8
    clip_norm: PositiveFloat | None = Field(None, description="Global-norm clipping; none = off.")
    max_bad_updates: Positive = Field(3, description="So many updates in a row that are not finite stop the run.")

    @model_validator(mode="after")
    def _check(self) -> DpoConfig:
        if self.batch_size % self.accumulation_steps:
            raise ValueError(
                f"batch_size {self.batch_size} is not a multiple of accumulation_steps {self.accumulation_steps}"
            )
        if self.label_smoothing and self.loss not in ("sigmoid", "robust"):
            raise ValueError(f"label_smoothing has no meaning for loss {self.loss}")
        return self


class CollectConfig(Section):
    """How many videos the engine holds, and how many texts it says at a time."""

    batch_videos: Positive = Field(
        16, description="Videos held at a time, a KV prefix each (fewer where memory ends), and written together."
    )
    slots: Positive = Field(3, description="Texts that are said at a time about two videos that are held.")
    lanes: Positive | None = Field(
        None, description="Videos that one call of a program brings or reads; none = one for each batch device."
    )
    turn_tokens: Positive | None = Field(
        None,
        description="Longest user turn that is answered; a longer one is left out and counted. none = what the context "
        "window leaves. A slot has memory for it.",
    )
    int8_prefixes: bool = Field(
        False, description="Keys and values of videos rounded to 8 bits: half the memory that bfloat16 needs."
    )
    memory_gib: PositiveFloat | None = Field(
        None, description="Of a device, for keys and values of videos and slots; none = what the device has left."
    )


class MeshConfig(Section):
    """Sizes of the mesh axes; -1 takes the devices that are left."""

    data: AxisSize = 1
    fsdp: AxisSize = -1
    tensor: AxisSize = 1


class CheckpointConfig(Section):
    every_steps: Positive = Field(50, description="Training state is saved every so many updates.")
    keep_policies: NonNegative = Field(
        0, description="Policies kept besides start, parents and references in use; 0 keeps all."
    )
    verify: Literal["always", "size"] = Field(
        "always", description="Before restoring: compare every file's SHA-256, or its size only."
    )


class ProcessesConfig(Section):
    """When one of several processes that make a run together ends because of another one."""

    heartbeat_s: Positive = Field(100, description="A process not heard of for so long is dead, and the others end.")
    stall_s: PositiveFloat = Field(
        1800.0, description="A unit of work that takes longer ends the process, with all stacks in its log."
    )


class EvaluationJudgeConfig(Section):
    """Who judges held-out answers in `isrdpo eval`, and behind each iteration of a run, and how it is asked."""

    kind: Literal["exact", "endpoint", "policy"] = Field(
        "exact", description="The data set's own rules, an OpenAI-compatible chat endpoint, or a policy of ours."
    )
    model: str | None = Field(None, description="endpoint: the name of its model. policy: a MODEL.")
    protocol: Literal["caption", "official"] = Field(
        "caption", description="A score from 1 to 5 given the caption, or yes/no and a score from 0 to 5."
    )
    prompt: str | None = Field(None, description="A file with a user message of your own.")
    system_prompt: str | None = Field(None, description="A file with the system message that belongs to `prompt`.")
    base_url: str = Field("https://api.openai.com/v1", description="endpoint: what stands before /chat/completions.")
    key_variable: str = Field(
        "OPENAI_API_KEY", description="endpoint: the environment variable with the key; unset = no key is sent."
    )
    concurrency: Positive = Field(16, description="endpoint: calls at the same time.")
    attempts: Positive = Field(6, description="endpoint: how often a call is tried.")
    timeout_s: PositiveFloat = Field(60.0, description="endpoint: seconds that one try may take.")
    max_new_tokens: Positive = Field(256, description="policy: length limit of its reply.")
    input_price: NonNegativeFloat | None = Field(None, description="endpoint: price of a million prompt tokens.")
    output_price: NonNegativeFloat | None = Field(None, description="endpoint: price of a million reply tokens.")

    @model_validator(mode="after")
    def _check(self) -> EvaluationJudgeConfig:
        if self.kind != "exact" and not self.model:
            raise ValueError(f"kind {self.kind} needs the name of a model")
        if self.system_prompt and not self.prompt:
            raise ValueError("system_prompt goes with prompt")
        return self


class EvaluationConfig(Section):
    enabled: bool = True
    max_new_tokens: Positive = 1024
    bootstrap_samples: Positive = 1000
    judge: EvaluationJudgeConfig = EvaluationJudgeConfig()


class TrackingConfig(Section):
    """Where training metrics go besides `metrics.jsonl` and TensorBoard's files. What fails there stops no run."""

    wandb: str | None = Field(None, description="A project of Weights & Biases (needs the extra [wandb]); none = off.")


class SftPhase(Section):
    """One phase of supervised training: what each step's batch holds."""

    steps: Positive
    learning_rate: PositiveFloat
    batch_videos: Positive = Field(description="Rows that see a video.")
    mixture: dict[str, NonNegativeFloat] = Field(
        description="Segments of each kind per video row; a fraction is a probability."
    )
    text_rows: NonNegative = Field(0, description="Rows per step whose video is masked.")
    text_kind: str = Field("judge", description="Kind of the rows whose video is masked.")
    text_weight: NonNegativeFloat = Field(1.0, description="Weight of their loss.")
    verdict_weight: NonNegativeFloat = Field(1.0, description="Weight of the verdict letter.")


class SftConfig(Section):
    phases: tuple[SftPhase, ...] = ()
    warmup_steps: NonNegative = 40
    muon_ratio: PositiveFloat = Field(
        5.0, description="Learning rate of the layers' matrices (Muon) over that of all else (AdamW)."
    )
    weight_decay: NonNegativeFloat = 0.0
    b1: Annotated[float, Field(ge=0, lt=1)] = Field(0.9, description="AdamW's; Muon's momentum is 0.95.")
    b2: Annotated[float, Field(ge=0, lt=1)] = 0.98
    clip_norm: PositiveFloat | None = 1.0
    step_label_weight: NonNegativeFloat = Field(1.0, description="Weight of process labels inside a judge prompt.")
    log_every: Positive = 20


class Config(Section):
    """Everything that a run needs."""

    run: RunConfig = RunConfig()
    start: str = Field(
        "shapes", description="π_1: a packaged policy (`shapes`), a policy folder, a run, or a run's `iter_TT`."
    )
    data: DataConfig = DataConfig()
    prompts: PromptsConfig = PromptsConfig()
    sampling: SamplingConfig = SamplingConfig()
    describe: DescribeConfig = DescribeConfig()
    judge: JudgeConfig = JudgeConfig()
    collect: CollectConfig = CollectConfig()
    dpo: DpoConfig = DpoConfig()
    compute: ComputeConfig = ComputeConfig()
    mesh: MeshConfig = MeshConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    processes: ProcessesConfig = ProcessesConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    tracking: TrackingConfig = TrackingConfig()
    model: ModelConfig | None = Field(
        None, description="sft: the model to train from nothing. A run takes the model of its start policy."
    )
    sft: SftConfig = SftConfig()

    @model_validator(mode="after")
    def _check(self) -> Config:
        if self.judge.knows_truth and self.data.dataset != "shapes_world":
            raise ValueError(
                f"judge.mode=truth and judge.context=truth need a data set with ground truth: shapes_world, not "
                f"{self.data.dataset}"
            )
        return self
