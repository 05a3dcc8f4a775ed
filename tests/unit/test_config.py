"""The config: what is read, what is refused and how, and hashes that mean the same."""

from __future__ import annotations

import math
import textwrap
from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from isrdpo_jax.config import config_hash, diff_configs, dump_yaml, leaves, load_config, semantic_hash
from isrdpo_jax.errors import ConfigError
from isrdpo_jax.schema import ComputeConfig, Config, DpoConfig, LlamaConfig, ModelConfig, RunConfig, SftConfig, SftPhase
from isrdpo_jax.yaml_tree import CoreLoader, Entry, read_tree


@pytest.fixture
def write(tmp_path, monkeypatch):
    """Writes a YAML file into the working directory of the test and returns its name."""
    monkeypatch.chdir(tmp_path)

    def write(text: str, name: str = "x.yaml") -> str:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(textwrap.dedent(text), encoding="utf-8")
        return name

    return write


def refusal(path: str, *overrides: str) -> str:
    """The message with which a config is refused; always one paragraph."""
    with pytest.raises(ConfigError) as caught:
        load_config(path, overrides)
    assert caught.value.exit_code == 2
    assert "\n" not in str(caught.value)
    return str(caught.value)


# ---- numbers, booleans and text --------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", ["5e-7", "5E-7", "5.0e-07", "0.0000005", "+5e-7"])
def test_every_spelling_of_a_small_number_is_that_number(write, text):
    assert load_config(write(f"dpo: {{learning_rate: {text}}}")).config.dpo.learning_rate == 5e-7
    assert load_config(write(""), [f"dpo.learning_rate={text}"]).config.dpo.learning_rate == 5e-7


@pytest.mark.parametrize(
    ("text", "value"),
    [
        *[("1e-3", 1e-3), (".5", 0.5), ("1E5", 1e5), ("1.", 1.0), ("-2", -2), ("-.5", -0.5), (".inf", math.inf)],
        *[("0x1F", 31), ("0o17", 15), ("007", 7), ("+1", 1)],
        *[("true", True), ("False", False), ("null", None), ("~", None), ("", None)],
        *[("yes", "yes"), ("off", "off"), ("2024-01-01", "2024-01-01"), ("1_000", "1_000")],
        *[("'0.1'", "0.1"), ('"true"', "true"), ("1:30", "1:30"), ("e5", "e5")],
    ],
)
def test_scalars_follow_the_core_schema_of_yaml_1_2(write, text, value):
    problems: list[str] = []
    entry = read_tree(write(f"a: {text}"), problems).value["a"]
    assert problems == []
    assert entry == Entry(value, "x.yaml:1") and type(entry.value) is type(value)


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        ('beta: "0.1"', "dpo.beta (x.yaml:2) must be a number, got the text '0.1'"),
        ("beta: true", "dpo.beta (x.yaml:2) must be a number, got true"),
        ("beta: [0.1]", "dpo.beta (x.yaml:2) must be a number, got a list"),
        ("beta:", "dpo.beta (x.yaml:2) must be a number, got nothing (null)"),
        ("beta: 0", "dpo.beta (x.yaml:2) must be greater than 0, got 0"),
        ("beta: -0.1", "dpo.beta (x.yaml:2) must be greater than 0, got -0.1"),
        ("beta: .nan", "dpo.beta (x.yaml:2) must be a finite number, got nan"),
        ("beta: .inf", "dpo.beta (x.yaml:2) must be a finite number, got inf"),
        ("beta: 1e999", "dpo.beta (x.yaml:2) must be a finite number, got inf"),
        ("epochs: true", "dpo.epochs (x.yaml:2) must be an integer, got true"),
        ("epochs: 2.0", "dpo.epochs (x.yaml:2) must be an integer, got 2.0"),
        ("clip_norm: none", "got the text 'none'; none is written null"),
        ("loss: sigmoi", "dpo.loss (x.yaml:2) must be 'sigmoid', 'ipo', 'hinge' or 'robust', got the text 'sigmoi'"),
        ("{batch_size: 3, accumulation_steps: 2}", "dpo (x.yaml:1): batch_size 3 is not a multiple of"),
    ],
)
def test_a_value_that_does_not_fit_is_refused_with_its_place(write, line, complaint):
    assert complaint in refusal(write(f"dpo:\n  {line}\n"))


