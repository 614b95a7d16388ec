"""YAML and `key=value` -> a frozen :class:`RunConfig`, or one message. Only here is omegaconf known."""

from __future__ import annotations

import copy
import functools
import operator
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from distill_dist.config.check import Need, check_config
from distill_dist.config.fields import (
    SchemaField,
    join,
    nearest_key,
    schema_fields,
    schema_sections,
    value_at,
)
from distill_dist.config.methods import is_aligned, is_gradient_method
from distill_dist.config.schema import CurriculumConfig, DataConfig, RelianceConfig, RunConfig
from distill_dist.config.schema_teacher import PooledTeacher
from distill_dist.config.value_problems import POOL, type_problem, value_problem
from distill_dist.errors import UserError


def load_config(path: Path | None, overrides: Sequence[str], *, need: Need = "train") -> RunConfig:
    """The run's configuration: defaults <- ``path`` <- ``overrides`` (`dotted.key=value`), checked.

    ``need`` says which launcher asks: `prepare` wants only what preparing reads. A mapping such as
    `data.splits` in the file replaces the default; one on the command line adds to the file's. `base: other.yaml`
    in a file, relative to it, is read first.

    Raises UserError: one message that lists every problem found (missing or broken file, unknown key, wrong
    type, value out of range, inconsistent pair, interpolation that leads nowhere).
    """
    source = f"configuration {path}" if path is not None else "configuration"
    from_file = [] if path is None else _file_leaves(path)
    from_command_line = [leaf for override in overrides for leaf in _leaves(_read_override(override), "")]
    config, problems = _merge(from_file, from_command_line)
    if problems:
        raise UserError(format_problems(source, problems))
    problems = check_config(resolved := resolve_defaults(config), need=need)
    if problems:
        raise UserError(format_problems(source, problems))
    return resolved


def resolve_defaults(config: RunConfig) -> RunConfig:
    """The same tree with the method's own defaults in place of `None` and `auto` (METHOD.md §1, §2).

    `weight.gradient` stays None for methods without gradients, and `student.layers` where all are kept.
    """
    gradients = is_gradient_method(config.method)
    student, weight, objective = config.student, config.weight, config.objective
    if student.dropout is None:
        student = replace(student, dropout=0.0 if is_aligned(config) else 0.1)
    if student.freeze_embeddings is None:
        student = replace(student, freeze_embeddings=gradients)
    if weight.gradient is None and gradients:
        weight = replace(weight, gradient=0.5 if config.method == "gkd" else 0.1)
    if objective.kd_scale == "auto":
        objective = replace(objective, kd_scale="mean" if gradients else "sum")
    return replace(
        config,
        student=student,
        weight=weight,
        objective=objective,
        curriculum=_resolve_curriculum(config),
        reliance=_resolve_reliance(config),
    )


def _resolve_curriculum(config: RunConfig) -> CurriculumConfig:
    if config.curriculum.start is not None:
        return config.curriculum
    first = {"competence": 0.01, "fixed_exponential": 0.04}
    return replace(config.curriculum, start=first.get(config.curriculum.pacing, 0.2))


def _resolve_reliance(config: RunConfig) -> RelianceConfig:
    found = config.reliance
    if found.initial is None:
        found = replace(found, initial=config.weight.kd)
    if found.maximum is None and config.weight.kd > 0:
        found = replace(found, maximum=config.weight.kd)
    return found


def dump_config(config: RunConfig) -> str:
    """``config`` as YAML; :func:`load_config` of it gives an equal tree.

    A value that holds `${` would be read back as an interpolation: UserError.
    """
    literal = [key for key in schema_fields() if "${" in str(value_at(config, key))]
    if literal:
        raise UserError(f"{', '.join(literal)}: '${{' in a value cannot be written to YAML and read back")
    return OmegaConf.to_yaml(OmegaConf.structured(config))


def format_problems(source: str, problems: Sequence[str]) -> str:
    """One message: the problem, or their number and one line each."""
    if len(problems) == 1:
        return f"{source}: {problems[0]}"
    return f"{source}: {len(problems)} problems\n" + "\n".join(f"  {problem}" for problem in problems)


# ------------------------------------------------------------------ reading

# (dotted key, value, problem): what stands in a file or override; `problem` is set where the key is wrong
_Leaf = tuple[str, Any, str | None]
_MOST_BASES = 8
_NOTHING = SchemaField("", None, False, None)


