"""Recipes: what is read, what is refused and in which words, and that writing and reading agree."""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, ClassVar, Literal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trm.runs.recipe import Retired, dump_recipe, load_recipe, recipe_hash


@dataclass(frozen=True, kw_only=True, slots=True)
class Backbone:
    depth: int = 4
    modulus: float | None = 0.9
    update: Literal["mlp", "relational"] = "mlp"
    widths: tuple[int, ...] = (64, 32)
    betas: tuple[float, float] = (0.9, 0.95)

    def __post_init__(self) -> None:
        if self.depth < 1:
            raise ValueError(f"depth must be >= 1, got {self.depth}")
        if self.modulus is not None and not 0 < self.modulus < 1:
            raise ValueError(f"modulus must lie in (0, 1), got {self.modulus}")


@dataclass(frozen=True, kw_only=True, slots=True)
class Learner:
    backbone: Backbone = field(default_factory=Backbone)
    lr: float = 1e-3
    steps: int = 5000
    k_steps: int = 5
    name: str = "plain"
    clamp: bool = True
    tags: list[str] = field(default_factory=list)
    weights: dict[str, float] = field(default_factory=lambda: {"value": 1.0})
    teacher: Backbone | None = None

    def __post_init__(self) -> None:
        if self.k_steps > self.steps:
            raise ValueError(f"k_steps must be <= steps, got {self.k_steps} > {self.steps}")


@dataclass(frozen=True, kw_only=True, slots=True)
class Slimmer:
    RETIRED: ClassVar[Mapping[str, Retired]] = {
        "mixer": Retired("none", "it lost; leave it out"),
        "blend": Retired(None, "blend is alpha now"),
    }
    alpha: float = 0.5


@dataclass(frozen=True, kw_only=True, slots=True)
class Slim:
    improvement: Slimmer = field(default_factory=Slimmer)


@dataclass(frozen=True, kw_only=True, slots=True)
class Required:
    budget: int
    backbone: Backbone


def refusal(tmp_path: Path, text: str, cls: type = Learner) -> str:
    """The error message for a recipe file with this text, without the folder."""
    path = tmp_path / "recipe.yaml"
    path.write_text(text)
    with pytest.raises(ValueError) as caught:
        load_recipe(cls, path)
    return str(caught.value).replace(f"{tmp_path}/", "")


def test_without_a_file_the_defaults_come_out() -> None:
    assert load_recipe(Learner, None) == Learner()