def test_an_integer_is_a_float_and_null_switches_off(write):
    config = load_config(write("dpo: {beta: 1, clip_norm: null}"), ["sft.clip_norm="]).config
    assert type(config.dpo.beta) is float and config.dpo.beta == 1.0
    assert config.dpo.clip_norm is None and config.sft.clip_norm is None


def test_true_is_a_word_where_it_is_a_choice_and_nowhere_else(write):
    assert load_config(write("judge: {video: true}")).config.judge.video == "true"
    assert load_config(write(""), ["judge.video=true"]).config.judge.video == "true"
    assert "judge.mode" in refusal(write("judge: {mode: true}"))
    assert "start (override) must be text" in refusal(write(""), "start=true")


# ---- unknown keys ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("override", "suggestion"),
    [
        ("dpo.betta=1", "dpo.betta (override) is not a key; did you mean dpo.beta?"),
        ("betta=1", "betta (override) is not a key; did you mean dpo.beta?"),
        ("beta=1", "did you mean dpo.beta?"),
        ("dppo.beta=1", "did you mean dpo?"),
        ("model.llama.num_layer=1", "num_layer (override) is not a key; did you mean model.llama.num_layers?"),
        ("dpo.temperature=1", "did you mean sampling.temperature or describe.temperature?"),
        ("dpo.batch_videos=1", "did you mean collect.batch_videos"),
        ("learning_rte=1", "did you mean dpo.learning_rate or sft.phases.N.learning_rate?"),
        ("inclood=a.yaml", "did you mean include?"),
        ("judge.zzz=1", "judge has mode, context, video, inconsistent, tie_margin"),
    ],
)
def test_an_unknown_key_names_its_nearest_neighbour(write, override, suggestion):
    assert suggestion in refusal(write(""), override)


def test_an_unknown_key_inside_a_list_has_its_full_path_and_line(write):
    path = write("""\
        sft:
          phases:
            - {steps: 1, learning_rate: 1e-3, batch_videos: 2, mixture: {describe: 1}}
            - steps: 1
              learning_rate: 1e-3
              batch_video: 2
              mixture: {describe: 1}
        """)
    message = refusal(path)
    assert "sft.phases.1.batch_video (x.yaml:6) is not a key; did you mean sft.phases.1.batch_videos?" in message
    assert "sft.phases.1.batch_videos (x.yaml:4) is missing" in message


def test_all_problems_of_a_load_are_told_at_once(write):
    message = refusal(write("dpo:\n  beta: 0\n  betta: 1\n  epochs: 1\n  epochs: 2\n"), "run.seed=-1", "nonsense")
    for part in (
        "dpo.beta (x.yaml:2)",
        "dpo.betta (x.yaml:3)",
        "epochs (x.yaml:5) was given before, at x.yaml:4",
        "run.seed (override)",
        "'nonsense' is not of the form key=value",
    ):
        assert part in message
    assert "(5) " in message and "(6) " not in message


# ---- files that cannot be read ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("dpo:\n  beta: 0.1\n  beta: 0.2\n", "beta (x.yaml:3) was given before, at x.yaml:2"),
        ("dpo: {}\ndpo: {}\n", "dpo (x.yaml:2) was given before, at x.yaml:1"),
        ("dpo:\n  beta: [1\n", "x.yaml:3 is not YAML"),
        ("dpo:\n\tbeta: 1\n", "x.yaml:2 is not YAML"),
        ("a: 1\n---\nb: 2\n", "x.yaml:2 is not YAML"),
        ("- 1\n", "x.yaml:1 holds a list where sections"),
        ("just text", "x.yaml:1 holds the text 'just text'"),
        ("dpo: 3\n", "dpo (x.yaml:1) must be a section"),
        ("? [a]\n: 1\n", "x.yaml:1 has a key that is not a word"),
        ("dpo: &a\n  beta: *a\n", "x.yaml:2 contains itself through an alias"),
        ("dpo: {beta: !!python/name:os.system ''}\n", "is not allowed"),
        ("dpo: {beta: !!float abc}\n", "x.yaml:1 has a value that cannot be read: 'abc'"),
        ("a: \x00\n", "x.yaml is not YAML"),
    ],
)
def test_a_file_that_is_not_a_config_is_refused_with_its_line(write, text, complaint):
    assert complaint in refusal(write(text))