def _file_leaves(path: Path, seen: tuple[Path, ...] = ()) -> list[_Leaf]:
    """The leaves of the file's base, of that one's and so on, then its own."""
    if path.resolve() in seen:
        raise UserError(f"configuration {path}: is its own base, by way of {seen[-1]}")
    if seen and not path.is_file():
        raise UserError(f"configuration {seen[-1]}: base: no such file {path}")
    if len(seen) > _MOST_BASES:
        raise UserError(f"configuration {path}: more than {_MOST_BASES} files stand on each other as base")
    tree = _read_yaml(path)
    base = tree.pop("base", None)
    own = list(_leaves(tree, ""))
    if base is None:
        return own
    if not isinstance(base, str) or not base or "\0" in base or "${" in base:
        raise UserError(f"configuration {path}: base = {base!r}: it takes the name of another YAML file")
    above = _file_leaves(path.parent / base, (*seen, path.resolve()))
    # a mapping replaces the base's as it replaces the default
    given = {key for key, _, _ in own if schema_fields().get(key, _NOTHING).type == dict[str, str]}
    return [leaf for leaf in above if leaf[0] not in given] + own


def _read_yaml(path: Path) -> dict[Any, Any]:
    """The file as plain containers, interpolations unresolved."""
    try:
        loaded = OmegaConf.load(path)
    except FileNotFoundError:
        raise UserError(f"configuration {path}: no such file") from None
    except yaml.YAMLError as error:
        raise UserError(f"configuration {path}: not valid YAML: {_yaml_problem(error)}") from None
    except UnicodeDecodeError as error:
        raise UserError(f"configuration {path}: not UTF-8 text: {error}") from None
    except OmegaConfBaseException as error:
        raise UserError(f"configuration {path}: {error.full_key or 'a key'}: {_first_line(error)}") from None
    except OSError as error:
        # omegaconf says OSError too when the file holds a bare word or number
        reason = error.strerror or "a mapping of fields is needed, e.g. 'method: gkd_cls'"
        raise UserError(f"configuration {path}: {reason}") from None
    tree = OmegaConf.to_container(loaded, resolve=False)
    if not isinstance(tree, dict):
        raise UserError(f"configuration {path}: it holds a list; a mapping of fields is needed")
    return tree


def _yaml_problem(error: yaml.YAMLError) -> str:
    if not isinstance(error, yaml.MarkedYAMLError):
        return str(error)
    mark = error.problem_mark or error.context_mark
    place = f"line {mark.line + 1}, column {mark.column + 1}: " if mark else ""
    return f"{place}{error.problem or error.context}"


def _read_override(text: str) -> Any:
    """`a.b=value` as nested containers; the value is read as YAML."""
    key, equals, value = text.partition("=")
    if not equals:
        if Path(text).suffix in (".yaml", ".yml"):
            raise UserError(f"'{text}': a configuration is given as --config {text}")
        hint = nearest_key(text)
        raise UserError(f"'{text}': an override is written key=value" + (f", e.g. {hint}=…" if hint else ""))
    if not re.fullmatch(r"[\w-]+(\.[\w-]+)*", key):
        raise UserError(f"'{text}': the key before '=' is not a dotted name such as batch.size")
    if not value.strip():
        raise UserError(
            f"'{text}': nothing stands after '='; for an empty text write '{key}=\"\"' (quoted for the "
            f"shell), for no value {key}=null, for an empty list {key}=[]"
        )
    try:
        text.encode()
    except UnicodeEncodeError:
        raise UserError(f"{text!a}: an override must be UTF-8, as every name in a configuration") from None
    try:
        loaded = OmegaConf.from_dotlist([text])
    except yaml.YAMLError as error:
        raise UserError(f"'{text}': the value is not valid YAML: {_yaml_problem(error)}") from None
    except OmegaConfBaseException as error:
        raise UserError(f"'{text}': {_first_line(error)}") from None
    return OmegaConf.to_container(loaded, resolve=False)


def _leaves(tree: Any, prefix: str) -> Iterator[_Leaf]:
    """The tree's values by dotted key, down to the schema's leaves; wrong keys come with their problem."""
    if not isinstance(tree, Mapping):
        example = next(key for key in schema_fields() if key.startswith(f"{prefix}."))
        yield prefix, tree, f"'{prefix}' is a section: its fields go below it, e.g. {example}"
        return
    for name, value in tree.items():
        key = join(prefix, str(name))
        if key in schema_sections():
            yield from _leaves(value, key)
        elif key in schema_fields() and "." not in str(name):
            yield key, value, None
        else:
            yield key, value, _unknown_key(key, prefix, str(name))