def test_a_file_changes_only_the_fields_it_names(tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text("lr: 1e-4\nbackbone: {widths: [8], modulus: null}\nteacher: {depth: 2}\n")
    assert load_recipe(Learner, path) == Learner(
        lr=1e-4, backbone=Backbone(widths=(8,), modulus=None), teacher=Backbone(depth=2)
    )


def test_an_override_wins_over_the_file_and_a_later_override_over_an_earlier(
    tmp_path: Path,
) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text("backbone: {depth: 2}\nsteps: 10\n")
    overrides = ["backbone.depth=3", "backbone.depth=6", "teacher.depth=9", "weights.policy=2"]
    recipe = load_recipe(Learner, path, overrides)
    assert recipe == Learner(
        steps=10,
        backbone=Backbone(depth=6),
        teacher=Backbone(depth=9),
        weights={"value": 1.0, "policy": 2.0},
    )


def test_what_comes_out_is_plain_python(tmp_path: Path) -> None:
    recipe = load_recipe(Learner, None, ["tags=[a, b]", "backbone.widths=[1, 2, 3]"])
    types = [type(recipe.tags), type(recipe.weights), type(recipe.backbone.widths)]
    assert [*types, type(recipe.backbone)] == [list, dict, tuple, Backbone]


@pytest.mark.parametrize("text", ["", "# nothing but a header\n"])
def test_an_empty_file_means_the_defaults(tmp_path: Path, text: str) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(text)
    assert load_recipe(Learner, path) == Learner()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("steeps: 10", "recipe.yaml: steeps = 10: unknown field; did you mean steps?"),
        (
            "backbone: {dept: 3}",
            "recipe.yaml: backbone.dept = 3: unknown field; did you mean backbone.depth?",
        ),
        # A field of an inner record written one level too high.
        ("depth: 3", "recipe.yaml: depth = 3: unknown field; did you mean backbone.depth?"),
        ("backbone: {depth: 2.7}", "recipe.yaml: backbone.depth = 2.7: expected an integer"),
        ("steps: true", "recipe.yaml: steps = true: expected an integer"),
        ("steps: null", "recipe.yaml: steps = null: expected an integer"),
        ("steps: [1, 2]", "recipe.yaml: steps = [1, 2]: expected an integer"),
        ("lr: fast", 'recipe.yaml: lr = "fast": expected a number'),
        ("lr: .nan", "recipe.yaml: lr = NaN: not a number"),
        (
            "backbone: {update: mpl}",
            'recipe.yaml: backbone.update = "mpl": expected one of mlp, relational',
        ),
        (
            "backbone: {modulus: high}",
            'recipe.yaml: backbone.modulus = "high": expected a number or null',
        ),
        (
            "backbone: {betas: [0.1, 0.2, 0.3]}",
            "recipe.yaml: backbone.betas = [0.1, 0.2, 0.3]:"
            " expected a list of 2: a number, a number",
        ),
        (
            "backbone: {widths: [a]}",
            'recipe.yaml: backbone.widths = ["a"]: expected a list, each an integer',
        ),
        (
            "backbone: 3",
            "recipe.yaml: backbone = 3: expected `field: value` lines"
            " (depth, modulus, update, widths, betas)",
        ),
        (
            "backbone: {depth: 0}",
            "recipe.yaml: backbone.depth = 0: depth must be >= 1, got 0",
        ),
        (
            "teacher: {modulus: 1.5}",
            "recipe.yaml: teacher.modulus = 1.5: modulus must lie in (0, 1), got 1.5",
        ),
        (
            "steps: 3\nk_steps: 4",
            "recipe.yaml: k_steps = 4: k_steps must be <= steps, got 4 > 3",
        ),
        # k_steps keeps its default 5: the file's own field is to blame.
        ("steps: 3", "recipe.yaml: steps = 3: k_steps must be <= steps, got 5 > 3"),
        ("steps: 1\nsteps: 2", "recipe.yaml, line 2: malformed YAML: found duplicate key steps"),
        (
            "steps: 1\nlr: [1,\n}\n",
            "recipe.yaml, line 3: malformed YAML: did not find expected node content",
        ),
        ("- steps", "recipe.yaml: expected `field: value` lines, got a list"),
        (
            "name: ${oc.env:HOME}",
            'recipe.yaml: name = "${oc.env:HOME}": a recipe is complete:'
            " `${...}` and `???` are not allowed",
        ),
        (
            "name: off",
            "recipe.yaml: name = false: expected text;"
            " YAML reads a bare yes, no, on or off as true or false, so quote it",
        ),
    ],
)
def test_a_mistake_in_a_file_is_one_line_with_file_field_and_value(
    tmp_path: Path, text: str, message: str
) -> None:
    assert refusal(tmp_path, text) == message


def test_a_hopeless_name_gets_the_nearest_and_the_list(tmp_path: Path) -> None:
    message = refusal(tmp_path, "backbone: {zzz: 1}")
    assert "nearest is backbone." in message
    assert message.endswith("valid are depth, modulus, update, widths, betas")


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("steps", "--set: 'steps': expected FIELD=VALUE or OUTER.INNER=VALUE"),
        ("=3", "--set: '=3': expected FIELD=VALUE or OUTER.INNER=VALUE"),
        ("backbone..depth=3", "--set: 'backbone..depth=3': expected FIELD=VALUE"),
        ("backbone.dpth=3", "--set: backbone.dpth = 3: unknown field; did you mean backbone.depth"),
        ("backbone.depth=2.7", "--set: backbone.depth = 2.7: expected an integer"),
        ("backbone.depth=-2", "--set: backbone.depth = -2: depth must be >= 1, got -2"),
        ("backbone.depth.x=1", '--set: backbone.depth = {"x": 1}: expected an integer'),
        ("steps=[", '--set: steps = "[": malformed YAML value'),
        ("k_steps=", "--set: k_steps = null: expected an integer"),
    ],
)
def test_a_mistake_in_an_override_names_set_field_and_value(override: str, message: str) -> None:
    with pytest.raises(ValueError) as caught:
        load_recipe(Learner, None, [override])
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)