def test_files_that_cannot_be_opened(write, tmp_path):
    write("")
    (tmp_path / "noise.yaml").write_bytes(b"\xff\xfe\x00\xd8")
    assert "missing.yaml cannot be read (No such file or directory)" in refusal("missing.yaml")
    assert "cannot be read (Is a directory)" in refusal(str(tmp_path))
    assert "noise.yaml is not UTF-8 text" in refusal("noise.yaml")


def test_an_empty_file_is_all_defaults(write):
    loaded = load_config(write("# nothing\n"))
    assert loaded.config == Config()
    assert set(loaded.origins.values()) == {"default"}


# ---- includes --------------------------------------------------------------------------------------------------------


def test_a_file_refines_what_it_includes(write):
    write("dpo: {beta: 0.3, epochs: 2}\nsft: {phases: []}\ndata: {path: clips/a.jsonl}\n", "configs/base.yaml")
    write("mesh:\n  fsdp: 4\n", "configs/mesh/four.yaml")
    top = write("include: [../base.yaml, ../mesh/four.yaml]\ndpo:\n  beta: 0.2\n", "configs/experiments/x.yaml")
    loaded = load_config(top)
    assert (loaded.config.dpo.beta, loaded.config.dpo.epochs, loaded.config.mesh.fsdp) == (0.2, 2, 4)
    assert loaded.config.data.path == "clips/a.jsonl", "paths stay relative to the working directory"
    assert loaded.origins["dpo.beta"] == "configs/experiments/x.yaml:3"
    assert loaded.origins["dpo.epochs"] == "configs/base.yaml:1"
    assert loaded.origins["mesh.fsdp"] == "configs/mesh/four.yaml:2"


def test_later_includes_win_and_lists_replace_lists(write):
    phase = "{{steps: {0}, learning_rate: 1e-3, batch_videos: 1, mixture: {{}}}}"
    write(f"sft: {{phases: [{phase.format(1)}, {phase.format(2)}]}}\nrun: {{seed: 1}}\n", "a.yaml")
    write("run: {seed: 2}\n", "b.yaml")
    config = load_config(write(f"include: [a.yaml, b.yaml]\nsft: {{phases: [{phase.format(3)}]}}\n")).config
    assert config.run.seed == 2
    assert [phase.steps for phase in config.sft.phases] == [3]


def test_includes_that_cannot_be_followed(write):
    write("include: y.yaml\n", "x.yaml")
    write("include: x.yaml\n", "y.yaml")
    assert "x.yaml includes itself (x.yaml -> y.yaml -> x.yaml)" in refusal("x.yaml")
    assert "z.yaml:2 includes gone.yaml, which does not" in refusal(write("run: {}\ninclude: gone.yaml\n", "z.yaml"))
    assert "include (z.yaml:1) must name a YAML file, got 3" in refusal(write("include: [3]\n", "z.yaml"))


def test_an_error_in_an_included_file_names_that_file(write):
    write("run: {seed: 1}\n\ndpo: {betta: 1}\n", "configs/base.yaml")
    assert "dpo.betta (configs/base.yaml:3) is not a key" in refusal(write("include: configs/base.yaml\n"))


def test_two_files_may_include_the_same_third(write):
    write("run: {seed: 5}\n", "base.yaml")
    write("include: base.yaml\n", "a.yaml")
    write("include: base.yaml\ndpo: {beta: 0.5}\n", "b.yaml")
    config = load_config(write("include: [a.yaml, b.yaml]\n")).config
    assert (config.run.seed, config.dpo.beta) == (5, 0.5)


# ---- overrides and origins -------------------------------------------------------------------------------------------


def test_overrides_win_in_order_and_reach_everywhere(write):
    path = write("sft:\n  phases:\n    - {steps: 1, learning_rate: 1e-3, batch_videos: 2, mixture: {describe: 1}}\n")
    config = load_config(
        path,
        [
            "dpo.beta=0.2",
            "dpo.beta=0.3",
            "run.name=a-b",
            "mesh={fsdp: 2, tensor: 4}",
            "mesh.tensor=8",
            "sft.phases.0.steps=10",
            "sft.phases.0.mixture.judge=0.5",
            "model.llama.num_layers=2",
            "start=runs/a=b",
        ],
    ).config
    assert config.dpo.beta == 0.3
    assert config.run.name == "a-b"
    assert (config.mesh.data, config.mesh.fsdp, config.mesh.tensor) == (1, 2, 8)
    assert config.sft.phases[0].steps == 10
    assert config.sft.phases[0].mixture == {"describe": 1.0, "judge": 0.5}
    assert config.model is not None and config.model.llama.num_layers == 2
    assert config.start == "runs/a=b"