def _unknown_key(key: str, prefix: str, name: str) -> str:
    if "." in name and key in schema_fields():
        return f"in YAML a dotted key is written nested: {name.replace('.', ': {')}: …{'}' * name.count('.')}"
    if near := nearest_key(key):
        return f"no such field; nearest valid name: {near}"
    names = [field.name for field in fields(schema_sections()[prefix])]
    return f"no such field; {prefix or 'the top level'} has {', '.join(names)}"


# ------------------------------------------------------------------ merging


def _merge(from_file: Sequence[_Leaf], from_command_line: Sequence[_Leaf]) -> tuple[RunConfig, list[str]]:
    """The tree of all values, and the problems; the tree means nothing where there are problems."""
    replaces_splits = any(key == "data.splits" for key, _, _ in from_file)
    tree = copy.deepcopy(_default_tree(splits=not replaces_splits))
    problems: list[str] = []
    for key, value, problem in (*from_file, *from_command_line):
        problem = problem or value_problem(schema_fields()[key], value)
        if problem is None:
            try:
                # unsafe: the tree before is not used again; merge would copy all of it for every leaf (0.2 s a file)
                tree = OmegaConf.unsafe_merge(tree, _nest(key, _typed(schema_fields()[key], value)))  # type: ignore[assignment]
            except (OmegaConfBaseException, TypeError):  # TypeError: a mapping where a list belongs
                problem = type_problem(schema_fields()[key], value)
        if problem is not None:
            problems.append(_line(key, value, problem))
    if not problems and tree.teachers and not tree.teacher.path:
        # Here, not with the other defaults: `student.path: ${teacher.path}` has to see it.
        tree = OmegaConf.merge(tree, _nest("teacher.path", "${teachers.0.path}"))  # type: ignore[assignment]
    problems += _unresolved(tree)
    return (RunConfig() if problems else _to_object(tree)), problems


@functools.cache
def _default_tree(*, splits: bool) -> DictConfig:
    """Every field's default, `data.splits` only with ``splits``. Making it takes 24 ms, a copy 5."""
    defaults = RunConfig() if splits else RunConfig(data=DataConfig(splits={}))
    return OmegaConf.structured(defaults)  # type: ignore[no-any-return]


def _typed(field: SchemaField, value: Any) -> Any:
    """omegaconf 2.4 does not look into the entries of a tuple: those that are sections are read one by one."""
    if field.type != POOL or not isinstance(value, list):
        return value
    return tuple(OmegaConf.merge(OmegaConf.structured(PooledTeacher), entry) for entry in value)


def _to_object(tree: DictConfig) -> RunConfig:
    try:
        config = OmegaConf.to_object(tree)
    except OmegaConfBaseException as error:
        raise UserError(f"configuration: {_first_line(error)}") from None
    assert isinstance(config, RunConfig)
    return config


def _nest(key: str, value: Any) -> dict[str, Any]:
    for name in reversed(key.split(".")):
        value = {name: value}
    return value


def _line(key: str, value: Any, problem: str) -> str:
    shown = "null" if value is None else repr(value)
    return f"{key} = {shown if len(shown) <= 80 else shown[:77] + '...'}: {problem}"


def _unresolved(tree: DictConfig) -> list[str]:
    """A line for every field whose interpolation leads nowhere or to a value of the wrong type."""
    problems = []
    plain: Any = OmegaConf.to_container(tree, resolve=False)
    for key, field in schema_fields().items():
        *sections, name = key.split(".")
        written = functools.reduce(operator.getitem, sections, plain)[name]
        if "${" not in str(written):
            continue
        node: Any = functools.reduce(operator.getitem, sections, tree)
        try:
            value = node[name]
            if OmegaConf.is_config(value):
                OmegaConf.to_container(value, resolve=True, throw_on_missing=True)
        except OmegaConfBaseException as error:
            problems.append(_line(key, written, f"{_first_line(error)} (it takes {field.words})"))
    return problems


def _first_line(error: OmegaConfBaseException) -> str:
    """omegaconf's own sentence without its indented notes on node types."""
    sentence = str(error).split("\n    full_key:")[0].strip()
    return sentence.removeprefix("KeyError raised while resolving interpolation: ").strip('"')