def test_an_override_is_blamed_rather_than_the_file_that_it_contradicts(tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text("steps: 10\nk_steps: 4\n")
    with pytest.raises(
        ValueError, match=r"^--set: steps = 3: k_steps must be <= steps, got 4 > 3$"
    ):
        load_recipe(Learner, path, ["steps=3"])


@pytest.mark.parametrize(
    ("make", "problem"),
    [
        (lambda path: None, "cannot be read: No such file or directory"),
        (lambda path: path.mkdir(), "cannot be read: Is a directory"),
        (lambda path: path.write_bytes(b"name: \xff"), "not a text file (byte 6 is not UTF-8)"),
    ],
)
def test_an_unreadable_file_is_named(tmp_path: Path, make: Any, problem: str) -> None:
    path = tmp_path / "recipe.yaml"
    make(path)
    with pytest.raises(ValueError) as caught:
        load_recipe(Learner, path)
    assert str(caught.value) == f"{path}: {problem}"


def test_a_field_without_default_must_be_given(tmp_path: Path) -> None:
    message = refusal(tmp_path, "backbone: {depth: 2}", Required)
    assert message == "recipe.yaml: budget: no value given, and there is no default"
    recipe = load_recipe(Required, None, ["budget=3", "backbone.depth=2"])
    assert recipe == Required(budget=3, backbone=Backbone(depth=2))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("mixer: none", 'improvement.mixer = "none": it lost; leave it out'),
        ("blend: {a: 1}", 'improvement.blend = {"a": 1}: blend is alpha now'),
        ("RETIRED: {}", "improvement.RETIRED = {}: unknown field; nearest is improvement.alpha"),
    ],
)
def test_a_retired_field_is_refused_with_its_fate(tmp_path: Path, text: str, message: str) -> None:
    found = refusal(tmp_path, f"improvement: {{{text}}}", Slim)
    assert found.startswith(f"recipe.yaml: {message}")
    name, _, value = text.partition(": ")
    with pytest.raises(ValueError) as caught:
        load_recipe(Slim, None, [f"improvement.{name}={value}"])
    assert str(caught.value).startswith(f"--set: {message}")


def test_a_run_keeps_its_retired_fields_where_the_program_still_does_what_they_say(
    tmp_path: Path,
) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text("improvement: {mixer: none, blend: null, alpha: 0.25}\n")
    assert load_recipe(Slim, path, of_run=True) == Slim(improvement=Slimmer(alpha=0.25))
    path.write_text("improvement: {mixer: mean}\n")
    with pytest.raises(ValueError, match=r'recipe\.yaml: improvement\.mixer = "mean": it lost'):
        load_recipe(Slim, path, of_run=True)


def test_retired_fields_are_no_part_of_a_recipe() -> None:
    assert [one.name for one in fields(Slimmer)] == ["alpha"]
    assert dump_recipe(Slim()) == "improvement:\n  alpha: 0.5\n"


recipes = st.builds(
    Learner,
    backbone=st.builds(
        Backbone,
        depth=st.integers(1, 99),
        modulus=st.none() | st.floats(0.001, 0.999),
        update=st.sampled_from(["mlp", "relational"]),
        widths=st.lists(st.integers(), max_size=3).map(tuple),
        betas=st.tuples(st.floats(0, 1), st.floats(0, 1)),
    ),
    lr=st.floats(allow_nan=False),
    steps=st.integers(100, 10**12),
    name=st.text(st.characters(codec="utf-8", exclude_characters="$?"), max_size=20),
    clamp=st.booleans(),
    tags=st.lists(st.sampled_from(["yes", "1e-3", "null", " a: b", "#", "", "ü"]), max_size=3),
    teacher=st.none() | st.just(Backbone(depth=7)),
)


@settings(max_examples=40, deadline=None)
@given(recipe=recipes)
def test_what_is_written_reads_back_equal(
    tmp_path_factory: pytest.TempPathFactory, recipe: Learner
) -> None:
    path = tmp_path_factory.mktemp("recipe") / "recipe.yaml"
    path.write_text(dump_recipe(recipe), encoding="utf-8")
    read = load_recipe(Learner, path)
    assert read == recipe
    assert recipe_hash(read) == recipe_hash(recipe)


@pytest.mark.parametrize(
    "change",
    [{"lr": 2e-3}, {"name": "other"}, {"backbone": Backbone(depth=5)}, {"teacher": Backbone()}],
)
def test_every_field_enters_the_hash(change: dict[str, Any]) -> None:
    assert recipe_hash(replace(Learner(), **change)) != recipe_hash(Learner())


def test_the_hash_is_the_same_in_every_process() -> None:
    # Written down once: a changed value would disown the hashes in finished runs.
    assert recipe_hash(Backbone()) == "ce1ccb404ba478ff"


def test_a_byte_order_mark_is_no_part_of_a_recipe_or_an_override(tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text("lr: 0.5\nname: mine\n", encoding="utf-8-sig")
    loaded = load_recipe(Learner, path, overrides=["\ufeffsteps=7", "k_steps=1"])
    assert (loaded.lr, loaded.name, loaded.steps) == (0.5, "mine", 7)