def test_an_override_may_include_files(write):
    path = write("dpo: {beta: 0.3, epochs: 2}\n")
    write("mesh: {fsdp: 16}\ndpo:\n  epochs: 3\n", "mesh/a.yaml")
    write("include: a.yaml\nmesh: {tensor: 2}\n", "mesh/b.yaml")
    loaded = load_config(path, ["dpo.epochs=5", "include=mesh/b.yaml", "mesh.tensor=4"])
    config = loaded.config
    assert (config.dpo.beta, config.dpo.epochs, config.mesh.fsdp, config.mesh.tensor) == (0.3, 3, 16, 4), "in order"
    assert loaded.origins["dpo.epochs"] == "mesh/a.yaml:3"
    assert load_config(path, ["include=[mesh/a.yaml, mesh/b.yaml]"]).config.mesh.tensor == 2
    assert "mesh/none.yaml cannot be read" in refusal(path, "include=mesh/none.yaml")
    assert "include (override) must name a YAML file, got 3" in refusal(path, "include=3")


@pytest.mark.parametrize(
    ("override", "complaint"),
    [
        ("dpo.beta", "'dpo.beta' is not of the form key=value"),
        ("=3", "'=3' is not of the form key=value"),
        ("dpo..beta=3", "'dpo..beta=3' is not of the form key=value"),
        ("dpo.beta=[1", "override is not YAML"),
        ("dpo.beta.x=1", "dpo.beta (override) must be a number, got a section"),
        ("sft.phases.0.steps=1", "sft.phases (override) must be a list, got a section"),
    ],
)
def test_overrides_that_cannot_be_used(write, override, complaint):
    assert complaint in refusal(write(""), override)


def test_an_index_outside_the_list_is_refused(write):
    path = write("sft:\n  phases: []\n")
    assert "sft.phases.0.steps asks for element 0 of a list of 0 (x.yaml:2)" in refusal(path, "sft.phases.0.steps=1")


def test_every_leaf_has_its_origin(write):
    path = write("""\
        run:
          name: a
        sft:
          phases:
            - steps: 1
              learning_rate: 1e-3
              batch_videos: 2
              mixture:
                describe: 1
        """)
    loaded = load_config(path, ["dpo.beta=0.2", "sft.phases.0.steps=3"])
    assert loaded.origins.keys() == dict(leaves(loaded.config)).keys()
    assert loaded.origins["run.name"] == "x.yaml:2"
    assert loaded.origins["sft.phases.0.steps"] == "override"
    assert loaded.origins["sft.phases.0.mixture.describe"] == "x.yaml:9"
    assert loaded.origins["sft.phases.0.text_rows"] == "default"
    assert loaded.origins["dpo.beta"] == "override"
    assert loaded.origins["dpo.epochs"] == "default"
    assert list(loaded.origins)[0] == "run.name"


# ---- hashes, dumps and differences -----------------------------------------------------------------------------------


def test_the_hash_depends_on_values_only(write):
    a = load_config(write("dpo: {beta: 0.2, epochs: 2}\nrun: {seed: 1}\n", "a.yaml")).config
    b = load_config(write("run: {seed: 1}\ndpo:\n  epochs: 2\n  beta: 2e-1\n  loss: sigmoid\n", "b.yaml")).config
    assert config_hash(a) == config_hash(b)
    assert len(config_hash(a)) == 64 and int(config_hash(a), 16)
    assert config_hash(a) != config_hash(Config())


def test_the_hash_of_a_mapping_does_not_depend_on_its_order():
    def config(mixture):
        return Config(sft=SftConfig(phases=(SftPhase(steps=1, learning_rate=1, batch_videos=1, mixture=mixture),)))

    assert config_hash(config({"a": 1.0, "b": 2.0})) == config_hash(config({"b": 2.0, "a": 1.0}))


@pytest.mark.parametrize(
    "override",
    ["run.name=b", "run.dir=/r", "run.iterations=3", "mesh.fsdp=8", "checkpoint.every_steps=1", "data.dir=/d"],
)
def test_what_does_not_change_results_is_not_in_the_semantic_hash(write, override):
    config = load_config(write(""), [override]).config
    assert semantic_hash(config) == semantic_hash(Config())
    assert config_hash(config) != config_hash(Config())


@pytest.mark.parametrize(
    "override", ["run.seed=1", "dpo.beta=0.2", "data.train_videos=3", "judge.context=none", "start=x", "prompts.dir=p"]
)
def test_what_changes_results_is_in_the_semantic_hash(write, override):
    assert semantic_hash(load_config(write(""), [override]).config) != semantic_hash(Config())


def test_excluding_what_does_not_exist_is_a_mistake_of_the_caller():
    with pytest.raises(KeyError):
        config_hash(Config(), exclude={"dpo.betta"})


def test_differences_are_named_by_path():
    assert diff_configs(Config(), Config()) == []
    a, b = Config(dpo=DpoConfig(beta=0.2)), Config(run=RunConfig(seed=4))
    assert diff_configs(a, b) == [("run.seed", 0, 4), ("dpo.beta", 0.2, 0.1)]
    with_model = dict((key, value) for key, _, value in diff_configs(Config(), Config(model=ModelConfig())))
    assert with_model["model.llama.vocab_size"] == 32000


finite = st.floats(min_value=1e-300, max_value=1e300)
configs = st.builds(
    Config,
    start=st.text(min_size=0, max_size=20),
    run=st.builds(RunConfig, name=st.from_regex(r"\A[A-Za-z0-9._-]+\Z"), seed=st.integers(0, 2**70)),
    dpo=st.builds(DpoConfig, beta=finite, learning_rate=finite, eps=finite, clip_norm=st.none() | finite),
    sft=st.builds(
        SftConfig,
        phases=st.lists(
            st.builds(
                SftPhase,
                steps=st.integers(1, 9),
                learning_rate=finite,
                batch_videos=st.just(1),
                mixture=st.dictionaries(st.text(max_size=8), st.floats(0, 1), max_size=3),
                text_rows=st.just(0),
                text_kind=st.sampled_from(["judge", "yes", "1e3", "null", "true", ".5", "", "a: b", "0x1F", "<<", "="]),
                text_weight=finite,
            ),
            max_size=2,
        ).map(tuple),
    ),
    model=st.none() | st.just(ModelConfig(unroll_layers=True)),
)


@settings(max_examples=60, deadline=None)
@given(config=configs)
def test_a_dumped_config_is_read_back_exactly(tmp_path_factory, config):
    path = tmp_path_factory.mktemp("dump") / "config.yaml"
    path.write_text(dump_yaml(config), encoding="utf-8")
    assert load_config(path).config == config


def test_a_dump_is_plain_yaml_in_the_order_of_the_schema():
    text = dump_yaml(Config())
    assert text.startswith("run:\n  name: run\n")
    assert "learning_rate: 5.0e-07\n" in text and "video: 'true'\n" in text
    assert yaml.compose(text, Loader=CoreLoader) is not None


@pytest.mark.parametrize("path", sorted((Path(__file__).parents[2] / "configs").glob("*.yaml")), ids=lambda p: p.name)
def test_every_config_that_ships_loads(path):
    assert load_config(path).config.run.name != Config().run.name


def test_compute_settings_change_the_model_of_a_run_only_where_they_are_given():
    model = ModelConfig(remat="full")
    assert ComputeConfig().applied_to(model) == model
    changed = ComputeConfig(dtype="bfloat16", remat="none").applied_to(model)
    assert changed == ModelConfig(compute_dtype="bfloat16", remat="none")


@pytest.mark.parametrize(
    ("platform", "hidden_size", "dtype", "expected"),
    [
        ("tpu", 4096, "bfloat16", "splash"),
        ("tpu", 1024, "bfloat16", "xla"),
        ("gpu", 4096, "bfloat16", "xla"),
        ("gpu", 4096, "float32", "xla"),
        ("cpu", 4096, "bfloat16", "cpu"),
    ],
)
def test_attention_is_a_kernel_where_one_takes_the_heads(platform: str, hidden_size: int, dtype: str, expected: str):
    model = ModelConfig(llama=LlamaConfig(hidden_size=hidden_size), compute_dtype=dtype)
    assert model.on(platform) == model.model_copy(update={"attention": expected})
    assert model.model_copy(update={"attention": "xla"}).on(platform).attention == "xla"
